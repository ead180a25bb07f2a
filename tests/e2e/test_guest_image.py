# SPDX-License-Identifier: Apache-2.0
"""The guest image: made once, shared by concurrent runs, and never half made."""

import os
import shutil
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

import e2e_case
import guest_image


def archive_names(data):
    """The names in a "newc" archive."""
    names, place = [], 0
    while True:
        size, name_size = (int(data[place + at:place + at + 8], 16) for at in (54, 94))
        name = data[place + 110:place + 110 + name_size - 1].decode()
        if name == "TRAILER!!!":
            return names
        names.append(name)
        place += 110 + name_size
        place += -place % 4 + size
        place += -place % 4


class GuestImageTest(unittest.TestCase):
    def setUp(self):
        build = Path(e2e_case.environment("GUESTMEM_BUILD"))
        self.source = Path(e2e_case.environment("GUESTMEM_SOURCE"))
        shared = guest_image.prepare(build, self.source, print)
        folder = tempfile.TemporaryDirectory(prefix="guestmem-e2e-")
        self.addCleanup(folder.cleanup)
        self.build = Path(folder.name) / "preset"
        self.cache = Path(folder.name) / "guest-cache"
        (self.build / "guests").mkdir(parents=True)
        shutil.copy(build / "guests" / "agent", self.build / "guests" / "agent")
        shutil.copytree(shared.kernel.parent, self.cache / shared.kernel.parent.name)

    def prepare(self):
        return guest_image.prepare(self.build, self.source)

    def test_the_archive_has_init_busybox_the_agent_and_the_modules_in_order(self):
        image = self.prepare()
        names = archive_names(image.initramfs.read_bytes())
        order = (image.kernel.parent / "order").read_text().split()
        self.assertLessEqual({"init", "bin/busybox", "bin/agent", "dev/console", "modules/order"}, set(names))
        self.assertLessEqual({f"modules/{module}" for module in order}, set(names))
        self.assertLess(order.index("vfio.ko"), order.index("vfio-pci.ko"))

    def test_the_same_content_is_made_once_and_another_agent_makes_another_image(self):
        first = self.prepare().initramfs
        made = first.stat().st_ino
        self.assertEqual(self.prepare().initramfs.stat().st_ino, made)
        with open(self.build / "guests" / "agent", "ab") as agent:
            agent.write(b"x")
        self.assertNotEqual(self.prepare().initramfs, first)

    def test_runs_at_the_same_time_get_the_same_image(self):
        command = [sys.executable, guest_image.__file__, self.build, self.source]
        runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(4)]
        last_lines = {run.communicate(timeout=60)[0].splitlines()[-1] for run in runs}
        self.assertEqual([run.returncode for run in runs], [0] * 4)
        self.assertEqual(len(last_lines), 1)
        self.assertTrue(Path(last_lines.pop()).is_file())

    def test_what_a_killed_run_left_is_removed_and_old_images_are_few(self):
        (self.cache / "fetch-left").mkdir()
        (self.cache / "making-left").write_bytes(b"half")
        for number in range(guest_image.KEPT_INITRAMFS + 1):
            old = self.cache / f"initramfs-{number:016x}.cpio"
            old.write_bytes(b"old")
            os.utime(old, (number, number))
        image = self.prepare()
        self.assertEqual(list(self.cache.glob("fetch-*")) + list(self.cache.glob("making-*")), [])
        kept = set(self.cache.glob("initramfs-*"))
        self.assertEqual(len(kept), guest_image.KEPT_INITRAMFS)
        self.assertIn(image.initramfs, kept)

    def test_a_missing_agent_is_a_clear_error(self):
        (self.build / "guests" / "agent").unlink()
        with self.assertRaisesRegex(guest_image.ImageError, "guest agent: .*guests/agent: not there"):
            self.prepare()

    def test_an_unknown_package_is_a_clear_error(self):
        with self.assertRaisesRegex(guest_image.ImageError, "kernel package guestmem-no-such-package: "):
            guest_image._field("guestmem-no-such-package", "Version", r"(\S+)")


if __name__ == "__main__":
    e2e_case.main()
