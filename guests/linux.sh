#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a Linux in a machine of `guestmem run`: says what the kernel has found, in lines that begin
# with "found", and what it complains about. Kernel parameters: with window=VECTOR it uses the shared memory; with
# hear=1 it waits for a word on the console; at the end it powers off, with then=reboot it restarts, with then=panic it
# panics.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

echo "found kernel $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
echo "found processors $(nproc)"
echo "found memory $(sed -n 's/^MemTotal: *//p' /proc/meminfo)"
echo "found clock $(cat /sys/devices/system/clocksource/clocksource0/current_clocksource)"
echo "found rtc $(cat /sys/class/rtc/rtc0/name) $(cat /sys/class/rtc/rtc0/since_epoch)"
echo "found keyboard $(cat /sys/bus/serio/devices/serio0/description)"
echo "found serial $(sed -n 's/^0: //p' /proc/tty/driver/serial | cut -d' ' -f1-3)"
for device in /sys/bus/pci/devices/*; do
    echo "found pci ${device##*/} $(xxd -p "$device/config" | tr -d '\n')"
    sed -n "s/^\(0x[0-9a-f]*[1-9a-f][0-9a-f]*\) \(0x[0-9a-f]*\) .*/found bar ${device##*/} \1 \2/p" "$device/resource"
done

if [ "${window:-}" ]; then window "$window" || echo "window failed"; fi
if [ "${hear:-}" ]; then
    echo "guest asks for a word"
    read -r word </dev/console
    echo "found word $word"
fi

sed -n 's/^ *\([^ ]*:.*\)/found interrupt \1/p' /proc/interrupts
dmesg -r | sed -n 's/^<[0-4]>\[[^]]*\] */complaint /p'
# A change of the settings waits until all output has left: a panic does not.
stty -F /dev/ttyS0 icanon
case "${then:-off}" in
    reboot) reboot -f ;;
    panic) echo c >/proc/sysrq-trigger ;;
    *) poweroff -f ;;
esac
