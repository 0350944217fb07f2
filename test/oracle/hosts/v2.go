//go:build v2

package main

import (
	"context"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
)

func configureHosts(ctx context.Context, root string) docker.RegistryHosts {
	return config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(root)})
}
