package cloudinit

import (
	"fmt"
	"strings"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// program is nodeprep on a node.
const program = "/usr/local/bin/nodeprep"

// unit is nodeprep-cloud-init.service.
//
// It is there at every boot: a run that was interrupted or failed is made again, and one that
// was done ends at once. The kubelet waits for it, and so does the last stage of cloud-init,
// which tells of it. containerd does not: nodeprep starts it, in here.
func (in Input) unit() []byte {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("[Unit]")
	line("Description=Make this machine a containerd node")
	line("Documentation=https://github.com/nodeprep/nodeprep")
	line("ConditionPathExists=%s", in.Files[0].Path)
	// Looked at when all that this comes after has ended: what was written by halves, or for
	// another instance, is not run.
	line("ConditionPathExists=%s", done)
	// Both names of the stage in which files are written: the second is cloud-init's since 24.3.
	// Not time-sync.target: where that waits, it waits without a deadline.
	after := "cloud-init.service cloud-init-network.service nodeprep-recover.service nodeprep-firstboot.service local-fs.target"
	if in.network() {
		line("Wants=network-online.target")
		after += " network-online.target"
	}
	line("After=%s", after)
	line("Before=kubelet.service cloud-final.service")
	line("RequiresMountsFor=/etc /usr/local/bin /usr/local/sbin /opt/cni/bin /var/lib/nodeprep /var/tmp")
	line("")
	line("[Service]")
	line("Type=oneshot")
	line("RemainAfterExit=yes")
	if in.ProgramSHA256 != "" {
		line("ExecStartPre=/bin/sh %s", FetchPath)
	}
	line("ExecStart=%s", strings.Join(in.command(), " "))
	// One-shot units have no limit of their own (systemd.service(5)), and the kubelet waits.
	// Its own deadline ends each wait before; this is for what hangs all the same.
	line("TimeoutStartSec=%ds", int((in.Wait + Limited).Seconds()))
	// Putting everything back takes its time, too.
	line("TimeoutStopSec=10min")
	line("StandardOutput=journal+console")
	line("StandardError=journal+console")
	line("")
	line("[Install]")
	line("WantedBy=multi-user.target")
	return []byte(b.String())
}

// network says whether something comes, or may come, over it.
func (in Input) network() bool { return in.Device == "" || in.ProgramURL != "" || in.BundleURL != "" }

// command is what the unit runs.
func (in Input) command() []string {
	args := []string{program, "cloud-init", "run", "--digest", Digest(in.Files), "--wait", span(in.Wait)}
	if in.BundleURL != "" {
		args = append(args, "--bundle-url", word(in.BundleURL))
	}
	if in.BundleSHA256 != "" {
		args = append(args, "--bundle-sha256", in.BundleSHA256)
	}
	if in.BundleURL == "" && in.Device != "" {
		args = append(args, "--bundle-device", word(in.Device))
	}
	for _, f := range in.Files {
		args = append(args, word(f.Path))
	}
	return args
}

// settled asks the program in place, in sh, whether a run would have anything to do: by what
// a run is known, and no more.
func (in Input) settled() string {
	args := []string{"cloud-init", "run", "--settled", "--digest", Digest(in.Files)}
	if in.BundleSHA256 != "" {
		args = append(args, "--bundle-sha256", in.BundleSHA256)
	}
	return strings.Join(append(args, diag.ShellWord(in.Files[0].Path)), " ")
}

// word is a word of a unit's command line (systemd.service(5)), in which % and $ begin
// something else.
func word(s string) string {
	if s != "" && strings.Trim(s, plain) == "" {
		return s
	}
	s = strings.NewReplacer("%", "%%", "$", "$$", `\`, `\\`, `"`, `\"`).Replace(s)
	return `"` + s + `"`
}

// start is the shell script of bootcmd, which runs in every boot before files are written,
// and while the kubelet's start is still waiting: so it can get something ahead of that.
//
// cloud-init notes that it is about to write files, writes them, and never writes them
// again, and nothing of this is durable before the disk likes. After a power cut the note
// may be there and files be empty. So the note goes until all is known to be on the disk.
//
// That is noted by what was written: for the instance, and for the machine. An instance may
// come back after another, or with other user-data, and then the files are not its own.
//
// Nor does cloud-init stop when it could not write one of them, on a disk that is full. So
// all of them are held to their digest first: what was there before them is not run, and no
// script that is half there.
//
// StartName comes when the files should be there, makes them durable and systemd read them,
// and asks for a start of the unit, with which the kubelet then waits for that; it must not
// wait for it, since the unit, where there is an older one, waits for StartName. It is a
// restart where user-data is written anew in a running system.
func (in Input) start(files []File) string {
	var names []string
	for _, f := range files {
		names = append(names, diag.ShellWord(f.Path))
	}
	// No semicolon and no variable within what systemd keeps of it: reading that again, it
	// complains of the one and replaces the other.
	sum := Digest(files)
	then := `sha256sum ` + strings.Join(names, " ") + ` | sha256sum | grep -q ^` + sum +
		` && sync && systemctl daemon-reload && systemctl enable ` + UnitName + ` && sync && echo ` + sum + ` >` + written + ` && echo ` + sum + ` >` + done +
		` && sync && systemctl restart --no-block ` + UnitName
	return `grep -qs ` + sum + ` ` + done + ` && grep -qs ` + sum + ` ` + written + ` && exit
rm -f ` + done + ` ` + written + ` /var/lib/cloud/instance/sem/config_write_files
exec systemd-run --quiet --no-block --collect --unit=` + StartName + ` --description='Have nodeprep run ahead of the kubelet' \
  -p Type=oneshot -p TimeoutStartSec=5min -p 'After=cloud-init.service cloud-init-network.service' \
  -p 'Before=` + UnitName + ` kubelet.service cloud-final.service' \
  sh -c ` + diag.ShellWord(then) + `
`
}

// Both have the digest of all files, and are there, on the disk, when those are and the unit
// is enabled: done goes with the other notes of an instance, written is the machine's.
const (
	done    = "/var/lib/cloud/instance/sem/nodeprep"
	written = "/var/lib/cloud/data/nodeprep"
)

// report is what makes cloud-init's status say error.
func (in Input) report() []byte {
	return []byte(`#!/bin/sh
# made by nodeprep: fails where ` + UnitName + ` did, so that "cloud-init status" says so.
unit=` + UnitName + `
at=` + UnitPath + `
# Else the files are not those of this instance's user-data, and the unit is another's.
if [ -s ` + done + ` ] && [ "$(cat ` + done + `)" = "$(cat ` + written + `)" ] && { [ ! -e $at ] || grep -q ` + Digest(in.Files) + ` $at; }; then
  case $(systemctl show -p ActiveState --value $unit) in
  active) exit 0 ;;
  # Somebody has disabled it since, or taken the profile away.
  inactive) systemctl is-enabled --quiet $unit && [ -e ` + in.Files[0].Path + ` ] || exit 0 ;;
  esac
else
  echo "what user-data has is not on the disk as it should be; /var/log/cloud-init.log says why" >&2
fi
echo "$unit failed; its last lines:" >&2
journalctl -b -u $unit -u ` + StartName + ` -n 20 --no-pager -o cat >&2
grep -qs "$(cat /proc/sys/kernel/random/boot_id)" ` + resultPath + ` && echo "` + resultPath + ` has the whole of it" >&2
exit 1
`)
}
