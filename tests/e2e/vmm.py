# SPDX-License-Identifier: Apache-2.0
"""Machines of `guestmem run` with the payloads in them, and the share service with any configuration."""

import fcntl
import json
import signal
from pathlib import Path

from processes import Process

# What `guestmem run` ends with.
ENDED = 0
GUEST_RESET = 3
PASSED = 48
FAILED = 49
NOT_STARTED = 64
WRONG_CONFIGURATION = 65

SHMEM_LOC = 0x10000000
_KVM_GET_API_VERSION = 0xAE00


def reason_to_skip(build):
    """Why no machine can run here; None when one can."""
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            if fcntl.ioctl(kvm, _KVM_GET_API_VERSION) != 12:
                return "/dev/kvm speaks another version than 12"
    except OSError as problem:
        return f"/dev/kvm cannot be used: {problem.strerror}"
    if not (Path(build) / "guests" / "hello.elf").exists():
        return "the payloads are not built here"
    return None


def text_of(name, payload, options="", vdevs="", ram="64M"):
    """A .qvmconf file: a PC's chips, a payload with its options, and `vdevs`."""
    return (f"system {name}\nram {ram}\ncpu\nload {payload}\n"
            f'cmdline "ioapic=0xf8000000 {options}"\n'
            "vdev ioapic\n    loc 0xf8000000\n    intr apic\n    name myioapic\n"
            "vdev ser8250\n    intr myioapic:4\nvdev timer8254\n    intr myioapic:0\nvdev mc146818\n"
            f"vdev pckeyboard\n    intr myioapic:1\n{vdevs}")


def shmem_mmio(intr=10):
    return f"vdev shmem\n    loc {SHMEM_LOC:#x}\n    intr myioapic:{intr}\n"


def ivshmem(share, vectors=2):
    return f"vdev ivshmem\n    share {share}\n    size 1M\n    vectors {vectors}\n"


def command(program, file, control=None):
    return [program, "run", file, *(["--share-control", control] if control else [])]


class Vm(Process):
    """A machine with a file of its own; `control` is the share service that it asks, else it serves itself."""

    def __init__(self, program, folder, name, text, control=None):
        self.file = folder / f"{name}.qvmconf"
        self.file.write_text(text)
        super().__init__(name, command(program, self.file, control))


def share_text(folder, name="mbox", size="1M", slots=16, vectors=2):
    """A share that everybody may come into by folder/NAME.sock."""
    return (f"[[share]]\nname = {json.dumps(name)}\nsize = {json.dumps(size)}\nslots = {slots}\n"
            f"vectors = {vectors}\nsocket = {json.dumps(str(folder / (name + '.sock')))}\n")


class Service(Process):
    """`guestmem share serve` with this text behind its control socket's."""

    def __init__(self, program, folder, text="", words=()):
        self.control = folder / "control.sock"
        file = folder / "share.toml"
        file.write_text(f"[control]\npath = {json.dumps(str(self.control))}\n{text}")
        super().__init__("service", [program, "share", "serve", "--config", file, *words],
                         death_signal=signal.SIGTERM)
        self.wait_for("info: ready: ", 30)
