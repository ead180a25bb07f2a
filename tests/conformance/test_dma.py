# SPDX-License-Identifier: Apache-2.0
"""`guestmem dma discover` and `check` on machines that were captured in the lab.

What is printed of them is in golden/dma; GUESTMEM_GOLDEN=write writes these files anew, to be read before they are
committed.
"""

import json
import os
import re
import unittest
from pathlib import Path
from xml.etree import ElementTree

import dma_machines
from dma_machines import HERE, NAMES, DmaCase, archive, entries
from service import main

GOLDEN = HERE / "golden" / "dma"
IS_WRITING = os.environ.get("GUESTMEM_GOLDEN") == "write"
PROTECTED = {"smmuv3-acpi", "smmuv3-tree", "vtd", "amdvi"}
SVG = "{http://www.w3.org/2000/svg}"


class Golden(DmaCase):
    maxDiff = None

    def assert_golden(self, name, text):
        path = GOLDEN / name
        if IS_WRITING:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self.assertEqual(text, path.read_text(encoding="utf-8"), f"{path} (GUESTMEM_GOLDEN=write writes it anew)")

    def test_trees(self):
        for name in NAMES:
            with self.subTest(machine=name):
                self.assert_golden(f"{name}.tree.txt", self.dma("discover", "--root", archive(name)))

    def test_trees_with_all_details(self):
        for name in NAMES:
            with self.subTest(machine=name):
                self.assert_golden(f"{name}.details.txt",
                                   self.dma("discover", "--root", archive(name), "--details", "--bridges"))

    def test_json(self):
        for name in NAMES:
            with self.subTest(machine=name):
                text = self.dma("discover", "--root", archive(name), "--json")
                json.loads(text)
                self.assert_golden(f"{name}.json", text)

    def test_pictures(self):
        for name in NAMES:
            with self.subTest(machine=name):
                text = self.dma("discover", "--root", archive(name), "--svg", "-")
                self.assert_golden(f"{name}.svg", text)

    def test_findings_and_exit_codes(self):
        for name in NAMES:
            with self.subTest(machine=name):
                code = 0 if name in PROTECTED else 1
                self.assert_golden(f"{name}.check.txt", self.dma("check", "--root", archive(name), code=code))

    def test_no_golden_file_is_left_over(self):
        kinds = ("tree.txt", "details.txt", "json", "svg", "check.txt")
        wanted = {f"{name}.{kind}" for name in NAMES for kind in kinds}
        self.assertEqual(wanted, {path.name for path in GOLDEN.iterdir()})
        self.assertEqual(set(NAMES), {path.stem for path in dma_machines.FOLDER.glob("*.tar")})


class Views(DmaCase):
    """The tree, the JSON and the picture show the same machine."""

    def test_each_device_is_in_the_tree_the_picture_and_one_containment(self):
        for name in NAMES:
            with self.subTest(machine=name):
                found = self.discover(archive(name))
                tree = self.dma("discover", "--root", archive(name), "--bridges")
                members = [device for containment in found["containments"] for device in containment["devices"]]
                self.assertCountEqual(members, [device["name"] for device in found["devices"]])
                for device in members:
                    self.assertIn(f"- {device.removeprefix('0000:')} ", tree)

    def test_the_kernels_groups_are_never_parted(self):
        for name in NAMES:
            with self.subTest(machine=name):
                found = self.discover(archive(name))
                containment_of = {device["name"]: device["containment"] for device in found["devices"]}
                for group in found["kernel_groups"]:
                    self.assertEqual(len({containment_of[device] for device in group["devices"]}), 1, group)

    def test_each_containment_of_several_has_reasons_that_connect_it(self):
        for name in NAMES:
            with self.subTest(machine=name):
                for containment in self.discover(archive(name))["containments"]:
                    reached = {containment["devices"][0]}
                    for _ in containment["joins"]:
                        for join in containment["joins"]:
                            if reached & {join["one"], join["other"]}:
                                reached |= {join["one"], join["other"]}
                    self.assertEqual(reached, set(containment["devices"]))
                    self.assertTrue(all(join["text"] for join in containment["joins"]))

    def test_pictures_need_nothing_and_have_a_tooltip_for_each_reason(self):
        for name in NAMES:
            with self.subTest(machine=name):
                text = self.dma("discover", "--root", archive(name), "--svg", "-")
                picture = ElementTree.fromstring(text)
                self.assertEqual(picture.tag, SVG + "svg")
                self.assertNotRegex(text.replace("http://www.w3.org/2000/svg", ""), r"http|href|<script|<image")
                titles = "\n".join(title.text or "" for title in picture.iter(SVG + "title"))
                for containment in self.discover(archive(name))["containments"]:
                    if any(f"{device.removeprefix('0000:')} " in "".join(picture.itertext())
                           for device in containment["devices"]):
                        for join in containment["joins"]:
                            self.assertIn(join["text"], titles)

    def test_a_picture_goes_into_a_file_beside_json(self):
        path = self.path("machine.svg")
        text = self.dma("discover", "--root", archive("vtd"), "--svg", path, "--json")
        self.assertEqual(json.loads(text), self.discover(archive("vtd")))
        self.assertEqual(Path(path).read_text(encoding="utf-8"),
                         self.dma("discover", "--root", archive("vtd"), "--svg", "-"))

    def test_a_terminal_with_unicode_gets_lines(self):
        drawn = self.dma("discover", "--root", archive("vtd"), environment={"LC_ALL": "C.UTF-8"})
        plain = self.dma("discover", "--root", archive("vtd"))
        self.assertIn("├─ bus 0000:00", drawn)
        for line, ascii_line in (("├─ ", "+- "), ("└─ ", "+- "), ("│  ", "|  ")):
            drawn = drawn.replace(line, ascii_line)
        self.assertEqual(drawn, plain)

    def test_check_says_the_same_in_json(self):
        for name in NAMES:
            with self.subTest(machine=name):
                code = 0 if name in PROTECTED else 1
                text = self.dma("check", "--root", archive(name), code=code)
                found = json.loads(self.dma("check", "--root", archive(name), "--json", code=code))
                self.assertEqual(found["is_protected"], code == 0)
                self.assertEqual([one["code"] for one in found["findings"]],
                                 re.findall(r"^(?:risk|note): .* \(([a-z-]+)\)$", text, re.MULTILINE))
                self.assertEqual(code == 0, all(one["weight"] == "note" for one in found["findings"]))

    def test_a_good_machine_is_one_line(self):
        """VT-d as the kernel makes it strict, and a firmware that says that DMA is blocked from the start."""
        machine = entries("vtd")
        for name in [name for name in machine if name.endswith("/type")]:
            machine[name] = b"DMA\n"
        table = bytearray(machine["sys/firmware/acpi/tables/DMAR"])
        table[37] |= 4
        table[9] = (table[9] - 4) & 0xff
        machine["sys/firmware/acpi/tables/DMAR"] = bytes(table)
        self.assertEqual(self.dma("check", "--root", self.packed(machine)),
                         "protected: 15 devices behind 1 IOMMU\n")


class Help(DmaCase):
    def test_each_command_has_an_example_and_its_exit_codes(self):
        for command in ("discover", "check", "plan", "capture"):
            text = self.dma(command, "--help")
            self.assertRegex(text, rf"Examples?:\s+guestmem dma {command}")
            self.assertIn("Exit codes: 0", text)
            self.assertIn(f"\n  {command} ", self.dma("--help"))

    def test_wrong_words_are_told_with_2(self):
        for words in (("discover", "--nothing"), ("plan",), ("discover", "--root"), ("plan", "--config")):
            self.assertIn("--help", self.refused(*words, code=2))
        self.assertIn("discover, check, plan, capture", self.refused("no", code=2))


if __name__ == "__main__":
    main()
