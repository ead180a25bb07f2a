# SPDX-License-Identifier: Apache-2.0
"""Counts the instructions of the fast path under callgrind and compares them with bounds.

usage: test_instructions.py [--print]

A clock says something else every time; the number of instructions does not. Each work of instruction_count runs
with two numbers of passes: what the second run has more belongs to the accesses. --print shows what is counted and
checks nothing: for a new table. The program is $GUESTMEM_BUILD/bin/instruction_count.
"""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

PROGRAM = os.path.join(os.environ.get("GUESTMEM_BUILD", "build/dev"), "bin", "instruction_count")
PASSES = (500, 1500)
ACCESSES_PER_PASS = 64
SKIPPED = 77

# Instructions per access, at most: what was counted, and a tenth more. The loop around each access is in it: about 5.
BOUNDS = {
    "g++": {
        "read_near": 14,
        "read_far_linear": 30,
        "read_far_floating": 45,
        "read_straddling": 156,
        "write_near": 20,
        "write_tracked": 40,
        "load_acquire": 15,
        "store_release": 21,
        "snapshot": 7,
        "snapshot_pin": 24,
        "build_map": 1102,
    },
    "clang": {
        "read_near": 12,
        "read_far_linear": 27,
        "read_far_floating": 46,
        "read_straddling": 163,
        "write_near": 18,
        "write_tracked": 38,
        "load_acquire": 14,
        "store_release": 19,
        "snapshot": 7,
        "snapshot_pin": 25,
        "build_map": 1141,
    },
}


def count(work, passes):
    """Instructions of a whole run."""
    command = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", PROGRAM, work, str(passes)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = re.search(r"Collected *: *(\d+)", done.stderr)
    if done.returncode != 0 or not found:
        raise RuntimeError(f"{' '.join(command)}: status {done.returncode}\n{done.stdout}{done.stderr}")
    return int(found.group(1))


def per_access(work):
    few, many = (count(work, passes) for passes in PASSES)
    return (many - few) / ((PASSES[1] - PASSES[0]) * ACCESSES_PER_PASS)


def problems_of(counted, bounds):
    """What is wrong with {work: instructions}, one line each."""
    problems = [f"{work}: {found:.1f} instructions, the bound is {bounds[work]:g}"
                for work, found in counted.items() if work in bounds and found > bounds[work]]
    problems += [f"{work}: has no bound" for work in counted if work not in bounds]
    problems += [f"{work}: has a bound of {bound:g}, and is no work of the program"
                 for work, bound in bounds.items() if work not in counted]
    # A work that the compiler has thrown away passes any bound.
    return problems + [f"{work}: {found:.1f} instructions are too few to be true"
                       for work, found in counted.items() if found < 3]


def about():
    """What the program says of itself; a text instead when it cannot be counted here."""
    try:
        said = json.loads(subprocess.run([PROGRAM, "--about"], capture_output=True, text=True, check=True).stdout)
    except OSError as error:
        if error.errno != errno.ENOEXEC:
            raise
        return f"this machine cannot execute {PROGRAM}"
    if said["machine"] != "x86-64":
        return "the bounds are for x86-64"
    if instrumented := re.search(r"-fsanitize\S*|--coverage|-fprofile\S*", said["flags"]):
        return f"compiled with {instrumented.group()}, which adds instructions"
    if not said["membarrier"]:
        return "there is no membarrier here, so writers take the long way"
    if not shutil.which("valgrind"):
        return "there is no valgrind"
    return said


def main(arguments):
    said = about()
    if isinstance(said, str):
        print(f"SKIPPED: {said}")
        return SKIPPED
    with ThreadPoolExecutor(max_workers=2) as pool:
        counted = dict(zip(said["works"], pool.map(per_access, said["works"])))
    bounds = BOUNDS[said["compiler"]]
    for work, found in counted.items():
        print(f"{work:20} {found:7.1f} instructions, at most {bounds.get(work, 0):g}")
    if "--print" in arguments:
        return 0
    problems = problems_of(counted, bounds)
    for problem in problems:
        print(f"too slow or unknown: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
