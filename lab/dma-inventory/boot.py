# SPDX-License-Identifier: Apache-2.0
"""Boots a machine of the bed and brings home what it has captured of itself."""

import base64
import gzip
import os
import re
import subprocess
import sys
from dataclasses import dataclass, field

import guest_image
from processes import Process

BOOT_TIMEOUT = 240  # 5 to 30 s; a busy machine takes longer
FETCH_TIMEOUT = 1800
KERNEL_PARAMETERS = "quiet panic=-1"
SUITES = {"kernel-later": "bookworm-backports"}
FIRMWARE = "qemu-arm/usr/share/qemu-efi-aarch64/QEMU_EFI.fd"
PROGRAM = {False: "qemu-system-x86_64", True: "qemu-arm/usr/bin/qemu-system-aarch64"}


class BedError(Exception):
    """The bed cannot be made; the text says what, where and why."""


@dataclass
class Captured:
    """What a machine has said of itself."""

    archive: bytes = b""
    groups: dict = field(default_factory=dict)  # name of a device: number of its group
    kernel: str = ""
    messages: list = field(default_factory=list)


class Bed:
    def __init__(self, source, lab, script):
        self.source = source
        self.lab = lab
        self.script = script  # the program's own capture script

    def tree(self, group):
        """A group of packages.txt, unpacked once."""
        architecture = "arm64" if group == "arm64" else "amd64"
        suite = ("--suite", SUITES[group]) if group in SUITES else ()
        place = self.lab / group
        done = subprocess.run([sys.executable, self.source / "lab/apt_view.py", "--packages",
                               self.source / "lab/dma-inventory/packages.txt", "--group", group, "--architecture",
                               architecture, "--view", self.lab / "apt" / group, "--into", place, *suite],
                              capture_output=True, text=True, check=False, timeout=FETCH_TIMEOUT)
        if done.returncode != 0:
            raise BedError(f"packages [{group}]: exit status {done.returncode}\n{done.stderr.strip()}")
        return place

    def initramfs(self, machine, tree):
        busybox = (tree / "usr/bin/busybox").read_bytes() if machine.is_arm else None
        archive = guest_image.make_archive(self.source / "lab/dma-inventory/init.sh", busybox)
        modules = next((tree / "usr/lib/modules").glob("*"))
        if not (modules / "modules.dep").exists():
            subprocess.run(["depmod", "-b", tree, modules.name], check=True, timeout=120)
        order = [guest_image.unpacked_module(path) for path in guest_image.load_order(modules, machine.modules)]
        for name, data in order:
            archive.add_file(f"modules/{name}", data, 0o644)
        archive.add_file("modules/order", "".join(f"{name}\n" for name, _ in order).encode(), 0o644)
        archive.add_file("capture.sh", self.script, 0o644)
        place = self.lab / f"{machine.name}.cpio"
        place.write_bytes(archive.finish())
        return place

    def command(self, machine):
        tree = self.tree(machine.kernel)
        program = str(self.lab / PROGRAM[True]) if machine.is_arm else PROGRAM[False]
        if machine.is_arm:
            self.tree("qemu-arm")
        images = sorted(tree.glob("boot/vmlinuz-*"))
        if len(images) != 1:
            raise BedError(f"kernel: {tree}: {len(images)} files boot/vmlinuz-*, expected 1")
        firmware = ("-bios", self.lab / FIRMWARE) if machine.has_firmware else ()
        return [program, "-name", f"guestmem-lab-{machine.name}", "-accel", "tcg", "-m", "768", "-nodefaults",
                "-no-user-config", "-display", "none", "-no-reboot", *machine.options, *firmware,
                "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", "-kernel", images[0],
                "-initrd", self.initramfs(machine, tree),
                "-append", f"console={machine.console} {KERNEL_PARAMETERS} {machine.parameters}"]

    def run(self, machine):
        guest = Process(machine.name, self.command(machine))
        log = self.lab / f"{machine.name}.log"
        try:
            status = guest.wait(BOOT_TIMEOUT)
        except AssertionError as error:
            guest.kill()
            log.write_text(guest.output() + "\n")
            raise BedError(f"{machine.name}: {str(error).splitlines()[0]}; see {os.path.relpath(log)}") from None
        log.write_text(guest.output() + "\n")
        if status != 0:
            raise BedError(f"{machine.name}: QEMU ended with status {status}; see {os.path.relpath(log)}")
        return captured_of(machine, guest.output())


def captured_of(machine, text):
    text = text.replace("\r", "")
    between = re.search(r"^lab: capture begins\n(.*?)\nlab: capture ends$", text, re.MULTILINE | re.DOTALL)
    if not between:
        raise BedError(f"{machine.name}: no capture is on its console\n" + "\n".join(text.splitlines()[-15:]))
    lines = [line for line in between.group(1).splitlines() if re.fullmatch(r"[A-Za-z0-9+/=]+", line)]
    groups = {name: int(number) for number, name in re.findall(r"^lab: group (\d+) (\S+)$", text, re.MULTILINE)}
    kernel = re.search(r"^lab: kernel (\S+)", text, re.MULTILINE)
    return Captured(gzip.decompress(base64.b64decode("".join(lines))), groups, kernel.group(1) if kernel else "",
                    re.findall(r"^lab: says (.*)$", text, re.MULTILINE))
