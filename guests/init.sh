#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# The first process of a guest: mounts, loads /modules in their order, runs the agent with the words of the
# kernel parameter agent="...", and powers off.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev 2>/dev/null

while read -r module; do
  insmod "/modules/$module" || echo "init: error: cannot load $module"
done < /modules/order

# shellcheck disable=SC2086  # the words are meant to be split
agent ${agent:-}
echo "agent ended with status $?"
poweroff -f
