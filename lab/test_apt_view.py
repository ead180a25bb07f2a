# SPDX-License-Identifier: Apache-2.0
"""Tests of what apt_view.py reads: lists of packages and the machine's apt sources. Nothing is downloaded."""

import tempfile
import unittest
from pathlib import Path

import apt_view

ONE_LINE = """
# deb http://a.example/debian bookworm main
deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib # the archive
deb-src http://a.example/debian bookworm main
deb [ arch=amd64 ] http://b.example/tool bookworm stable
deb http://a.example/debian-security bookworm-security main
deb http://a.example/flat ./
"""

DEB822 = """
Types: deb deb-src
# a comment inside
URIs: http://a.example/debian
Suites: bookworm bookworm-updates
Components: main
Architectures: amd64
Signed-By: /k.gpg

Enabled: no
Types: deb
URIs: http://c.example/debian
Suites: bookworm
Components: main

Types: deb
URIs: http://d.example/node
Suites: nodistro
Components: main
Signed-By:
 -----BEGIN PGP PUBLIC KEY BLOCK-----
 .
 abc
"""


class Sources(unittest.TestCase):
    def folder(self, **files):
        folder = tempfile.TemporaryDirectory(prefix="guestmem-lab-")
        self.addCleanup(folder.cleanup)
        root = Path(folder.name)
        (root / "sources.list.d").mkdir()
        for name, text in files.items():
            (root / "sources.list.d" / name.replace("_", ".")).write_text(text)
        return root

    def lines(self, root, codename="bookworm"):
        return [source.line("arm64") for source in apt_view.debian_sources(root, codename)]

    def test_one_line_entries_lose_their_architecture_and_keep_their_key(self):
        self.assertEqual(self.lines(self.folder(a_list=ONE_LINE)), [
            "deb [arch=arm64 signed-by=/k.gpg] http://a.example/debian bookworm main contrib",
            "deb [arch=arm64] http://a.example/debian-security bookworm-security main"])

    def test_deb822_entries_are_taken_apart(self):
        self.assertEqual(self.lines(self.folder(a_sources=DEB822)), [
            "deb [arch=arm64 signed-by=/k.gpg] http://a.example/debian bookworm main",
            "deb [arch=arm64 signed-by=/k.gpg] http://a.example/debian bookworm-updates main"])

    def test_an_entry_in_both_forms_counts_once(self):
        one = "deb [signed-by=/k.gpg] http://a.example/debian bookworm main\n"
        self.assertEqual(len(self.lines(self.folder(a_list=one, b_sources=DEB822))), 2)

    def test_a_machine_without_the_archive_is_an_error_with_the_suite_in_it(self):
        with self.assertRaisesRegex(apt_view.ViewError, "trixie"):
            self.lines(self.folder(a_list=ONE_LINE), "trixie")


class OtherSuites(unittest.TestCase):
    OWN = [apt_view.Source(("signed-by=/k.gpg",), "http://a.example/debian", "bookworm", ("main",)),
           apt_view.Source((), "http://a.example/debian-security", "bookworm-security/", ("main",))]

    def lines(self, suite, own=None):
        return [source.line("amd64") for source in apt_view.sources_of_suite(own or self.OWN, "bookworm", suite)]

    def test_a_release_is_in_the_places_of_the_own_one(self):
        self.assertEqual(self.lines("trixie"), [
            "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian trixie main",
            "deb [arch=amd64] http://a.example/debian-security trixie-security/ main"])

    def test_backports_stand_beside_their_release_in_the_archive_alone(self):
        self.assertEqual(self.lines("trixie-backports"), [
            *self.lines("trixie"),
            "deb [arch=amd64 signed-by=/k.gpg] http://a.example/debian trixie-backports main"])

    def test_backports_without_an_entry_for_the_archive_are_an_error(self):
        with self.assertRaisesRegex(apt_view.ViewError, "trixie-backports"):
            self.lines("trixie-backports", self.OWN[1:])

    def test_backports_are_preferred_in_the_view(self):
        with tempfile.TemporaryDirectory(prefix="guestmem-lab-") as folder:
            apt_view.View(Path(folder), "amd64", self.OWN, "trixie-backports")
            text = (Path(folder) / "apt.conf").read_text()
            self.assertIn('APT::Default-Release "trixie-backports";', text)
            apt_view.View(Path(folder), "amd64", self.OWN)
            self.assertNotIn("Default-Release", (Path(folder) / "apt.conf").read_text())


class Packages(unittest.TestCase):
    TEXT = "# all\n[host]\na  # first\n!b\n\n[target]\nc\n"

    def test_a_group_has_its_packages_and_those_left_out(self):
        self.assertEqual(apt_view.packages_of(self.TEXT, "host"), (["a"], ["b"]))
        self.assertEqual(apt_view.packages_of(self.TEXT, "target"), (["c"], []))

    def test_an_unknown_group_is_an_error_with_its_name(self):
        with self.assertRaisesRegex(apt_view.ViewError, "guest"):
            apt_view.packages_of(self.TEXT, "guest")


class Tree(unittest.TestCase):
    def test_absolute_links_stay_inside_the_tree(self):
        with tempfile.TemporaryDirectory(prefix="guestmem-lab-") as folder:
            tree = Path(folder)
            (tree / "usr/lib/x").mkdir(parents=True)
            (tree / "usr/lib/libz.so.1").touch()
            (tree / "usr/lib/x/libz.so").symlink_to("/usr/lib/libz.so.1")
            apt_view.make_links_relative(tree)
            self.assertEqual((tree / "usr/lib/x/libz.so").resolve(), (tree / "usr/lib/libz.so.1").resolve())


if __name__ == "__main__":
    unittest.main()
