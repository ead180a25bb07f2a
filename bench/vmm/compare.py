# SPDX-License-Identifier: Apache-2.0
"""`guestmem run` against QEMU with the same payloads on the same accelerator: start, memory, kicks, attach.

usage: compare.py --guestmem PROGRAM --payloads FOLDER [--qemu PROGRAM] [--starts N] [--rallies N] [--rounds N]
                  [--machines N]
                  [--only WORK] [--json] [--strict]

  --guestmem PROGRAM  guestmem of a release build
  --payloads FOLDER   the payloads: build/PRESET/guests
  --qemu PROGRAM      a QEMU (default: qemu-system-x86_64); without one only ours is measured
  --starts N          starts of each that count (default: 15)
  --rallies N         pairs of machines of each that play (default: 5)
  --machines N        machines of each at once, for what the kernel takes (default: 5)
  --rounds N          there and back in a rally, and what measure repeats (default: 2000)
  --only WORK         start, memory, kick or attach
  --json              one JSON object instead of the table
  --strict            status 1 when a target is not reached

Ours and QEMU's are measured in turns, A B B A, and medians are compared. A start is from before the process is made
until the guest's first byte has come through a pipe. Where /dev/kvm cannot be used it prints "SKIPPED: why" (77).
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

import machines
from bare import BareSlots

SKIPPED = 77
WARM_UP = 2
# Two runs of one program differ by as much.
NOT_SLOWER = 1.03
START_RATIO = 1 / 8
MAX_BEYOND_RAM_KIB = 4096
MAX_ATTACH_US = 100


def in_turns(one, other, count):
    """Medians of two works, A B B A; without another, of one alone."""
    ones, others = [], []
    while len(ones) < count:
        ones.append(one())
        if other:
            others += [other(), other()]
            ones.append(one())
    return statistics.median(ones), statistics.median(others) if others else None


def row(work, unit, ours, peer=None, target=None, note=""):
    """`target` bounds the ratio to the peer where there is one, else the figure."""
    judged = ours / peer if peer else ours
    return {"work": work, "unit": unit, "ours": ours, "peer": peer, "ratio": ours / peer if peer else None,
            "target": target, "is_reached": target is None or judged <= target, "note": note}


def measure_start(bench):
    for _ in range(WARM_UP):
        bench.ours.first_byte_ms()
        if bench.qemu:
            bench.qemu.first_byte_ms()
    ours, theirs = in_turns(bench.ours.first_byte_ms, bench.qemu and bench.qemu.first_byte_ms, bench.options.starts)
    return [row("process start to the guest's first byte", "ms", ours, theirs, START_RATIO if theirs else None),
            row("a process that prints and ends", "ms", statistics.median(
                bench.ours.version_ms() for _ in range(bench.options.starts)), note="guestmem --version")]


def measure_memory(bench):
    ours = bench.ours.memory()
    theirs = bench.qemu.memory() if bench.qemu else {}
    rows = []
    for key, title in (("rss_kib", "RssAnon + RssFile"), ("private_dirty_kib", "Private_Dirty beyond guest RAM")):
        peer = f"QEMU {theirs[key]}" if theirs else ""
        rows.append(row(title, "KiB", ours[key], target=MAX_BEYOND_RAM_KIB, note=peer))
    theirs = bench.qemu.kernel_kib(bench.options.machines) if bench.qemu else None
    return rows + [
        row("the kernel's own for each machine", "KiB", bench.ours.kernel_kib(bench.options.machines), theirs,
            note="slab, page tables, stacks, vmalloc")]


def measure_kick(bench):
    """The shortest says what it takes, the mean what else the machine does meanwhile."""
    options = bench.options
    plays = {"ours": lambda: bench.ours.kick_us("ivshmem", options.rounds),
             "shmem": lambda: bench.ours.kick_us("shmem", options.rounds, "msi=1"),
             "line": lambda: bench.ours.kick_us("shmem", options.rounds)}
    if bench.qemu:
        plays["qemu"] = lambda: bench.qemu.kick_us(options.rounds)
    runs = {name: [] for name in plays}
    for number in range(options.rallies):
        for name in plays if number % 2 == 0 else reversed(plays):
            runs[name].append(plays[name]())

    def median(name, what):
        return statistics.median(run[what] for run in runs[name]) if name in runs else None

    rows = []
    for what in ("best", "mean"):
        theirs = median("qemu", what)
        rows.append(row(f"kick: ivshmem, {what}", "us", median("ours", what), theirs,
                        NOT_SLOWER if theirs and what == "best" else None))
    for what in ("best", "mean"):
        rows.append(row(f"kick: vdev shmem by MSI, {what}", "us", median("shmem", what), median("ours", what),
                        note="beside ivshmem"))
    rows.append(row("kick: vdev shmem by a line, best", "us", median("line", "best"), median("ours", "best"),
                    note="beside ivshmem; a level, which a thread of ours raises"))
    return rows + [row("bare ioeventfd and irqfd, own doorbell", "us", bench.measured("doorbell_to_interrupt"),
                       note="one processor rings itself, in HLT: no other machine has to wake"),
                   row("an MMIO exit", "us", bench.measured("mmio_write"))]


def measure_attach(bench):
    slots = BareSlots()
    try:
        bare_us = slots.median_us()
    finally:
        slots.close()
    exit_us, attach_us = bench.measured("mmio_write"), bench.measured("attach_to_data")
    return [row("attach: write of size to usable data", "us", attach_us),
            row("beyond an exit and a bare memory slot", "us", attach_us - exit_us - bare_us, target=MAX_ATTACH_US,
                note=f"exit {exit_us:.1f}, slot {bare_us:.1f}"),
            row("detach", "us", bench.measured("detach"))]


WORKS = {"start": measure_start, "memory": measure_memory, "kick": measure_kick, "attach": measure_attach}


class Bench:
    def __init__(self, options, folder):
        self.options = options
        self.ours = machines.Ours(options.guestmem, options.payloads, folder)
        has_qemu = shutil.which(options.qemu) is not None
        self.qemu = machines.Qemu(options.qemu, options.payloads, self.ours) if has_qemu else None
        self._measured = None

    def measured(self, name):
        """What the payload measure says, in us; the median of the runs' means."""
        if self._measured is None:
            count = min(self.options.rounds, 1000)
            self._measured = [self.ours.measure(count) for _ in range(self.options.rallies)]
        return statistics.median(run[name] for run in self._measured)


def print_table(rows, qemu):
    print("vmm: ours / QEMU = ratio, target" if qemu else "vmm: ours; there is no QEMU here")
    for one in rows:
        peer = f" / {one['peer']:9.2f} {one['unit']:<3} = {one['ratio']:5.2f}" if one["peer"] else f" {one['unit']:<23}"
        target = "" if one["target"] is None else f"  at most {one['target']:.2f}"
        missed = "" if one["is_reached"] else ": not reached"
        note = f"  ({one['note']})" if one["note"] else ""
        print(f"  {one['work']:<42} {one['ours']:9.2f}{peer}{target}{missed}{note}")


def parse():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--guestmem", type=Path, required=True)
    parser.add_argument("--payloads", type=Path, required=True)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--starts", type=int, default=15)
    parser.add_argument("--rallies", type=int, default=5)
    parser.add_argument("--machines", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--only", choices=WORKS)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true")
    return parser.parse_args()


def main():
    options = parse()
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        print("SKIPPED: /dev/kvm cannot be used")
        return SKIPPED
    rows = []
    with tempfile.TemporaryDirectory(prefix="guestmem-bench-", dir="/tmp") as folder:
        bench = Bench(options, Path(folder))
        try:
            for name, work in WORKS.items():
                if options.only in (None, name):
                    rows += work(bench)
        finally:
            bench.ours.close()
    if options.json:
        print(json.dumps({"qemu": bench.qemu is not None, "rows": rows}))
    else:
        print_table(rows, bench.qemu)
    return 1 if options.strict and not all(one["is_reached"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
