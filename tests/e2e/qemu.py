# SPDX-License-Identifier: Apache-2.0
"""A guest in QEMU: no screen, no default devices, its console line by line, and QMP when asked for."""

import contextlib
import fcntl
import functools
import json
import os
import re
import socket
import time
from pathlib import Path

from processes import Process

PROGRAM = "qemu-system-x86_64"
_KVM_GET_API_VERSION = 0xAE00

# no_timer_check: under load the timer test of the kernel fails with an emulated interrupt-remapping IOMMU,
# and the kernel panics. panic=-1 with -no-reboot turns a panic into the end of QEMU.
KERNEL_PARAMETERS = "console=ttyS0 quiet panic=-1 intel_iommu=on no_timer_check"


@functools.cache
def accelerator():
    """KVM only where the processor has hardware virtualization: a /dev/kvm without it is unusably slow."""
    flags = re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    if not flags or not {"vmx", "svm"} & set(flags[0].split()):
        return "tcg"
    try:
        with open("/dev/kvm", "rb+", buffering=0) as kvm:
            return "kvm" if fcntl.ioctl(kvm, _KVM_GET_API_VERSION) == 12 else "tcg"
    except OSError:
        return "tcg"


def escape(value):
    """A value inside of a QEMU option, where a comma separates."""
    return str(value).replace(",", ",,")


class Guest(Process):
    def __init__(self, name, image, agent, share_socket, vectors=2, qmp=None, hotplug=False, on_line=None):
        """Boots; `agent` is what the agent is called with. With `hotplug` the ivshmem device "shm" sits
        behind a port from which it can be unplugged. `qmp` is the path for the QMP socket."""
        self.qmp_path = qmp
        kind = accelerator()
        command = [
            PROGRAM, "-name", f"guestmem-{name}", "-accel", kind, "-cpu", "host" if kind == "kvm" else "max",
            "-machine", "q35,kernel-irqchip=split", "-m", "256",
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-device", "intel-iommu,intremap=on"]
        if hotplug:
            command += ["-device", "pcie-root-port,id=shm-port,chassis=1,slot=1"]
        command += [
            "-chardev", f"socket,id=shm-socket,path={escape(share_socket)}",
            "-device", f"ivshmem-doorbell,id=shm,chardev=shm-socket,vectors={vectors}"
                       + (",bus=shm-port" if hotplug else "")]
        if qmp:
            command += ["-chardev", f"socket,id=qmp,path={escape(qmp)},server=on,wait=off",
                        "-mon", "chardev=qmp,mode=control"]
        command += ["-kernel", image.kernel, "-initrd", image.initramfs,
                    "-append", f'{KERNEL_PARAMETERS} agent="{agent}"']
        super().__init__(name, command, on_line=on_line)

    def connect_qmp(self, timeout=20):
        try:
            return Qmp(self.qmp_path, timeout)
        except (QmpError, OSError) as error:
            raise AssertionError(f"{self.name}: no QMP connection: {error}\n{self.tail()}") from error


class QmpError(Exception):
    pass


class Qmp(contextlib.AbstractContextManager):
    """A QMP connection: commands, and the events that came in between."""

    def __init__(self, path, timeout):
        deadline = time.monotonic() + timeout
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        while True:
            try:
                self._socket.connect(os.fspath(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    self._socket.close()
                    raise
                time.sleep(0.02)
        self._pending = b""
        self._events = []
        try:
            self._message(deadline)  # the greeting
            self.execute("qmp_capabilities", timeout=max(0.1, deadline - time.monotonic()))
        except QmpError:
            self._socket.close()
            raise

    def __exit__(self, *_):
        self._socket.close()

    def execute(self, command, arguments=None, timeout=20):
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
        except OSError as error:
            raise QmpError(f"{command}: QEMU is not there: {error}") from None
        deadline = time.monotonic() + timeout
        while True:
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)
            elif "error" in message:
                raise QmpError(f"{command}: {message['error'].get('desc')}")
            elif "return" in message:
                return message["return"]

    def wait_event(self, name, timeout):
        """The first event of this name that has not been asked for before."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self._events):
                if event["event"] == name:
                    return self._events.pop(index)
            message = self._message(deadline)
            if "event" in message:
                self._events.append(message)

    def _message(self, deadline):
        while b"\n" not in self._pending:
            left = deadline - time.monotonic()
            if left <= 0:
                raise QmpError("QEMU does not answer in time")
            self._socket.settimeout(left)
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                raise QmpError("QEMU does not answer in time") from None
            except ConnectionResetError:
                data = b""
            if not data:
                raise QmpError("QEMU has closed the connection")
            self._pending += data
        line, self._pending = self._pending.split(b"\n", 1)
        return json.loads(line)
