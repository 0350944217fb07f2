// Package cloudinit writes user-data for cloud-init that makes a machine a node at its first
// boot: what is written where, the unit that runs nodeprep ahead of the kubelet, and the
// script that fetches nodeprep where it is not on the image. It is pure: it reads no files,
// and knows of profiles only their bytes.
package cloudinit
