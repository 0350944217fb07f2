// Package releases holds what is known of containerd, runc, CNI plugins and crictl
// by release: published sha256 values, file names and URLs, config schema versions,
// renamed and removed config keys, systemd unit facts, support dates and the
// Kubernetes matrix. Facts only, with their sources; it must not know profiles,
// hosts or how anything is rendered or installed.
package releases
