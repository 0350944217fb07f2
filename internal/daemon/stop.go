package daemon

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
)

const (
	// killWait is how long a killed task may take to be gone: its memory may be large,
	// or its disk slow.
	killWait = 30 * time.Second
	// deleteWait is how long a task that has ended may take to be deleted, deleteAgain
	// when that is tried again.
	deleteWait  = 10 * time.Second
	deleteAgain = 200 * time.Millisecond
	// stopAtOnce bounds how many tasks are being stopped at a time.
	stopAtOnce = 32
)

// StopTasks ends all tasks of all namespaces and removes them: SIGTERM, SIGKILL after
// grace, and those of pods' containers before the pods' own. Tasks that vanish meanwhile
// are no fault. The error has a line for each task that could not be ended.
func (d *Client) StopTasks(ctx context.Context, grace time.Duration) error {
	all, err := d.Tasks(ctx)
	if err != nil {
		return err
	}
	containers, err := d.Containers(ctx)
	if err != nil {
		return err
	}
	sandbox := map[[2]string]bool{}
	for _, c := range containers {
		sandbox[[2]string{c.Namespace, c.ID}] = c.Sandbox
	}
	var rounds [2][]Task
	for _, t := range all {
		if sandbox[[2]string{t.Namespace, t.ID}] {
			rounds[1] = append(rounds[1], t)
		} else {
			rounds[0] = append(rounds[0], t)
		}
	}
	var faults []error
	for _, round := range rounds {
		errs := make([]error, len(round))
		slots := make(chan struct{}, stopAtOnce)
		var wg sync.WaitGroup
		for i, t := range round {
			wg.Go(func() {
				slots <- struct{}{}
				defer func() { <-slots }()
				if err := d.stop(ctx, t, grace); err != nil {
					errs[i] = fmt.Errorf("stop task %s in namespace %s: %w", t.ID, t.Namespace, plain(err))
				}
			})
		}
		wg.Wait()
		faults = append(faults, errs...)
	}
	return errors.Join(faults...)
}

// stop ends one task. What the API calls return tells whether it is gone; a task that
// nobody knows any more is.
func (d *Client) stop(ctx context.Context, t Task, grace time.Duration) error {
	ctx = namespaces.WithNamespace(ctx, t.Namespace)
	service := d.c.TaskService()
	kill := func(signal unix.Signal, whole bool) error {
		_, err := service.Kill(ctx, &tasks.KillRequest{ContainerID: t.ID, Signal: uint32(signal), All: whole})
		return errgrpc.ToNative(err)
	}
	// exited waits for the task's end, which the daemon tells when it comes.
	exited := func(wait time.Duration) error {
		ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("still there after %s", wait))
		defer cancel()
		if _, err := service.Wait(ctx, &tasks.WaitRequest{ContainerID: t.ID}); err != nil {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return errgrpc.ToNative(err)
		}
		return nil
	}
	gone := func(err error) bool { return errdefs.IsNotFound(err) }

	if t.Status != "stopped" {
		if t.Status == "paused" || t.Status == "pausing" {
			// A frozen process gets no signal.
			if _, err := service.Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: t.ID}); err != nil && gone(errgrpc.ToNative(err)) {
				return nil
			}
		}
		// "not found" here may be the process alone, with its task still to be deleted.
		err := kill(unix.SIGTERM, false)
		if err == nil {
			err = exited(grace)
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil && !gone(err) {
			killed := kill(unix.SIGKILL, true)
			if err := exited(killWait); err != nil && !gone(err) {
				return errors.Join(killed, err)
			}
		}
	}
	// A daemon that heard of the exit a moment ago may not have the task as stopped yet,
	// and its CRI plugin deletes what ended as well: whoever is second finds the shim gone,
	// and soon the task.
	wait, cancel := context.WithTimeout(ctx, deleteWait)
	defer cancel()
	for {
		_, err := service.Delete(ctx, &tasks.DeleteTaskRequest{ContainerID: t.ID})
		if err = errgrpc.ToNative(err); err == nil || gone(err) {
			return nil
		}
		if _, getErr := service.Get(ctx, &tasks.GetRequest{ContainerID: t.ID}); getErr != nil && gone(errgrpc.ToNative(getErr)) {
			return nil
		}
		select {
		case <-time.After(deleteAgain):
		case <-wait.Done():
			return err
		}
	}
}
