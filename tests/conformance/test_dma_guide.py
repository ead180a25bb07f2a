# SPDX-License-Identifier: Apache-2.0
"""docs/guide/dma.md: its commands, run on captured machines; its tables, beside what the program has."""

import json
import re
import shutil
import unittest
from pathlib import Path

from dma_machines import NAMES, DmaCase, archive
from service import main
from test_guides import GUIDE, SOURCE, Page, blocks_of

PAGE = (GUIDE / "dma.md").read_text(encoding="utf-8")
ROOM = SOURCE / "guestmem" / "dma"


def rows_of(head):
    """The first cells of the table that begins with this row, as words, with the other cells."""
    lines = PAGE[PAGE.index(f"| {head} |"):].splitlines()[2:]
    cells = []
    for line in lines:
        if not line.startswith("|"):
            break
        cells.append([cell.strip() for cell in line.strip("|").split(" | ")])
    return {cell[0].strip().strip("`"): cell[1:] for cell in cells}


def words_in(text):
    return set(re.findall(r"`([a-z_]+)`", re.sub(r"\([^)]*\)", "", text)))


def source(name):
    return (ROOM / name).read_text(encoding="utf-8")


class DmaPage(Page):
    """A page whose files are grants and whose machines are captured ones."""

    def __init__(self, test):
        super().__init__(test, "dma.md")
        for name in NAMES:
            shutil.copy(archive(name), f"{self.folder}/{name}.tar")

    def check_config(self, block, path):
        Path(path).write_text(self.here(block.text), encoding="utf-8")


class Guide(unittest.TestCase):
    def test_the_page_shows_what_the_program_prints(self):
        page = DmaPage(self)
        page.walk()
        ran = "".join(block.text for block in page.blocks if "run" in block.words)
        for command in ("discover", "capture", "check", "plan"):
            self.assertIn(f"guestmem dma {command}", ran)
        self.assertFalse([block.line for block in blocks_of(PAGE) if not block.words and block.kind != "text"],
                         "each block runs, is written, or is shown")


class Tables(DmaCase):
    def test_every_finding_with_its_weight(self):
        found = re.findall(r'add\(\s*Weight::(risk|note), "([a-z-]+)"', source("check.cpp"))
        self.assertGreater(len(found), 10)
        self.assertEqual({code: weight for weight, code in found},
                         {code: cells[0] for code, cells in rows_of("finding").items()})

    def test_every_kind_of_problem(self):
        kinds = re.findall(r'case ProblemKind::\w+: return "([a-z-]+)";', source("plan_problems.cpp"))
        self.assertGreater(len(kinds), 15)
        self.assertEqual(kinds, list(rows_of("problem")))

    def test_every_reason(self):
        reasons = re.findall(r'case JoinReason::\w+: return "([a-z-]+)";', source("inventory.cpp"))
        self.assertEqual(reasons, list(rows_of("reason")))

    def test_every_key_of_the_grants(self):
        known = [set(re.findall(r'"(\w+)"', keys))
                 for keys in re.findall(r"Word, \d+> known\{([^}]*)\}", source("grants.cpp"))]
        self.assertEqual(known, [{"vm"}, *({*rows_of(f"key of {table}")} for table in
                                           ("`[[vm]]`", "`memory`", "`device`", "`reach`"))])

    def test_every_key_is_known_to_the_program(self):
        """A grants file with all keys of the page."""
        path = self.write("grants.toml", """
[[vm]]
name = "a"
memory = [{ name = "m", at = 0, size = "1M", page = "4K", share = "s", writable = true }]
device = [{ name = "0000:00:03.0", reach = [{ memory = "m", offset = 0, size = 4096, permissions = "r" }] },
          { name = "0000:01:00.0", reach = "all" }]
memory_lock = "unlimited"
""")
        self.dma("plan", "--root", archive("vtd"), "--config", path)

    def test_every_field_of_discovery(self):
        table = {name: words_in(cells[0]) for name, cells in rows_of("list").items()}
        seen = {name: set() for name in table}
        for name in NAMES:
            found = self.discover(archive(name))
            self.assertEqual({f"`{key}`" for key in found} - {f"`{key}`" for key in table}, {"`platform`"})
            for key in ("units", "devices", "containments", "kernel_groups", "complaints"):
                for one in found[key]:
                    seen[key] |= set(one)
            seen["platform` (an object)"] |= set(found["platform"])
            for device in found["devices"]:
                for one in device["reserved"]:
                    seen["reserved` of a device"] |= set(one)
            for containment in found["containments"]:
                for one in containment["joins"]:
                    seen["joins` of a containment"] |= set(one)
        for name, fields in seen.items():
            self.assertLessEqual(fields, table[name], name)
            # What no captured machine has stands in the program's text.
            for field in table[name] - fields:
                self.assertIn(f'"{field}"', source("report/inventory_json.cpp"), name)

    def test_every_field_of_findings_and_plans(self):
        part = PAGE[PAGE.index("### check\n"):]
        found = json.loads(self.dma("check", "--root", archive("vtd"), "--json"))
        named = words_in(part[:part.index("### plan")])
        self.assertEqual(named, {*found, *(key for one in found["findings"] for key in one)})
        plan = self.plan(archive("vtd"), '[[vm]]\nname = "a"\nmemory = [{ name = "m", at = 0, size = "1M" }]\n'
                                         'device = [{ name = "0000:00:03.0" }]\nmemory_lock = "1G"\n')
        keys = {*plan, *plan["vms"][0], *plan["domains"][0], *plan["domains"][0]["mappings"][0], *plan["problems"][0]}
        self.assertEqual(words_in(part[part.index("### plan"):part.index("## Known holes")]), keys)


if __name__ == "__main__":
    main()
