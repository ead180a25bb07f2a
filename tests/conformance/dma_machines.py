# SPDX-License-Identifier: Apache-2.0
"""Captured machines for the tests of `guestmem dma`: read, changed, unpacked, made up.

A machine here is a dictionary: path -> bytes of a file, or Link(target). `pack` makes an archive of it, `unpack` a
folder. The archives in machines/ are those that `./dev lab dma-inventory --keep` makes.
"""

import io
import json
import os
import re
import struct
import subprocess
import tarfile
from pathlib import Path

from service import ConformanceCase, is_instrumented, program

HERE = Path(__file__).resolve().parent
FOLDER = HERE / "machines"
NAMES = ("amdvi", "none", "smmuv3-acpi", "smmuv3-tree", "virtio-iommu", "vtd", "vtd-off")
# A bound against hanging, not a measure.
SECONDS = 120
CONTROL = re.compile(rb"[\x00-\x09\x0b-\x1f\x7f-\xff]")
PCI = "sys/bus/pci/devices"
GROUPS = "sys/kernel/iommu_groups"
TYPE1 = "sys/module/vfio_iommu_type1/parameters"


class Link(str):
    """The target of a symbolic link."""


def archive(name):
    return str(FOLDER / f"{name}.tar")


def entries(name):
    """The files and links of a captured machine."""
    found = {}
    with tarfile.open(archive(name)) as tar:
        for member in tar:
            if member.issym():
                found[member.name] = Link(member.linkname)
            elif member.isfile():
                found[member.name] = tar.extractfile(member).read()
    return found


def pack(machine, path):
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, content in sorted(machine.items()):
            member = tarfile.TarInfo(name)
            if isinstance(content, Link):
                member.type = tarfile.SYMTYPE
                member.linkname = str(content)
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    return str(path)


def unpack(machine, folder):
    for name, content in machine.items():
        path = Path(folder) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Link):
            path.symlink_to(str(content))
        else:
            path.write_bytes(content)
    return str(folder)


def with_driver(machine, address, driver):
    """The machine with a driver bound to a PCI function."""
    return {**machine, f"{PCI}/{address}/driver": Link(f"bus/pci/drivers/{driver}")}


def many_functions(count):
    """A VT-d machine with so many functions, each a host bridge's only child: no function has another's group."""
    machine = {name: content for name, content in entries("vtd").items() if not name.startswith((PCI, GROUPS))}
    for name in [name for name in machine if name.startswith("sys/class/iommu/dmar0/devices/")]:
        del machine[name]
    # One hardware unit for all of segment 0 (INCLUDE_PCI_ALL), without scopes of its own.
    unit = struct.pack("<HHBBHQ", 0, 16, 1, 0, 0, 0xfed90000)
    table = bytearray(struct.pack("<4sIBB6s8sI4sIBB10x", b"DMAR", 48 + len(unit), 1, 0, b"MADE  ", b"UPTABLE ", 1,
                                  b"TEST", 1, 38, 1) + unit)
    table[9] = -sum(table) & 0xff
    machine["sys/firmware/acpi/tables/DMAR"] = bytes(table)
    # Not express, one function per device: nothing but its group says whom it is with.
    config = struct.pack("<HHHHBBBBBBBB", 0x1234, 0x11e8, 0, 0, 0, 0, 0, 0x02, 0, 0, 0, 0).ljust(4096, b"\0")
    for i in range(count):
        address = f"{i >> 13:04x}:{i >> 5 & 0xff:02x}:{i & 31:02x}.0"
        device = f"{PCI}/{address}"
        machine[f"{device}/config"] = config
        machine[f"{device}/vendor"] = b"0x1234\n"
        machine[f"{device}/device"] = b"0x11e8\n"
        machine[f"{device}/class"] = b"0x020000\n"
        machine[f"{device}/resource"] = b"0x0000000000000000 0x0000000000000000 0x0000000000000000\n" * 13
        machine[f"{device}/driver"] = Link("bus/pci/drivers/e1000e")
        machine[f"{device}/iommu_group"] = Link(f"kernel/iommu_groups/{i}")
        machine[f"{device}/iommu"] = Link("virtual/iommu/dmar0")
        machine[f"sys/class/iommu/dmar0/devices/{address}"] = Link(f"pci0000:00/{address}")
        machine[f"{GROUPS}/{i}/devices/{address}"] = Link(f"devices/pci0000:00/{address}")
        machine[f"{GROUPS}/{i}/type"] = b"DMA\n"
        machine[f"{GROUPS}/{i}/reserved_regions"] = b"0x00000000fee00000 0x00000000feefffff msi\n"
    return machine


class DmaCase(ConformanceCase):
    """Runs `guestmem dma` and holds it to what is always so."""

    def run_dma(self, *words, uid=None, binary=None, environment=None):
        """It ends by itself, and never sends what a terminal would obey."""
        extra = {} if uid is None else {"user": uid, "group": uid, "extra_groups": []}
        done = subprocess.run([binary or program(), "dma", *map(str, words)], stdin=subprocess.DEVNULL,
                              capture_output=True, timeout=SECONDS, check=False, cwd=self.directory,
                              env={**os.environ, "LC_ALL": "C", **(environment or {})}, **extra)
        said = f"guestmem dma {words}:\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
        self.assertIn(done.returncode, (0, 1, 2), said)
        if not (environment or {}).get("LC_ALL"):
            self.assertIsNone(CONTROL.search(done.stdout + done.stderr), said)
        done.stdout = done.stdout.decode()
        done.stderr = done.stderr.decode()
        return done

    def dma(self, *words, code=0, **options):
        """What it prints; it has to end with this code, and to complain only when that is not 0."""
        done = self.run_dma(*words, **options)
        self.assertEqual(done.returncode, code, f"guestmem dma {words}:\n{done.stdout[-4000:]}\n{done.stderr}")
        if code == 0:
            self.assertEqual(done.stderr, "", words)
        return done.stdout

    def discover(self, root, *words):
        return json.loads(self.dma("discover", "--root", root, "--json", *words))

    def refused(self, *words, code=1):
        """What it says on standard error when it refuses; nothing is on standard output."""
        done = self.run_dma(*words)
        self.assertEqual((done.returncode, done.stdout), (code, ""), f"guestmem dma {words}:\n{done.stderr}")
        self.assertTrue(done.stderr.startswith("guestmem: "), done.stderr)
        return done.stderr

    def write(self, name, text):
        path = Path(self.path(name))
        path.write_text(text, encoding="utf-8")
        return str(path)

    def plan(self, root, grants, *words):
        """The plan as JSON; its exit code says the same as it does."""
        path = self.write("grants.toml", grants)
        done = self.run_dma("plan", "--root", root, "--config", path, "--json", *words)
        self.assertEqual(done.stderr, "")
        plan = json.loads(done.stdout)
        self.assertEqual(done.returncode, 0 if plan["would_work"] else 1)
        self.assertEqual(plan["would_work"], not any(one["is_fatal"] for one in plan["problems"]))
        return plan

    def packed(self, machine, name="machine.tar"):
        return pack(machine, self.path(name))

    def unpacked(self, machine, name="machine"):
        return unpack(machine, self.path(name))


def slowness():
    """How much slower a program with sanitizers may be."""
    return 20 if is_instrumented() else 1
