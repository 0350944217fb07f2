package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"runtime"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/cloudinit"
)

// userData is the machine form of cloud-init.
type userData struct {
	UserData string   `json:"userData"`
	Bytes    int      `json:"bytes"`
	Limit    int      `json:"limit"`
	Digest   string   `json:"digest"`
	Files    []string `json:"files"`
}

// cloudInitFlags are those of cloud-init.
type cloudInitFlags struct {
	binaryURL, binarySHA256 string
	cloudInitBundle
	withSecrets bool
}

// cloudInitBundle says where the bundle comes from, and how long is waited for it.
type cloudInitBundle struct {
	url, sha256, device string
	wait                time.Duration
}

func (o *cloudInitBundle) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.url, "bundle-url", "", "the bundle is at this `URL`, http or https")
	f.StringVar(&o.sha256, "bundle-sha256", "", "the bundle's sha256, `HEX`")
	f.StringVar(&o.device, "bundle-device", "", "the bundle is the file "+cloudinit.BundleFile+" on the disk with this `LABEL`")
	f.DurationVar(&o.wait, "wait", cloudinit.Wait, "how long the program and the bundle are waited for, each")
}

// givenBundle says whether there is one.
func (o *cloudInitBundle) given() bool { return o.url != "" || o.device != "" }

// check finds what is wrong with the flags, all of it.
func (o *cloudInitBundle) check() error {
	var faults []error
	if o.url != "" && o.device != "" {
		faults = append(faults, usagef("--bundle-url and --bundle-device: the bundle comes from one of them"))
	}
	if o.url != "" && o.sha256 == "" {
		faults = append(faults, usagef("--bundle-url: what comes over a network needs its --bundle-sha256 (sha256sum FILE)"))
	}
	if o.sha256 != "" && !o.given() {
		faults = append(faults, usagef("--bundle-sha256: of what? there is neither --bundle-url nor --bundle-device"))
	}
	if o.device != "" && !diskLabel.MatchString(o.device) {
		faults = append(faults, usagef("--bundle-device %q: want a label of up to 36 letters, digits, dots, dashes and underscores", o.device))
	}
	if o.wait < time.Second {
		faults = append(faults, usagef("--wait %s: want at least a second", o.wait))
	}
	return errors.Join(append(faults, isURL("bundle-url", o.url), isSHA256("bundle-sha256", o.sha256))...)
}

// diskLabel is a label that udev does not spell otherwise, and no shell reads anything into.
// XFS takes 12 bytes, ext4 16, ISO 9660 32, GPT 36.
var diskLabel = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,35}$`)

var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

func isSHA256(flag, sum string) error {
	if sum == "" || sha256Hex.MatchString(sum) {
		return nil
	}
	return usagef("--%s %q: want 64 lower-case hex digits, as sha256sum prints them", flag, sum)
}

// isURL refuses what would not be fetched, or would hand out a secret: user-data is read by
// every process on the machine, and shown by the cloud's console.
func isURL(flag, s string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return usagef("--%s: want http://HOST/PATH or https://HOST/PATH, without blanks", flag)
	case u.User != nil:
		return usagef("--%s: it has a user name or password in it, which everybody on the node could read; a signed URL that expires does better", flag)
	}
	return nil
}

// exampleSum is a sha256 in examples; it is that of an empty file.
const exampleSum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func (a *app) cloudInitCommand() *cobra.Command {
	var o cloudInitFlags
	cmd := &cobra.Command{
		Use:   "cloud-init",
		Short: "Print user-data that makes a machine a node at its first boot",
		Long: `cloud-init prints user-data for cloud-init (#cloud-config) that writes the profile and starts nodeprep once, before the kubelet. By default
nodeprep is on the image already, as /usr/local/bin/nodeprep, and release files come from the profile's sources or upstream.

With a bundle the profile of -f goes over the bundle's own, and images and release files are the bundle's; without -f
the bundle's profile is used as it is. A disk without --bundle-sha256 is trusted by its label alone. --bundle-device with --binary-sha256 and without --binary-url takes the program from that disk, too: the
file ` + cloudinit.ProgramFile + `.

User-data is no place for secrets: what is secret is refused with its lines, unless --with-secrets is given. More than 16 KiB are
refused, since cloud platforms take no more. docs/cloud-init.md has the rest.`,
		Example: `  nodeprep cloud-init -f node.yaml > user-data
  nodeprep cloud-init -f local.yaml --bundle-url https://boot.example.com/node.bundle --bundle-sha256 ` + exampleSum + ` > user-data
  nodeprep cloud-init --bundle-device NODEPREP --bundle-sha256 ` + exampleSum + ` --binary-sha256 ` + exampleSum + ` > user-data`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			return usagef("%s takes no arguments, got %q", cmd.CommandPath(), args)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return a.cloudInit(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.binaryURL, "binary-url", "", "nodeprep itself is at this `URL`, http or https")
	f.StringVar(&o.binarySHA256, "binary-sha256", "", "the program's sha256, `HEX`")
	o.register(cmd)
	f.BoolVar(&o.withSecrets, "with-secrets", false, "take along secrets and private keys")
	a.lockFlag(cmd)
	cmd.AddCommand(a.cloudInitRunCommand())
	return cmd
}

// check finds what is wrong with the flags, all of it.
func (o *cloudInitFlags) check() error {
	faults := []error{isURL("binary-url", o.binaryURL), isSHA256("binary-sha256", o.binarySHA256)}
	switch {
	case o.binaryURL != "" && o.binarySHA256 == "":
		faults = append(faults, usagef("--binary-url: what comes over a network needs its --binary-sha256 (sha256sum FILE)"))
	case o.binarySHA256 != "" && o.binaryURL == "" && o.device == "":
		faults = append(faults, usagef("--binary-sha256: of what? there is neither --binary-url nor --bundle-device"))
	}
	return errors.Join(append(faults, o.cloudInitBundle.check())...)
}

func (a *app) cloudInit(ctx context.Context, o cloudInitFlags) error {
	if err := o.check(); err != nil {
		return err
	}
	files, err := a.cloudInitFiles(ctx, o)
	if err != nil {
		return err
	}
	if o.device != "" && o.sha256 == "" {
		a.warn(diag.List{{Severity: diag.Warning, Message: "--bundle-device without --bundle-sha256: until the node is made, whoever plugs in a disk with the label " + o.device + " decides what is installed as root"}})
	}
	doc, err := cloudinit.UserData(cloudinit.Input{
		Files: files, Version: plainVersion(), Wait: o.wait,
		ProgramURL: o.binaryURL, ProgramSHA256: o.binarySHA256,
		BundleURL: o.url, BundleSHA256: o.sha256, Device: o.device,
	})
	if tooLarge, ok := errors.AsType[*cloudinit.SizeError](err); ok {
		return fmt.Errorf("%w\nput the profile into a bundle and leave -f out (--bundle-url, --bundle-device), or certificates onto the image", tooLarge)
	}
	if err != nil {
		return err
	}
	if a.structured {
		r := userData{UserData: string(doc), Bytes: len(doc), Limit: cloudinit.Limit, Digest: cloudinit.Digest(files)}
		for _, f := range files {
			r.Files = append(r.Files, f.Path)
		}
		a.result = r
		return nil
	}
	_, err = a.out.Write(doc)
	return err
}

// bundleOnly is the profile of a node that has no other than its bundle's.
const bundleOnly = "apiVersion: " + profiles.APIVersion + "\nextends: " + profiles.BundleName + "\nkind: " + profiles.Kind + "\n"

// cloudInitFiles are the profile and what it names, as they are on the node.
func (a *app) cloudInitFiles(ctx context.Context, o cloudInitFlags) ([]cloudinit.File, error) {
	if o.given() && a.profile == "" {
		if a.lock != "" {
			return nil, usagef("--lock: the bundle has its own")
		}
		return []cloudinit.File{{Path: cloudinit.OverlayPath, Data: []byte(bundleOnly), Mode: 0o644}}, nil
	}
	root, err := host.OpenRoot(a.root)
	if err != nil {
		return nil, usagef("--root: %w", err)
	}
	name, err := a.chosen(root, noReceipt)
	if err != nil {
		return nil, err
	}
	l, err := a.loader(ctx)
	if err != nil {
		return nil, err
	}
	if o.given() {
		// Whatever is beneath an overlay comes with the bundle.
		l.Bundle = "the bundle"
		read := l.Read
		l.Read = func(name string) ([]byte, error) {
			if name == profiles.BundleProfile {
				return []byte("apiVersion: " + profiles.APIVersion + "\nkind: " + profiles.Kind + "\n"), nil
			}
			return read(name)
		}
	}
	profile, list := l.Load(name)
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	a.warn(list)
	var lockFile []byte
	if !o.given() {
		// What the node would find wrong is told here. A bundle was looked at when it was made.
		lock, err := a.lockOf(name)
		if err != nil {
			return nil, err
		}
		arches := lock.Arches()
		if len(arches) == 0 {
			arches = []string{runtime.GOARCH}
		}
		if _, err := a.bundledNodes(ctx, profile, arches, lock); err != nil {
			return nil, err
		}
		if lock != nil {
			if lockFile, err = readLimited(a.lockName(name)); err != nil {
				return nil, fmt.Errorf("read the lock: %w", err)
			}
		}
	} else if a.lock != "" {
		return nil, usagef("--lock: the bundle has its own")
	}
	portable, list := profile.Portable(profiles.PortableOptions{
		WithSecrets: o.withSecrets, Read: a.inputs(ctx).File, ByItself: !o.given(), Bundled: o.given(),
	})
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	a.warn(list)
	text, err := portable.YAML(nil)
	if err != nil {
		return nil, err
	}
	first := cloudinit.File{Path: cloudinit.ProfilePath, Data: text, Mode: 0o644}
	if o.given() {
		first.Path = cloudinit.OverlayPath
	}
	mode := first.Mode
	if portable.Secret {
		mode = 0o600
	}
	first.Mode = mode
	files := []cloudinit.File{first}
	if lockFile != nil {
		files = append(files, cloudinit.File{Path: cloudinit.LockPath, Data: lockFile, Mode: 0o644})
	}
	for _, f := range portable.Files {
		if !f.Image {
			files = append(files, cloudinit.File{Path: path.Join(cloudinit.Dir, f.Name), Data: f.Data, Mode: mode})
		}
	}
	return files, nil
}
