package vm

import "context"

// Kubeadm is the real kubeadm for the lab's guests, and its version. It takes minutes to build
// where it is not cached.
func (l *Lab) Kubeadm(ctx context.Context) (file, version string, err error) {
	return l.store.Kubeadm(ctx, l.guest.Arch)
}
