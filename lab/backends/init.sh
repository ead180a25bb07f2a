#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: mounts, takes a disk for swap when there is one, runs the kernel parameter
# command="..." for at most limit=... seconds, and powers off. What went wrong in the kernel follows the command's own
# lines. With control_groups=1 the memory controller is where systems with the first version have it.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mkdir -p /dev/shm /run
mount -t tmpfs tmpfs /tmp
mount -t tmpfs tmpfs /dev/shm
chmod 1777 /tmp /dev/shm

if [ "${control_groups:-}" ]; then
    mount -t tmpfs tmpfs /sys/fs/cgroup
    mkdir /sys/fs/cgroup/memory
    mount -t cgroup -o memory cgroup /sys/fs/cgroup/memory
fi
if [ -b /dev/nvme0n1 ]; then mkswap /dev/nvme0n1 >/dev/null && swapon /dev/nvme0n1; fi

# shellcheck disable=SC2086  # the words are meant to be split
timeout -s KILL "${limit:-60}" ${command:-}
echo "STATUS $?"
dmesg -r | sed -n 's/^<[0-4]>/KERNEL /p' | tail -n 40
poweroff -f
