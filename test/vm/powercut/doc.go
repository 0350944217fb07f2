// Package powercut takes a disk apart that was recorded while a machine ran, and puts it
// together again as it is when the power is cut: with what the disk had promised to keep,
// and without the rest, or with any part of it. It reads the format of the kernel's
// dm-log-writes as QEMU's blklogwrites driver writes it.
//
// It must not know what is on the disk, nor how it was recorded.
package powercut
