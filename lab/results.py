# SPDX-License-Identifier: Apache-2.0
"""One line per check, and the account at the end."""

import os
import sys

PASS, FAIL, NOT_RUN = "PASS", "FAIL", "NOT RUN"


class Results:
    """`known` has the checks that fail, and why that is known: "part: name" -> reason. One that passes is a failure of
    that table, and so is one that there is not."""

    def __init__(self, bed, known=None):
        self._bed = bed
        self._known = known or {}
        self._counts = {PASS: 0, FAIL: 0, NOT_RUN: 0, "KNOWN": 0}
        self._seen = set()
        self._failed = []
        self._not_run = []

    def add(self, word, name, detail=""):
        """A check that ended with one of the three words."""
        self._seen.add(name)
        reason = self._known.get(name)
        if reason and word == FAIL:
            word, detail = "KNOWN", f"{reason} ({detail})" if detail else reason
        elif reason and word == PASS:
            word, detail = FAIL, f"it passes: take it out of KNOWN ({reason})"
        self._counts[word] += 1
        if word == FAIL:
            self._failed.append(name)
        if word == NOT_RUN:
            self._not_run.append(f"{name}: {detail}")
        is_bold = os.isatty(1) and word == FAIL
        print(f"\033[1m{word}\033[0m" if is_bold else word, f"{name}: {detail}" if detail else name, flush=True)

    def expect(self, is_good, name, detail=""):
        self.add(PASS if is_good else FAIL, name, "" if is_good else detail)
        return is_good

    def not_run(self, name, why):
        self.add(NOT_RUN, name, why)

    def finish(self, parts, seconds):
        """The account of these parts; the exit status."""
        for name, reason in self._known.items():
            if name.split(":")[0] in parts and name not in self._seen:
                self.add(FAIL, f"{name} (of KNOWN)", f"there is no such check: take it out ({reason})")
        counts = self._counts
        print(f"\nlab {self._bed}: {counts[PASS]} checks passed, {counts[FAIL]} failed, "
              f"{counts['KNOWN']} known to fail, "
              f"{counts[NOT_RUN]} not run, in {seconds:.0f} s")
        for text in self._not_run:
            print(f"  not run: {text}")
        for text in self._failed:
            print(f"  failed: {text}")
        sys.stdout.flush()
        return 1 if counts[FAIL] or not counts[PASS] else 0
