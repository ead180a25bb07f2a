# SPDX-License-Identifier: Apache-2.0
"""Tests of run_ctest.py: what was skipped is listed, and ctest's closing lines come last."""

import contextlib
import io
import sys
import tempfile
import unittest
from pathlib import Path

import run_ctest

LOG = """
1/6 Testing: one
1/6 Test: one
Output:
---
SKIPPED: no /dev/kvm
<end of output>
2/6 Test: two
Output:
---
/a/b.cpp:3: Skipped
not as root
[  SKIPPED ] A.B (0 ms)
<end of output>
SKIPPED: this is no output
3/6 Test: three
Output:
---
test_a (__main__.T.test_a) ... skipped 'no huge pages'
OK (skipped=1)
<end of output>
4/6 Test: four
Output:
---
<end of output>
5/6 Test: five
Output:
---
fine
<end of output>
6/6 Test: six
Output:
---
OK (skipped=2)
<end of output>
"""

CLOSING = """80% tests passed, 1 tests failed out of 5

Label Time Summary:
vm    =   1.00 sec*proc (1 test)

Total Test time (real) =   1.00 sec

The following tests did not run:
\t  1 - one (Skipped)
\t  4 - four (Skipped)

The following tests FAILED:
\t  5 - five (Failed)
"""


class Listing(unittest.TestCase):
    def test_every_skip_is_listed_with_its_reason(self):
        self.assertEqual(run_ctest.listing(LOG, CLOSING.splitlines()), [
            "  one: no /dev/kvm", "  two: not as root", "  three: test_a: no huge pages",
            f"  four: {run_ctest.NO_REASON}", f"  six: 2 part(s): {run_ctest.NO_REASON}"])

    def test_a_disabled_test_is_listed(self):
        self.assertIn("  four: is disabled", run_ctest.listing(LOG, ["\t  4 - four (Disabled)"]))

    def test_a_run_in_which_all_ran_has_no_list(self):
        self.assertEqual(run_ctest.listing("1/1 Test: a\nOutput:\n---\nfine\n<end of output>\n", []), [])


class Run(unittest.TestCase):
    def run_fake(self, closing, status):
        """The status and the output of a run of a ctest that prints what is given."""
        with tempfile.TemporaryDirectory(prefix="guestmem-house-") as folder:
            log = Path(folder) / "Testing/Temporary/LastTest.log"
            log.parent.mkdir(parents=True)
            log.write_text(LOG)
            said, complaint = io.StringIO(), io.StringIO()
            fake = f"print('1/1 Test #1: one'); print({closing!r}, end=''); raise SystemExit({status})"
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(complaint):
                result = run_ctest.main([folder, sys.executable, "-c", fake])
            return result, said.getvalue().splitlines()

    def test_the_closing_lines_come_last_and_the_status_is_kept(self):
        status, lines = self.run_fake(CLOSING, 8)
        self.assertEqual(status, 8)
        self.assertEqual(lines[0], "1/1 Test #1: one")
        self.assertEqual(lines[-1], "Total Test time (real) =   1.00 sec")
        self.assertEqual(lines.count("80% tests passed, 1 tests failed out of 5"), 1)
        self.assertLess(lines.index("Skipped, and why:"), lines.index("The following tests FAILED:"))
        self.assertLess(lines.index("\t  5 - five (Failed)"), lines.index("80% tests passed, 1 tests failed out of 5"))

    def test_a_good_run_says_nothing_of_failures(self):
        closing = ["100% tests passed, 0 tests failed out of 5", "", "Total Test time (real) = 1 sec"]
        status, lines = self.run_fake("\n".join([*closing, ""]), 0)
        self.assertEqual(status, 0)
        self.assertEqual(lines[-3:], closing)
        self.assertNotIn("The following tests FAILED:", lines)

    def test_a_run_without_an_end_is_a_failure(self):
        self.assertEqual(self.run_fake("", 0)[0], 1)
        self.assertEqual(self.run_fake("", 3)[0], 3)


if __name__ == "__main__":
    unittest.main()
