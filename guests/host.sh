#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a host in a machine: runs `guestmem run` for each /runs/NAME.qvmconf, answers what the guest
# asks for, and powers off. Lines of a guest's console begin with "NAME | "; others are the host's.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null
mkdir -p /dev/shm /run/guestmem
mount -t tmpfs tmpfs /dev/shm
# What this kernel says of KVM would stand amid the guest's lines.
dmesg -n 1

while read -r module; do
    insmod "/modules/$module" || echo "host: error: cannot load $module"
done </modules/order-host
[ -c /dev/kvm ] || echo "host: error: there is no /dev/kvm"
echo "host: $(uname -r) is up after $(cut -d' ' -f1 /proc/uptime) s"

# A message for the window in the guest, and its ring.
exchange() {
    export GUESTMEM_SHARE_CONTROL=$1
    guestmem share wait mailbox 1 --timeout 300 >/tmp/rung 2>/tmp/waiting &
    waiting=$!
    until [ -s /tmp/waiting ] || ! kill -0 $waiting; do usleep 10000; done
    guestmem share write mailbox --message "hello from the host." || echo "host: error: cannot write"
    wait $waiting
    echo "host: the wait for a ring ended with $?"
    echo "host: read $(guestmem share read mailbox)"
}

# follow NAME: shows the console and answers it.
follow() {
    while IFS= read -r line; do
        echo "$1 | $line"
        case $line in
            "window: ready"*) exchange "/run/guestmem/vm-$1.share" ;;
            "guest asks for a word"*) echo "swordfish" >&3 ;;
        esac
    done
}

for file in /runs/*.qvmconf; do
    name=$(basename "$file" .qvmconf)
    begun=$(cut -d' ' -f1 /proc/uptime)
    mkfifo "/tmp/$name.in"
    exec 3<>"/tmp/$name.in"
    { guestmem run "$file" <"/tmp/$name.in" 2>&1; echo $? >/tmp/status; } | follow "$name"
    echo "host: $name ended with status $(cat /tmp/status) after" \
        "$(awk "BEGIN { print $(cut -d' ' -f1 /proc/uptime) - $begun }") s"
done
poweroff -f
