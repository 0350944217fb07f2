package checks

import "testing"

const swapHeader = "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n"

func TestSwap(t *testing.T) {
	on := swapHeader + "/dev/sda3                               partition\t2097148\t\t0\t\t-2\n"
	const config = "/var/lib/kubelet/config.yaml"
	looks(t, "host/swap",
		look{"off", files{"/proc/swaps": swapHeader}, given(kubernetes("1.36")), one(Pass, "no swap")},
		look{"a kernel without", nil, given(kubernetes("1.36")), one(Pass, "no swap")},
		look{"on, and nobody minds", files{"/proc/swaps": on}, nil, one(Pass, "no kubelet that minds")},
		look{"on", files{"/proc/swaps": on, "/etc/fstab": "# disks\n/dev/sda1 / ext4 defaults 0 1\n/dev/sda3 none swap sw 0 0\n"}, given(kubernetes("1.36")), []want{{
			verdict: Warn, observed: "2 GiB of swap on /dev/sda3", wanted: "no swap", place: "/etc/fstab:3", remedy: "swapoff -a\nsed -i '3s/^/# /' /etc/fstab",
		}}},
		look{"zram", files{"/proc/swaps": swapHeader + "/dev/zram0 partition 1048572 0 100\n"}, given(kubernetes("1.36")), []want{{verdict: Warn, place: "/dev/zram0", remedy: "mask dev-zram0.swap"}}},
		look{"zram1", files{"/proc/swaps": swapHeader + "/dev/zram1 partition 1048572 0 100\n", "/run/systemd/generator/dev-zram1.swap": "[Swap]\nWhat=/dev/zram1\n"}, given(kubernetes("1.36")), []want{{verdict: Warn, remedy: "swapoff -a\nsystemctl mask dev-zram1.swap"}}},
		look{"Debian's zram", files{"/proc/swaps": swapHeader + "/dev/zram0 partition 1048572 0 100\n", "/usr/lib/systemd/system/zramswap.service": ""}, given(kubernetes("1.36")), []want{{verdict: Warn, remedy: "systemctl disable --now zramswap.service\nsystemctl mask dev-zram0.swap"}}},
		look{"Raspberry Pi OS", files{"/proc/swaps": swapHeader + "/var/swap file 524284 0 -2\n", "/usr/lib/systemd/system/dphys-swapfile.service": ""}, given(kubernetes("1.36")), []want{{verdict: Warn, remedy: "swapoff -a\nsystemctl disable --now dphys-swapfile.service"}}},
		look{"a unit by hand", files{"/proc/swaps": swapHeader + "/swapfile file 524284 0 -2\n", "/etc/systemd/system/swapfile.swap": "[Swap]\nWhat=/swapfile\n", "/etc/systemd/system/other.swap": "[Swap]\nWhat=/other\n"}, given(kubernetes("1.36")), []want{{
			verdict: Warn, remedy: "swapoff -a\nmv /etc/systemd/system/swapfile.swap /etc/systemd/system/swapfile.swap.off\nsystemctl daemon-reload",
		}}},
		look{"a partition that systemd found", files{"/proc/swaps": on, "/run/systemd/generator.late/dev-sda3.swap": "[Swap]\nWhat=/dev/sda3\n"}, given(kubernetes("1.36")), []want{{verdict: Warn, remedy: "swapoff -a\nsystemctl mask dev-sda3.swap"}}},
		look{"on, and allowed", files{"/proc/swaps": on, config: "failSwapOn: false\n"}, nil, one(Pass, "allows")},
		look{"unreadable", files{"/proc/swaps/": ""}, nil, one(Unknown, "is a directory")},
	)
	looks(t, "host/kubelet-swap",
		look{"off", files{"/proc/swaps": swapHeader, config: "failSwapOn: true\n"}, nil, one(Pass, "no swap")},
		look{"on", files{"/proc/swaps": on, config: "kind: KubeletConfiguration\n"}, nil, []want{{
			verdict: Fail, observed: "/dev/sda3, and failSwapOn is true", wanted: "no swap", place: "/dev/sda3", remedy: "swapoff -a",
		}}},
		look{"on, and allowed", files{"/proc/swaps": on, config: "failSwapOn: false\n"}, nil, []want{{verdict: Pass, observed: "false", place: config + ":1"}}},
		look{"a kubelet that cannot be read", files{"/proc/swaps": on, config + "/": ""}, nil, one(Unknown, "is a directory")},
		look{"unreadable", files{"/proc/swaps/": "", config: "failSwapOn: true\n"}, nil, one(Unknown, "is a directory")},
	)
}

func TestMemory(t *testing.T) {
	has := func(kib string) files {
		return files{"/proc/meminfo": "MemTotal:       " + kib + " kB\nMemFree: 1 kB\n"}
	}
	looks(t, "host/memory",
		look{"plenty", has("4000000"), given(kubernetes("1.36")), one(Pass, "3.8 GiB")},
		look{"enough for a worker", has("1000000"), given(kubernetes("1.36")), []want{{verdict: Warn, observed: "976 MiB", wanted: "control plane"}}},
		look{"enough for containers", has("1000000"), nil, one(Pass, "976 MiB")},
		look{"too little", has("400000"), nil, []want{{verdict: Warn, observed: "390 MiB", wanted: "500 MiB"}}},
		look{"not a number", has("many"), nil, one(Unknown, "many")},
		look{"not said", files{"/proc/meminfo": "MemFree: 1 kB\n"}, nil, one(Unknown, "no MemTotal")},
		look{"unreadable", nil, nil, one(Unknown, "no such file")},
	)
}

func TestCPUs(t *testing.T) {
	has := func(list string) files { return files{"/sys/devices/system/cpu/online": list + "\n"} }
	looks(t, "host/cpus",
		look{"several", has("0-2,5"), given(kubernetes("1.36")), one(Pass, "4")},
		look{"one", has("0"), given(kubernetes("1.36")), []want{{verdict: Warn, observed: "1", wanted: "2"}}},
		look{"one, and no Kubernetes", has("0"), nil, one(Pass, "1")},
		look{"nonsense", has("3-1"), nil, one(Unknown, "3-1")},
		look{"unreadable", nil, nil, one(Unknown, "no such file")},
	)
}
