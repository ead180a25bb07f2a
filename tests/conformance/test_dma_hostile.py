# SPDX-License-Identifier: Apache-2.0
"""Captured machines that somebody made to do harm: an error or a complaint, and nothing else.

Each run is bounded in time and memory, and what is printed has no control characters (DmaCase sees to both).
"""

import gzip
import os
import resource
import struct
import subprocess
import tarfile
import unittest
from pathlib import Path

from dma_machines import CONTROL, GROUPS, PCI, SECONDS, DmaCase, Link, archive, entries, with_driver
from service import is_instrumented, main, program, seeded_random

DMAR = "sys/firmware/acpi/tables/DMAR"
ESCAPES = "\x1b]0;owned\x07\x1b[31m\r\x08\x9b"
MIB = 1 << 20


def header(name, size=0, kind=b"0", target=b"", field=None):
    """A ustar header, made by hand: Python's module would not write a hostile one."""
    size_field = b"%011o\0" % size if field is None else field
    block = bytearray(struct.pack("100s8s8s8s12s12s8s1s100s8s247x", name, b"0000644\0", b"0000000\0", b"0000000\0",
                                  size_field, b"00000000000\0", b"        ", kind, target, b"ustar\00000"))
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def member(name, content=b""):
    return header(name, len(content)) + content + bytes(-len(content) % 512)


class HostileCase(DmaCase):
    def written(self, content, name="evil.tar"):
        path = Path(self.path(name))
        path.write_bytes(content)
        return str(path)

    def assert_survives(self, root):
        """All commands end by themselves; a refusal names the archive."""
        self.write("grants.toml", '[[vm]]\nname = "a"\nmemory = [{ name = "m", at = 0, size = "1M" }]\n'
                                  'device = [{ name = "0000:00:03.0" }]\n')
        for words in (("discover", "--details", "--bridges"), ("discover", "--json"), ("discover", "--svg", "-"),
                      ("check",), ("plan", "--config", "grants.toml"), ("capture", self.path("out.tar"))):
            done = self.run_dma(*words, "--root", root)
            if done.returncode == 1 and not done.stdout:
                self.assertTrue(done.stderr.startswith("guestmem: "), done.stderr)
        return self.run_dma("discover", "--root", root)


class Archives(HostileCase):
    def assert_refused(self, content, *said):
        told = self.refused("discover", "--root", self.written(content))
        self.assertIn("captured machine", told)
        for words in said:
            self.assertIn(words, told)

    def test_archives_that_are_cut_off(self):
        whole = Path(archive("vtd")).read_bytes()
        random = seeded_random("cut")
        with tarfile.open(archive("vtd")) as tar:
            members = [(one.offset, one.offset_data + (one.size if one.isfile() else 0)) for one in tar]
        for first, end in random.sample(members, 30):
            for size in {first + 1, first + 511, end - 1, random.randrange(first + 1, end)}:
                self.assert_refused(whole[:size], "evil.tar")
        for size in range(0, 4096, 256):
            self.run_dma("discover", "--root", self.written(whole[:size]))

    def test_archives_with_bits_turned(self):
        whole = Path(archive("vtd")).read_bytes()
        random = seeded_random("bits")
        for _ in range(12 if is_instrumented() else 60):
            broken = bytearray(whole)
            for _ in range(random.randrange(1, 30)):
                broken[random.randrange(len(broken))] ^= 1 << random.randrange(8)
            self.run_dma("discover", "--root", self.written(broken))

    def test_contents_with_bits_turned(self):
        """The archive is well, and what the files say is not."""
        random = seeded_random("contents")
        for name in ("vtd", "amdvi", "smmuv3-acpi", "smmuv3-tree", "virtio-iommu"):
            for _ in range(3 if is_instrumented() else 8):
                machine = entries(name)
                for path in random.sample(sorted(machine), 40):
                    content = bytearray(machine[path].encode() if isinstance(machine[path], Link) else machine[path])
                    for _ in range(random.randrange(1, 8)):
                        if content:
                            content[random.randrange(len(content))] = random.randrange(1, 256)
                    if isinstance(machine[path], Link):
                        machine[path] = Link(content.replace(b"\0", b"0").decode("utf-8", "surrogateescape"))
                    else:
                        machine[path] = bytes(content)
                self.assert_survives(self.packed(machine))

    def test_names_that_lead_out_of_the_tree(self):
        for name in (b"/etc/passwd", b"../x", b"a/../../x", b"sys/../../x"):
            self.assert_refused(member(name, b"x") + bytes(1024))

    def test_kinds_of_entries_that_no_capture_has(self):
        for kind in b"1346Sx":
            self.run_dma("discover", "--root", self.written(header(b"a", 0, bytes([kind]), b"b") + bytes(1024)))
        for kind in b"1346":
            self.assert_refused(header(b"a", 0, bytes([kind]), b"b") + bytes(1024))

    def test_one_name_twice_and_names_below_files(self):
        self.assert_refused(member(b"a", b"1") + member(b"a", b"2") + bytes(1024))
        self.assert_refused(member(b"a", b"1") + member(b"a/b", b"2") + bytes(1024))

    def test_sizes_that_nobody_has(self):
        for field in (b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"-0000000001\0", b"8\0", b"\0" * 12):
            self.run_dma("discover", "--root", self.written(header(b"proc/cmdline", field=field) + bytes(2048)))
        self.assert_refused(header(b"proc/cmdline", field=b"77777777777\0") + bytes(2048))
        self.assert_refused(header(b"proc/cmdline", field=b"\x80" + b"\xff" * 11) + bytes(2048))

    def test_a_file_of_a_terabyte_is_refused_unread(self):
        path = self.path("huge.tar")
        with open(path, "wb") as file:
            file.truncate(1 << 40)
        self.assertIn("bytes", self.refused("discover", "--root", path))

    def test_compressed_archives_name_what_unpacks_them(self):
        bomb = gzip.compress(bytes(64 * MIB))
        self.assert_refused(bomb, "gunzip")
        self.assert_refused(b"\xfd7zXZ\0" + bytes(600), "xz")

    def test_no_archive_at_all(self):
        random = seeded_random("noise")
        for size in (1, 512, 5000, 100000):
            self.assert_refused(random.randbytes(size))

    def test_100000_entries(self):
        """More groups than any machine has: an error that says so."""
        content = b"".join(member(b"%s/%d/type" % (GROUPS.encode(), i), b"DMA\n") for i in range(100000))
        self.assertIn("more than 65536", self.refused("discover", "--root", self.written(content + bytes(1024))))
        self.assertIn("more than 65536", self.refused("capture", "--root", self.path("evil.tar"), "out.tar"))


class Folders(HostileCase):
    def test_links_do_not_leave_the_tree(self):
        """Secrets beside the folder, reached by every kind of link, are in nothing that is printed or captured."""
        secret = "intel_iommu=HUNTER2"
        Path(self.path("secret")).write_text(secret, encoding="utf-8")
        for target in (self.path("secret"), "../../secret", "../../../../../../../.." + self.path("secret")):
            machine = {DMAR: entries("vtd")[DMAR], "proc/cmdline": Link(target)}
            for root in (self.unpacked(machine, "links " + str(len(target))), self.packed(machine)):
                done = self.assert_survives(root)
                self.assertNotIn("HUNTER2", done.stdout + done.stderr)
                self.assertNotIn("HUNTER2", self.dma("discover", "--root", root, "--json"))
                self.assertNotIn(b"HUNTER2", Path(self.path("out.tar")).read_bytes())

    def test_folders_that_are_links_do_not_leave_the_tree(self):
        outside = self.unpacked(entries("vtd"), "outside")
        os.mkdir(self.path("inside"))
        os.symlink(outside + "/sys", self.path("inside/sys"))
        os.symlink("../outside/proc", self.path("inside/proc"))
        found = self.discover(self.path("inside"))
        self.assertEqual((found["units"], found["devices"]), ([], []))

    def test_links_that_run_in_circles(self):
        for loops in ({"sys": Link("sys")}, {"sys": Link("proc"), "proc": Link("sys")},
                      {GROUPS: Link("sys/kernel/iommu_groups")}, {PCI: Link(f"{PCI}/..")},
                      {"proc/cmdline": Link("cmdline")}, {DMAR: Link("DMAR")},
                      {f"{PCI}/0000:00:03.0": Link("0000:00:03.0")},
                      {f"{PCI}/0000:00:03.0/config": Link("config")}):
            with self.subTest(loops=loops):
                self.assert_survives(self.packed(loops, "loop.tar"))
                self.assert_survives(self.unpacked(loops, f"loop {len(os.listdir(self.directory))}"))

    def test_pipes_sockets_and_folders_in_place_of_files(self):
        """A pipe that nobody writes must not be waited for."""
        machine = {name: content for name, content in entries("vtd").items()
                   if name not in ("proc/cmdline", DMAR, f"{PCI}/0000:00:03.0/config")}
        root = self.unpacked(machine)
        os.makedirs(os.path.dirname(f"{root}/{DMAR}"))
        os.mkfifo(f"{root}/proc/cmdline")
        os.mkfifo(f"{root}/{DMAR}")
        os.mkdir(f"{root}/{PCI}/0000:00:03.0/config")
        self.assert_survives(root)

    def test_a_table_of_a_terabyte(self):
        root = self.unpacked(entries("vtd"))
        for path in (DMAR, f"{PCI}/0000:00:03.0/config", "proc/cmdline"):
            os.truncate(f"{root}/{path}", 1 << 40)
        done = self.assert_survives(root)
        self.assertIn("DMAR", done.stdout + done.stderr)

    def test_a_deep_folder(self):
        machine = {"sys/" + "a/" * 1900 + "b": b"x"}
        self.assert_survives(self.packed(machine))


class Names(HostileCase):
    """What captured files are called, and what links in them say, reaches no terminal as it is."""

    def test_control_characters_everywhere(self):
        machine = with_driver(entries("vtd"), "0000:00:03.0", "vfio" + ESCAPES)
        machine.update({
            f"sys/class/iommu/dmar{ESCAPES}/intel-iommu/address": b"fed91000\n",
            f"sys/class/iommu/dmar{ESCAPES}/devices/0000:00:03.0": Link("x"),
            f"{PCI}/0000:00:{ESCAPES}/vendor": b"0x1234\n",
            f"{PCI}/0000:00:08.0/iommu": Link(f"virtual/iommu/{ESCAPES}"),
            f"{PCI}/0000:00:08.0/firmware_node/path": f"\\_SB_.{ESCAPES}\n".encode(),
            f"{GROUPS}/1/devices/{ESCAPES}": Link(f"devices/{ESCAPES}"),
            f"{GROUPS}/1/type": f"DMA{ESCAPES}\n".encode(),
            f"{GROUPS}/1/reserved_regions": f"0x0 0xfff {ESCAPES}\n".encode(),
            f"sys/bus/platform/devices/{ESCAPES}/iommu_group": Link("kernel/iommu_groups/1"),
            f"sys/bus/platform/devices/{ESCAPES}/firmware_node/path": f"\\_SB_{ESCAPES}\n".encode(),
            f"sys/bus/thunderbolt/devices/domain{ESCAPES}/security": f"none{ESCAPES}\n".encode(),
            f"sys/bus/thunderbolt/devices/domain{ESCAPES}/iommu_dma_protection": b"0\n",
            "proc/cmdline": f"intel_iommu={ESCAPES} pcie_acs_override={ESCAPES}\n".encode(),
            "proc/sys/kernel/osrelease": f"6.1{ESCAPES}\n".encode(),
        })
        done = self.assert_survives(self.packed(machine))
        self.assertEqual(done.returncode, 0)
        self.assertIn("driver vfio?", done.stdout)
        self.assert_survives(self.unpacked(machine))

    def test_errors_about_names_show_them_cleaned(self):
        evil = ESCAPES.encode("utf-8")
        self.refused("discover", "--root", self.written(member(b"a" + evil) * 2 + bytes(1024)))
        self.refused("discover", "--root", self.written(member(b"/" + evil) + bytes(1024)))
        os.mkdir(self.path("a" + ESCAPES))
        self.run_dma("discover", "--root", self.path("a" + ESCAPES))
        self.refused("plan", "--root", archive("none"), "--config", "no" + ESCAPES)
        self.refused("plan", "--root", archive("none"), "--config",
                     self.write("g.toml", f'[[vm]]\nname = "\\u001b[31m"\n"\\u001b" = 1 # {ESCAPES[0]}\n'))
        self.refused("capture", "--root", archive("none"), "/nowhere/" + ESCAPES)

    def test_names_in_grants_are_cleaned_in_plans(self):
        path = self.write("grants\x1b.toml", '[[vm]]\nname = "a\\u001b[31m"\n'
                          'memory = [{ name = "m\\u0007", at = 0xfee00000, size = "1M" }]\n'
                          'device = [{ name = "0000:00:03.0" }, { name = "\\u001b]0;x\\u0007" }]\n')
        text = self.dma("plan", "--root", archive("vtd"), "--config", path, code=1)
        self.assertIn("VM a?[31m: ", text)
        self.assertIn("there is no device '?]0;x?'", text)
        self.assertIn("memory 'm?' lies over", text)

    def test_pictures_stay_well_formed(self):
        root = self.packed(with_driver(entries("vtd"), "0000:00:03.0", "</text><script>&\"'\x1b"))
        text = self.dma("discover", "--root", root, "--svg", "-")
        self.assertNotIn("<script>", text)


class Bounds(HostileCase):
    LIMIT = 1 << 30

    @unittest.skipIf(program() and is_instrumented(), "sanitizers reserve more memory than any limit allows")
    def test_memory_is_bounded_whatever_tables_say(self):
        """Tables of 1 MiB that are all entries, under a limit of address space."""
        for name, table in (("vtd", DMAR), ("amdvi", "sys/firmware/acpi/tables/IVRS"),
                            ("smmuv3-acpi", "sys/firmware/acpi/tables/IORT"),
                            ("virtio-iommu", "sys/firmware/acpi/tables/VIOT")):
            machine = entries(name)
            table_bytes = bytearray(machine[table])
            body = bytes(table_bytes[48:])
            table_bytes += body * (MIB // len(body) - 1)
            table_bytes[4:8] = struct.pack("<I", len(table_bytes))
            table_bytes[9] = 0
            table_bytes[9] = -sum(table_bytes) & 0xff
            machine[table] = bytes(table_bytes)
            done = subprocess.run([program(), "dma", "discover", "--root", self.packed(machine)], capture_output=True,
                                  timeout=SECONDS, check=False, env={**os.environ, "LC_ALL": "C"},
                                  preexec_fn=self.limit_memory)
            self.assertIn(done.returncode, (0, 1), done.stderr[-500:])
            self.assertIsNone(CONTROL.search(done.stdout + done.stderr))
            self.assertLess(len(done.stdout), 4 * MIB)

    @classmethod
    def limit_memory(cls):
        resource.setrlimit(resource.RLIMIT_AS, (cls.LIMIT, cls.LIMIT))


if __name__ == "__main__":
    main()
