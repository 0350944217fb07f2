//go:build !v2

package main

import (
	"context"

	"github.com/containerd/containerd/remotes/docker"
	"github.com/containerd/containerd/remotes/docker/config"
)

func configureHosts(ctx context.Context, root string) docker.RegistryHosts {
	return config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(root)})
}
