# SPDX-License-Identifier: Apache-2.0
"""`guestmem dma capture` and its shell program; what an ordinary user sees; a large machine."""

import os
import re
import resource
import subprocess
import tarfile
import time
from pathlib import Path

import dma_machines
from dma_machines import NAMES, SECONDS, DmaCase, archive, entries, slowness
from service import main, need_root


class Capture(DmaCase):
    def test_archive_and_folder_are_the_same_machine(self):
        for name in NAMES:
            with self.subTest(machine=name):
                folder = self.unpacked(entries(name), name)
                self.assertEqual(self.discover(folder), self.discover(archive(name)))

    def test_a_captured_machine_captured_again_is_the_same(self):
        for name in NAMES:
            with self.subTest(machine=name):
                said = self.dma("capture", "--root", archive(name), self.path("again.tar"))
                self.assertRegex(said, r"again\.tar: \d+ files and links, \d+ bytes\n$")
                self.assertEqual(Path(self.path("again.tar")).read_bytes(), Path(archive(name)).read_bytes())

    def test_what_is_taken_is_in_the_list(self):
        listed = [line.split()[0] for line in self.dma("capture", "--list").splitlines()]
        patterns = [re.compile(re.escape(path).replace(r"\*", "[^/]*")) for path in listed]
        for name in NAMES:
            for path in entries(name):
                self.assertTrue(any(pattern.fullmatch(path) for pattern in patterns), f"{name}: {path}")

    def test_only_words_about_devices_are_taken_of_the_command_line(self):
        machine = entries("vtd")
        machine["proc/cmdline"] = b"root=/dev/sda2 intel_iommu=on secret=hunter2 iommu=pt -- pci=init\n"
        machine["proc/meminfo"] += b"MemFree: 1234 kB\n"
        machine["etc/machine-id"] = b"0123456789abcdef\n"
        machine["sys/class/net/eth0/address"] = b"52:54:00:12:34:56\n"
        self.dma("capture", "--root", self.packed(machine), self.path("out.tar"))
        with tarfile.open(self.path("out.tar")) as tar:
            self.assertEqual(tar.extractfile("proc/cmdline").read(), b"intel_iommu=on iommu=pt\n")
            self.assertEqual(tar.extractfile("proc/meminfo").read(), entries("vtd")["proc/meminfo"])
            self.assertEqual(set(tar.getnames()), set(entries("vtd")))
        found = self.discover(self.packed(machine))
        self.assertEqual(found["platform"]["command_line"], "intel_iommu=on iommu=pt")

    def test_serial_numbers_are_blanked(self):
        machine = entries("vtd")
        device = f"{dma_machines.PCI}/0000:01:00.0/config"
        config = bytearray(machine[device])
        # A Device Serial Number capability as the only extended one.
        config[256:268] = bytes((3, 0, 1, 0)) + bytes.fromhex("0123456789abcdef")
        machine[device] = bytes(config)
        self.dma("capture", "--root", self.packed(machine), self.path("out.tar"))
        with tarfile.open(self.path("out.tar")) as tar:
            taken = tar.extractfile(device).read()
        self.assertEqual(taken[:260], config[:260])
        self.assertEqual(taken[260:268], bytes(8))

    def test_the_script_takes_the_same(self):
        """A shell on the machine and the program on the same files: equal entries, equal discovery."""
        script = self.write("capture.sh", self.dma("capture", "--script"))
        for name in ("amdvi", "smmuv3-tree", "virtio-iommu", "vtd"):
            with self.subTest(machine=name):
                folder = self.unpacked(entries(name), f"of {name}")
                out = self.path(f"{name}.tar")
                done = subprocess.run(["sh", script, out, folder], capture_output=True, text=True, check=False,
                                      timeout=SECONDS, env={**os.environ, "DEVICE_TREE": "1"})
                self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
                with tarfile.open(out) as tar:
                    taken = {member.name.removeprefix("./") for member in tar if not member.isdir()}
                self.assertEqual(taken, set(entries(name)))
                self.assertEqual(self.discover(out), self.discover(archive(name)))

    def test_the_script_leaves_a_device_tree_out_unless_it_is_told(self):
        machine = {**entries("none"), "sys/firmware/fdt": b"\xd0\x0d\xfe\xed"}
        script = self.write("capture.sh", self.dma("capture", "--script"))
        done = subprocess.run(["sh", script, self.path("out.tar"), self.unpacked(machine)], capture_output=True,
                              text=True, check=False, timeout=SECONDS)
        self.assertEqual(done.returncode, 0)
        self.assertIn("DEVICE_TREE=1", done.stderr)
        with tarfile.open(self.path("out.tar")) as tar:
            self.assertNotIn("./sys/firmware/fdt", tar.getnames())

    def test_where_nothing_can_be_written_it_says_so(self):
        self.assertIn("/nowhere/out.tar", self.refused("capture", "--root", archive("none"), "/nowhere/out.tar"))
        self.assertIn("guestmem dma capture machine.tar", self.refused("capture", code=2))
        for words in (("--script", "--list"), ("--list", "out.tar"), ("--script", "--root", "/")):
            self.refused("capture", *words, code=2)


class OrdinaryUser(DmaCase):
    UID = 65534

    @need_root
    def test_an_ordinary_user_is_told_what_only_root_sees(self):
        self.open_to_everybody()
        folder = self.unpacked(entries("vtd"))
        os.chmod(f"{folder}/sys/firmware/acpi/tables/DMAR", 0o400)
        for config in Path(folder, dma_machines.PCI).glob("*/config"):
            # What a kernel gives to somebody without privileges.
            os.truncate(config, 64)
        options = {"uid": self.UID, "binary": self.public_program()}
        text = self.dma("discover", "--root", folder, **options)
        self.assertRegex(text, r"note: kernel .*64 bytes is not readable.*as root")
        self.assertRegex(text, r"note: kernel .*not readable: DMAR.*as root")
        # The kernel's own word is left: nobody is called unprotected for what was not seen.
        self.assertIn("vtd@fed90000  VT-d, kernel's dmar0, from: kernel", text)
        self.assertIn("(notes)", self.dma("check", "--root", folder, **options))
        os.mkdir(self.path("open"), 0o777)
        os.chmod(self.path("open"), 0o777)
        done = self.run_dma("capture", "--root", folder, self.path("open/out.tar"), **options)
        self.assertEqual(done.returncode, 0)
        self.assertIn("not readable: sys/firmware/acpi/tables/DMAR", done.stderr)
        self.assertIn("root may read them", done.stderr)

    @need_root
    def test_the_live_machine_can_be_looked_at_by_anybody(self):
        self.open_to_everybody()
        options = {"uid": self.UID, "binary": self.public_program()}
        self.assertEqual(self.run_dma("discover", **options).returncode, 0)
        self.assertIn(self.run_dma("check", **options).returncode, (0, 1))


class Scale(DmaCase):
    # Ten times what the machine with 4,096 functions may take; resolve_bench and sysfs_bench measure.
    CPU_SECONDS = 2.0

    def test_4096_functions_are_discovered_in_time(self):
        path = self.packed(dma_machines.many_functions(4096))
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.monotonic()
        text = self.dma("discover", "--root", path)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        self.assertEqual(len(re.findall(r"1234:11e8 ethernet controller, group \d+", text, re.IGNORECASE)), 4096)
        self.assertNotIn("note:", text)
        # Of the processors and not of the clock: others may use them meanwhile.
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"4096 functions: {spent:.2f} s of processor time, {time.monotonic() - began:.2f} s", flush=True)
        self.assertLess(spent, self.CPU_SECONDS * slowness())


if __name__ == "__main__":
    main()
