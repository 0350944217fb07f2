package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
)

// Limits of working with bundles.
const (
	bundleRatio  = 0.40     // apply --bundle to an empty root, of doing it by hand
	sizeRatio    = 0.8      // a bundle for one architecture, of upstream's three files
	bundleMemory = 64 << 10 // kilobytes, however large the bundle is
	largeImage   = 2 << 30  // bytes of the image that proves it
)

// benchBundle measures bundles: what they take to be made, carried and applied.
func benchBundle(ctx context.Context, nodeprep, artifacts, dir string, rounds int) error {
	set, err := findSet(artifacts)
	if err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "nodeprep-bench-bundle-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	side, err := byHandOf(nodeprep, set, work)
	if err != nil {
		return err
	}
	fmt.Println(machine(rounds, set))

	file := filepath.Join(work, "bundle.tar")
	var byHand, tarballs, apply, create, verify series
	for i := range rounds {
		root := func(name string) string { return filepath.Join(work, fmt.Sprint(name, i)) }
		roots := []string{root("hand"), root("tarballs"), root("bundle")}
		for _, d := range roots {
			if err := os.Mkdir(d, 0o755); err != nil {
				return err
			}
		}
		for _, step := range []struct {
			into *series
			cmd  *exec.Cmd
		}{
			{&create, createCommand(ctx, nodeprep, side.profile, set.dir, file)},
			{&verify, exec.CommandContext(ctx, nodeprep, "bundle", "verify", file)},
			{&byHand, side.into(roots[0])},
			{&tarballs, exec.CommandContext(ctx, nodeprep, "apply", "-f", side.profile, "--root", roots[1], "--artifacts", set.dir, "--offline", "-o", "json")},
			{&apply, applyCommand(ctx, nodeprep, file, roots[2])},
		} {
			// What the run before left unwritten must not be paid for by this one.
			syscall.Sync()
			s, err := timed(step.cmd)
			if err != nil {
				return err
			}
			*step.into = append(*step.into, s)
		}
		for _, d := range roots {
			if err := os.RemoveAll(d); err != nil {
				return err
			}
		}
	}
	large, err := benchLarge(ctx, nodeprep, side, work)
	if err != nil {
		return err
	}

	fmt.Printf("%-34s %10s %10s %10s %10s %6s\n", "", "min", "median", "max", "peak MiB", "cores")
	rows := append([]row{
		{"by hand, not durable", byHand}, {"nodeprep apply, from tarballs", tarballs}, {"nodeprep apply --bundle, durable", apply},
		{"nodeprep bundle create", create}, {"nodeprep bundle verify", verify},
	}, large...)
	for _, r := range rows {
		fmt.Printf("%-34s %10s %10s %10s %10.1f %6.2f\n", r.name, ms(r.s.wall(0)), ms(r.s.wall(0.5)), ms(r.s.wall(1)), float64(r.s.rss())/1024, r.s.cores())
	}
	fmt.Printf("apply --bundle / by hand: %.2f (medians %s / %s), %.2f (minima); wanted at most %.2f\n",
		apply.wall(0.5).Seconds()/byHand.wall(0.5).Seconds(), ms(apply.wall(0.5)), ms(byHand.wall(0.5)), apply.wall(0).Seconds()/byHand.wall(0).Seconds(), bundleRatio)
	made, err := sizeOf(file)
	if err != nil {
		return err
	}
	upstream, err := sizeOf(filepath.Join(set.dir, set.containerd), filepath.Join(set.dir, set.cni), filepath.Join(set.dir, set.runc))
	if err != nil {
		return err
	}
	fmt.Printf("bundle for %s / upstream's three files: %.2f (%.1f / %.1f MB); wanted at most %.2f\n", runtime.GOARCH, float64(made)/float64(upstream), float64(made)/1e6, float64(upstream)/1e6, sizeRatio)
	fmt.Printf("bundle create: %.2f of %d cores busy (median), %d lines of progress to a pipe; wanted well above 1.5 of two idle ones\n", create.cores(), runtime.NumCPU(), create[0].notes)
	for _, r := range large {
		fmt.Printf("peak memory of %s: %.1f / %d MiB = %.2f; wanted at most 1\n", r.name, float64(r.s.rss())/1024, bundleMemory>>10, float64(r.s.rss())/bundleMemory)
	}
	return nil
}

type row struct {
	name string
	s    series
}

func createCommand(ctx context.Context, nodeprep, profile, artifacts, file string) *exec.Cmd {
	return exec.CommandContext(ctx, nodeprep, "bundle", "create", file, "-f", profile, "--arch", runtime.GOARCH, "--artifacts", artifacts, "--offline", "--force")
}

func applyCommand(ctx context.Context, nodeprep, file, root string) *exec.Cmd {
	return exec.CommandContext(ctx, nodeprep, "apply", "--bundle", file, "--root", root, "-o", "json")
}

// benchLarge works once with a bundle that has a large image in it. Its memory is what
// counts: that belongs to no machine.
func benchLarge(ctx context.Context, nodeprep string, side hand, work string) ([]row, error) {
	// The image, the bundle beside the layers that it is made of, and the image at its node.
	const needed = 4*largeImage + 1<<30
	var fs syscall.Statfs_t
	if err := syscall.Statfs(work, &fs); err != nil {
		return nil, err
	}
	if room := int64(fs.Bavail) * fs.Bsize; room < needed {
		fmt.Printf("a bundle with an image of %d GiB: not measured: %s has %.1f GiB left and %.1f are needed\n", largeImage>>30, work, float64(room)/(1<<30), float64(needed)/(1<<30))
		return nil, nil
	}
	image, profile := filepath.Join(work, "large.tar"), filepath.Join(work, "large.yaml")
	if err := writeImage(image, largeImage); err != nil {
		return nil, err
	}
	text := fmt.Sprintf("extends: %s\nimages: [{file: %s, pin: true}]\n", filepath.Base(side.profile), filepath.Base(image))
	if err := os.WriteFile(profile, []byte(text), 0o644); err != nil {
		return nil, err
	}
	file, root := filepath.Join(work, "large-bundle.tar"), filepath.Join(work, "large-root")
	if err := os.Mkdir(root, 0o755); err != nil {
		return nil, err
	}
	var rows []row
	for _, step := range []struct {
		name string
		cmd  *exec.Cmd
	}{
		{"bundle create", createCommand(ctx, nodeprep, profile, side.set.dir, file)},
		{"bundle verify", exec.CommandContext(ctx, nodeprep, "bundle", "verify", file)},
		{"apply --bundle", applyCommand(ctx, nodeprep, file, root)},
	} {
		syscall.Sync()
		s, err := timed(step.cmd)
		if err != nil {
			return nil, err
		}
		rows = append(rows, row{fmt.Sprintf("%s, %d GiB image", step.name, largeImage>>30), series{s}})
	}
	return rows, nil
}

func sizeOf(files ...string) (sum int64, err error) {
	for _, f := range files {
		fi, err := os.Stat(f)
		if err != nil {
			return 0, err
		}
		sum += fi.Size()
	}
	return sum, nil
}
