# SPDX-License-Identifier: Apache-2.0
"""Runs ctest and says at the end, before ctest's closing lines, what was skipped and why.

usage: run_ctest.py BUILD_FOLDER CTEST-COMMAND...

Every test, and every part of a test, that did not run is listed with its reason. A reason is, in this order: a
line "SKIPPED: why" of the test, the message of GTEST_SKIP, the reason that Python's unittest prints with
verbosity 2. A skipped test without any of them is listed as one that gives no reason. The exit status is
ctest's own.
"""

import re
import subprocess
import sys
from pathlib import Path

NO_REASON = 'gives no reason (it should print "SKIPPED: why")'

_TEST = re.compile(r"^\d+/\d+ Test: (.+)$")
_SAID = re.compile(r"^SKIPPED: (.+)$")
_GTEST = re.compile(r"^\S+:\d+: Skipped$")
_UNITTEST = re.compile(r"^(\w+) \(.*\.\.\. skipped (['\"])(.*)\2$")
_UNITTEST_COUNT = re.compile(r"^OK \(.*skipped=(\d+)")
_NOT_RUN = re.compile(r"^\s*\d+ - (.+) \((Skipped|Disabled)\)$")
_CLOSING = re.compile(r"^\d+% tests passed")
_LAST = "Total Test time"
_FAILED = "The following tests FAILED:"


def outputs(log):
    """Yields (test, lines of its output) for each test in ctest's log."""
    name, lines, is_output = None, [], False
    for line in log.splitlines():
        if found := _TEST.match(line):
            name, lines, is_output = found.group(1), [], False
        elif line == "Output:":
            is_output = True
        elif line == "<end of output>" and name:
            yield name, lines
            name, is_output = None, False
        elif is_output:
            lines.append(line)


def reasons(lines):
    """The reasons that one test's output gives."""
    found = []
    is_message_next = False
    count_unnamed = 0
    for line in lines:
        if said := _SAID.match(line):
            found.append(said.group(1))
        elif is_message_next and not line.startswith("["):
            found.append(line)
        elif said := _UNITTEST.match(line):
            found.append(f"{said.group(1)}: {said.group(3)}")
        elif said := _UNITTEST_COUNT.match(line):
            count_unnamed = int(said.group(1))
        is_message_next = bool(_GTEST.match(line))
    if count_unnamed and not found:
        found.append(f"{count_unnamed} part(s): {NO_REASON}")
    return list(dict.fromkeys(found))


def listing(log, closing):
    """The lines about all that did not run; none when everything ran."""
    missing = {found.group(1): found.group(2) for line in closing if (found := _NOT_RUN.match(line))}
    result = []
    for name, lines in outputs(log):
        found = reasons(lines)
        if name in missing and not found:
            found = ["is disabled" if missing[name] == "Disabled" else NO_REASON]
        result += [f"  {name}: {reason}" for reason in found]
    return result


def ending(closing):
    """ctest's closing lines in the order they are wanted: what failed, then the count and the time."""
    lines = [line.rstrip("\n") for line in closing]
    failed = lines[lines.index(_FAILED):] if _FAILED in lines else []
    failed = [line for line in failed if line]
    last = next((number for number, line in enumerate(lines) if line.startswith(_LAST)), len(lines) - 1)
    return [*failed, *([""] if failed else []), *lines[:last + 1]]


def run(command):
    """Passes ctest's output on, up to its closing lines; returns its status and those lines."""
    closing = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as ctest:
        for line in ctest.stdout:
            if closing or _CLOSING.match(line):
                closing.append(line)
            else:
                print(line, end="", flush=True)
    return ctest.returncode, closing


def main(arguments):
    folder, command = Path(arguments[0]), arguments[1:]
    try:
        status, closing = run(command)
    except KeyboardInterrupt:
        return 130
    if not closing:
        print("ctest has not come to its end", file=sys.stderr)
        return status or 1
    lines = listing((folder / "Testing/Temporary/LastTest.log").read_text(errors="replace"), closing)
    print("\nSkipped, and why:" if lines else "\nNothing was skipped.")
    print("\n".join([*lines, "", *ending(closing)]), flush=True)
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
