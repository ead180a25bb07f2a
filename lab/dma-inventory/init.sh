#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a machine of the bed: loads the modules, gives every PCI function a driver that asks for an IOMMU
# group, and says what the kernel shows. Each file of the capture goes to the console between two marks.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

while read -r module; do
    insmod "/modules/$module" || echo "lab: module $module is refused"
done </modules/order
# Some kernels form the group of a function when a driver that does DMA is bound to it.
for device in /sys/bus/pci/devices/*; do
    [ -e "$device/driver" ] || [ -e "$device/iommu_group" ] && continue
    echo vfio-pci >"$device/driver_override"
    echo "${device##*/}" >/sys/bus/pci/drivers_probe
done

echo "lab: kernel $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
for group in /sys/kernel/iommu_groups/*/devices/*; do
    [ -e "$group" ] && echo "lab: group $(echo "$group" | cut -d/ -f5) ${group##*/}"
done
DEVICE_TREE=1 sh /capture.sh /tmp/capture.tar || echo "lab: the capture failed with $?"
echo "lab: capture begins"
gzip -c /tmp/capture.tar | base64
echo "lab: capture ends"
dmesg | grep -iE 'dmar|iommu|amd-vi|smmu' | sed 's/^/lab: says /'
poweroff -f
