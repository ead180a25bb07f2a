# SPDX-License-Identifier: Apache-2.0
"""The user's own words about captured machines: what they replace, what they keep, what is shown of it."""

import re
import unittest

from dma_machines import NAMES, DmaCase, archive
from service import main

TABLES = {"vtd": ("vtd", "DMAR"), "amdvi": ("amdvi", "IVRS"), "virtio-iommu": ("virtio-iommu", "VIOT"),
          "smmuv3-acpi": ("armsmmuv3", "IORT"), "smmuv3-tree": ("armsmmuv3", "device tree")}


class WordsCase(DmaCase):
    def words(self, root, *words):
        """The inventory as the words have it: units and devices by name."""
        found = self.discover(archive(root), *words)
        units = {unit["name"]: unit for unit in found["units"]}
        devices = {device["name"]: device for device in found["devices"]}
        return units, devices, found

    def board(self, text):
        """The words of a file, which is called board.smmu in what is shown."""
        self.write("board.smmu", text)
        return "@board.smmu"


class Override(WordsCase):
    def test_a_unit_and_a_device_are_the_users_and_say_what_they_override(self):
        board = self.board("smmu vtd\nunit gfx 0xfed90000\ndevice pci:0:3.0 use gfx\n")
        units, devices, _ = self.words("vtd", board)
        self.assertEqual(list(units), ["gfx"])
        self.assertEqual(units["gfx"]["from"], ["board.smmu:2, overrides DMAR", "kernel /sys/class/iommu/dmar0"])
        self.assertEqual(devices["0000:00:03.0"]["from"], ["board.smmu:3, overrides DMAR"])
        self.assertEqual(devices["0000:00:03.0"]["unit"], "gfx")
        text = self.dma("discover", "--root", archive("vtd"), "--details", board)
        self.assertIn("gfx  VT-d, kernel's dmar0, from: board.smmu:2, overrides DMAR", text)
        self.assertIn("from: board.smmu:3, overrides DMAR", text)

    def test_what_the_words_do_not_speak_of_stays_the_firmwares(self):
        _, before, _ = self.words("vtd")
        _, devices, found = self.words("vtd", self.board("smmu vtd\nunit gfx 0xfed90000\ndevice pci:0:3.0 use gfx\n"))
        for name, device in devices.items():
            if name != "0000:00:03.0":
                self.assertEqual(device["from"], before[name]["from"], name)
        self.assertEqual(found["complaints"], [])
        self.assertEqual(found["containments"], self.words("vtd")[2]["containments"])

    def test_merge_keeps_both(self):
        board = self.board("smmu vtd\nunit gfx 0xfed90000\ndevice pci:0:3.0 use gfx\nmerge\n")
        units, devices, _ = self.words("vtd", board)
        self.assertEqual(units["gfx"]["from"],
                         ["DMAR offset 0x30", "board.smmu:2", "kernel /sys/class/iommu/dmar0"])
        self.assertRegex(" and ".join(devices["0000:00:03.0"]["from"]), r"^DMAR offset 0x50 and board\.smmu:3$")

    def test_the_narrowest_scope_decides(self):
        words = "smmu vtd\nunit gfx 0xfed90000\ndevice pci:0:3.0 use gfx\ndevice pci:0:8.0 use gfx\n"
        _, devices, _ = self.words("vtd", self.board(words + "merge\noverride pci:0:8.0\n"))
        self.assertEqual(len(devices["0000:00:03.0"]["from"]), 2)
        self.assertEqual(devices["0000:00:08.0"]["from"], ["board.smmu:4, overrides DMAR"])

    def test_reserved_ranges_are_the_users(self):
        _, devices, _ = self.words("vtd", self.board("reserved pci:0:3.0 0x10000000,1M\n"))
        direct = [one for one in devices["0000:00:03.0"]["reserved"] if one["kind"] == "direct"]
        self.assertEqual(direct, [{"first": "0x10000000", "last": "0x100fffff", "kind": "direct", "can_read": True,
                                   "can_write": True, "from": "board.smmu:1"}])

    def test_words_can_stand_on_the_command_line_too(self):
        units, _, _ = self.words("vtd", "smmu", "vtd", "unit", "gfx", "0xfed90000")
        self.assertEqual(units["gfx"]["from"][0], "command line, overrides DMAR")

    def test_an_identity_that_two_devices_have_puts_them_together(self):
        board = self.board("smmu armsmmuv3\ndevice pci:0:3.0 use smmuv3@9050000 0x18\n"
                           "device pci:0:9.0 use smmuv3@9050000 0x18\n")
        _, devices, found = self.words("smmuv3-acpi", board)
        self.assertEqual(devices["0000:00:03.0"]["containment"], devices["0000:00:09.0"]["containment"])
        joins = found["containments"][devices["0000:00:03.0"]["containment"]]["joins"]
        self.assertEqual([join["reason"] for join in joins], ["shared-identity"])


class Tables(WordsCase):
    def test_a_table_that_is_ignored_says_nothing(self):
        for name, (kind, table) in TABLES.items():
            with self.subTest(machine=name):
                self.assertIn(f'"{table} ' if table != "device tree" else '"device tree /',
                              self.dma("discover", "--root", archive(name), "--json"))
                text = self.dma("discover", "--root", archive(name), "--json", "smmu", kind, "ignore")
                self.assertNotIn(f'"{table} ', text)

    def test_a_table_that_is_there_can_be_required(self):
        for name, (kind, _) in TABLES.items():
            with self.subTest(machine=name):
                self.assertEqual(self.discover(archive(name), "smmu", kind, "require"), self.discover(archive(name)))

    def test_a_table_that_is_required_and_not_there_is_an_error(self):
        for kind, tables in (("vtd", "DMAR"), ("amdvi", "IVRS"), ("armsmmuv3", "IORT"), ("virtio-iommu", "VIOT")):
            said = self.refused("discover", "--root", archive("none"), "smmu", kind, "require")
            self.assertIn(f"smmu {kind} require", said)
            self.assertIn(tables, said)

    def test_a_machine_can_be_typed_in(self):
        """Without any table: the user's words are all that firmware would have said."""
        board = self.board("smmu vtd ignore\nunit gfx 0xfed90000\ndevice pci:0:3.0 use gfx\n")
        _, devices, _ = self.words("vtd-off", board)
        self.assertEqual(devices["0000:00:03.0"]["protection"], "unit-not-used")
        self.assertEqual(devices["0000:00:03.0"]["from"], ["board.smmu:3"])
        self.assertEqual(devices["0000:00:08.0"]["protection"], "none")

    def test_a_unit_that_nobody_declared_is_an_error(self):
        said = self.refused("discover", "--root", archive("vtd"), self.board("device pci:0:3.0 use nobody\n"))
        self.assertIn("nobody", said)
        self.assertIn("board.smmu", said)


class Typing(WordsCase):
    def test_mistakes_are_shown_with_a_caret(self):
        said = self.refused("discover", "--root", archive("vtd"), self.board("smmu vtd\nunit gfx zed\n"))
        lines = said.splitlines()
        self.assertRegex(lines[0], r"^guestmem: board\.smmu:2:10: error: .*'zed' is no number$")
        self.assertEqual(lines[1], "   2 | unit gfx zed")
        self.assertEqual(lines[2], "     |          ^")

    def test_a_word_that_is_nearly_right_is_proposed(self):
        said = self.refused("discover", "--root", archive("vtd"), "smmu", "vtf")
        self.assertIn("'vtf'", said)
        self.assertIn("did you mean 'vtd'?", said)

    def test_all_mistakes_are_told_at_once(self):
        said = self.refused("check", "--root", archive("vtd"),
                            self.board("smmu vtf\nallow a 0x0\nreserved pci:0:77.0 0x0,1M\nsafety required\n"))
        self.assertEqual([int(line) for line in re.findall(r"board\.smmu:(\d+):\d+: error", said)], [1, 2, 3, 4])

    def test_a_file_that_is_not_there_or_includes_itself_is_an_error(self):
        self.assertIn("none.smmu", self.refused("discover", "--root", archive("vtd"), "@none.smmu"))
        self.assertIn("board.smmu", self.refused("discover", "--root", archive("vtd"), self.board("@board.smmu\n")))

    def test_hostile_bytes_do_not_reach_the_terminal(self):
        with open(self.path("evil.smmu"), "wb") as file:
            file.write(b"smmu vtd\nunit \x1b[31m\xff\x00 0x\x07\n")
        self.refused("discover", "--root", archive("vtd"), "@evil.smmu")
        self.refused("discover", "--root", archive("vtd"), "@\x1b[31mevil")
        self.refused("discover", "--root", "\x1b[31mevil")
        self.refused("discover", "--root", archive("vtd"), "unit", "\x1b[31m")


class EveryCommand(WordsCase):
    def test_words_hold_for_check_and_plan_too(self):
        """A machine without tables, and words that put its devices behind a unit."""
        grants = '[[vm]]\nname = "a"\nmemory = [{ name = "ram", at = 0, size = "1M" }]\n' \
                 'device = [{ name = "0000:00:03.0" }]\n'
        words = ("reserved", "pci:0:3.0", "0x10000000,1M")
        kinds = [one["kind"] for one in self.plan(archive("vtd"), grants, *words)["problems"]]
        self.assertIn("firmware-memory", kinds)
        self.assertIn("firmware-memory", self.dma("check", "--root", archive("vtd"), *words))
        for name in NAMES:
            self.run_dma("check", "--root", archive(name), *words)


if __name__ == "__main__":
    main()
