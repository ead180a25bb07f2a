# SPDX-License-Identifier: Apache-2.0
"""What KVM itself takes for a memory slot: KVM_SET_USER_MEMORY_REGION of a machine with one processor, bare."""

import ctypes
import fcntl
import mmap
import os
import statistics
import struct
import time

CREATE_VM = 0xAE01
CREATE_VCPU = 0xAE41
SET_USER_MEMORY_REGION = 0x4020AE46
RAM_BYTES = 64 << 20
REGION_BYTES = 1 << 20
REGION_AT = 0x10000000


class BareSlots:
    """A machine with RAM in slot 0; slot 1 comes and goes."""

    def __init__(self):
        self.system = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
        self.machine = fcntl.ioctl(self.system, CREATE_VM, 0)
        self.ram = mmap.mmap(-1, RAM_BYTES)
        self.region = mmap.mmap(-1, REGION_BYTES)
        self.set(0, 0, RAM_BYTES, self.ram)
        self.vcpu = fcntl.ioctl(self.machine, CREATE_VCPU, 0)

    def set(self, slot, at, size, memory):
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        fcntl.ioctl(self.machine, SET_USER_MEMORY_REGION, struct.pack("=IIQQQ", slot, 0, at, size, address))

    def median_us(self, rounds=50):
        taken = []
        for _ in range(rounds):
            begin = time.perf_counter_ns()
            self.set(1, REGION_AT, REGION_BYTES, self.region)
            taken.append(time.perf_counter_ns() - begin)
            self.set(1, REGION_AT, 0, self.region)
        return statistics.median(taken) / 1000

    def close(self):
        for fd in (self.vcpu, self.machine, self.system):
            os.close(fd)
