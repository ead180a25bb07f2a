# SPDX-License-Identifier: Apache-2.0
"""The same backend options for the installed QEMU and for `guestmem backend explain`: outcome, properties, mapping.

The cases and the differences are in backend_cases.py; `./dev lab backends` compares a later QEMU.
"""

import os
import shutil
import sys
import tempfile
import unittest

from backend_cases import CASES, DIFFERENCES, Qemu, explain, make_files, mismatches, reason_for

PROGRAM = os.environ["GUESTMEM"]
QEMU = shutil.which("qemu-system-x86_64")
SKIPPED = 77


class BackendOptions(unittest.TestCase):
    def test_qemu_and_we_say_the_same(self):
        for case in CASES:
            with self.subTest(case=case), tempfile.TemporaryDirectory() as folder:
                make_files(folder)
                self.compare(case, folder)

    def compare(self, case, folder):
        text = case.replace("{folder}", folder)
        before = sorted(os.listdir(folder))
        taken, said = explain(PROGRAM, text)
        self.assertEqual(sorted(os.listdir(folder)), before, "explaining makes no file")
        qemu = Qemu([QEMU], text)
        try:
            self.assertEqual(mismatches(taken, said, qemu, reason_for(case, DIFFERENCES)), [])
        finally:
            qemu.close()

    def test_each_difference_is_of_a_case(self):
        for end in DIFFERENCES:
            self.assertTrue(any(case.endswith(end) for case in CASES), end)


if __name__ == "__main__":
    if not QEMU:
        print("SKIPPED: there is no qemu-system-x86_64")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
