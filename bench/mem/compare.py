# SPDX-License-Identifier: Apache-2.0
"""Compares this library with the vm-memory crate and with raw pointers, as ratios.

usage: compare.py --ours PROGRAM [--peer PROGRAM] [--rounds N] [--budget-ms N] [--quick] [--json] [--strict]

  --ours PROGRAM   mem_works of a release build
  --peer PROGRAM   vm-memory-peer; without it only the limits are compared
  --rounds N       runs of each program, in turns (default: 7)
  --budget-ms N    time for each figure in each run (default: 12)
  --quick          2 rounds of 2 ms: whether all of it works, not how fast it is
  --json           one JSON object instead of the table
  --strict         status 1 when a target is not reached

"flat to 0.3 ns" means: what the library adds to the raw access is with 1024 regions at most 0.3 ns more than with
one. Raw accesses themselves differ with the number of regions, since the memory that is touched does.

Of each figure the best run counts, with two threads the median. Programs that did not access the same addresses
are not compared: status 1.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass, field

# What counts as not slower: two runs of one program differ by as much.
NOT_SLOWER = 0.98


@dataclass(frozen=True)
class Target:
    """What a work has to reach, on every layout and number of regions that it is measured with."""

    work: str
    pattern: str = "runs"
    chain: str = "independent"
    # How many times faster than the crate, at least; by the number of regions, or one for all.
    faster: dict = field(default_factory=dict)
    faster_always: float = None
    # At most so many ns more than the raw access; some layouts have figures of their own.
    over_raw_ns: float = None
    over_raw_ns_of: dict = field(default_factory=dict)
    # At most so many times the raw access, or another work of ours.
    of_raw: float = None
    of_work: tuple = None
    # At most so many times the cost at another number of regions: (regions, that number, times).
    of_regions: tuple = None
    # (regions, that number, ns): over the raw access at most so many ns more than at another number of regions.
    flat_ns: tuple = None
    # At most so many ns, or bytes.
    at_most: float = None


# The targets, one line per line of the table in the issue that asked for them.
TARGETS = (
    Target("read_u64", "runs", faster={1: 3, 64: 12, 1024: 18}, over_raw_ns=1, flat_ns=(1024, 1, 0.3)),
    Target("read_u64", "runs", "dependent", over_raw_ns=2),
    Target("write_u64", "runs", faster={1: 2.5, 64: 9, 1024: 15}, over_raw_ns=1, flat_ns=(1024, 1, 0.3)),
    Target("read_u64", "jumps", faster={4: 1.5, 64: 3, 1024: 4}, over_raw_ns=4, over_raw_ns_of={"clusters": 7},
           of_regions=(1024, 4, 2)),
    Target("write_u64", "jumps", faster={4: 1.5, 64: 3, 1024: 4}, over_raw_ns=4, over_raw_ns_of={"clusters": 7},
           of_regions=(1024, 4, 2)),
    Target("write_tracked", "runs", faster={1: 4, 64: 8, 1024: 15}, of_work=("write_u64", 2)),
    Target("write_tracked_two_threads", "runs", of_work=("write_u64_two_threads", 2)),
    Target("load_acquire", "runs", faster={1: 2, 64: 8, 1024: 12}),
    Target("store_release", "runs", faster={1: 2, 64: 8, 1024: 12}),
    Target("read_4k", "jumps", faster_always=NOT_SLOWER, of_raw=1.10),
    Target("write_4k", "jumps", faster_always=NOT_SLOWER, of_raw=1.10),
    Target("read_4k_at_16", "jumps", faster_always=NOT_SLOWER, of_raw=1.10),
    Target("write_4k_at_16", "jumps", faster_always=NOT_SLOWER, of_raw=1.10),
    Target("read_1m", "jumps", faster_always=NOT_SLOWER, of_raw=1.02),
    Target("write_1m", "jumps", faster_always=NOT_SLOWER, of_raw=1.02),
    Target("read_straddling", "jumps", faster_always=4),
    Target("write_straddling", "jumps", faster_always=4),
    Target("mark_1g", "none", "none", faster_always=50),
    Target("harvest_clean_1g", "none", "none", faster_always=5),
    Target("snapshot", "none", "none", faster_always=8, at_most=1),
    Target("build_map", "runs", faster_always=NOT_SLOWER, at_most=1e6),
    Target("index", "none", "none", at_most=256 * 1024),
    Target("caught_fault", "none", "none", at_most=10_000),
    Target("guarded_read_u64", "runs", over_raw_ns=0.2),
    Target("guarded_write_u64", "runs", over_raw_ns=0.2),
)

# The raw access that a work is compared with: raw_WORK, or the one named here.
RAW = {
    "write_tracked": "raw_write_u64",
    "load_acquire": "raw_read_u64",
    "store_release": "raw_write_u64",
    "guarded_read_u64": "raw_read_u64",
    "guarded_write_u64": "raw_write_u64",
}

# The work of the crate that stands beside a work of ours: the same, or the one named here.
PEER = {
    "harvest_clean_1g_into": "harvest_clean_1g",
    "snapshot_pin": "snapshot",
}


@dataclass(frozen=True)
class Key:
    work: str
    layout: str
    pattern: str
    chain: str
    regions: int

    def of(self, work):
        return Key(work, self.layout, self.pattern, self.chain, self.regions)

    def at(self, regions):
        return Key(self.work, self.layout, self.pattern, self.chain, regions)


class Failed(Exception):
    """The comparison cannot be made; the message says why."""


# --------------------------------------------------------------------------------------------- figures


@dataclass
class Side:
    """All that one program said in all of its runs."""

    compiler: str = ""
    figures: dict = field(default_factory=dict)
    digests: dict = field(default_factory=dict)

    def read(self, text):
        for line in text.splitlines():
            said = json.loads(line)
            if "program" in said:
                self.compiler = said["compiler"]
            elif "check" in said:
                place = (said["check"], said["layout"], said["pattern"], said["regions"])
                self.digests[place] = said["digest"]
            else:
                key = Key(*(said[name] for name in ("work", "layout", "pattern", "chain", "regions")))
                self.figures.setdefault(key, []).append(said["bytes"] if "bytes" in said else said["ns"])

    def summary(self):
        """The figure that counts, by key."""
        return {key: statistics.median(values) if key.work.endswith("_two_threads") else min(values)
                for key, values in self.figures.items()}


def run(program, budget_ms):
    try:
        # As a path, also without a slash: never searched for.
        command = [os.path.abspath(program), "--budget-ms", str(budget_ms)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise Failed(f"cannot run {program}: {error.strerror}") from error
    if done.returncode != 0:
        raise Failed(f"{program} has failed with status {done.returncode}: {done.stderr.strip()}")
    return done.stdout


def measure(ours_program, peer_program, rounds, budget_ms):
    """Runs the programs in turns."""
    ours, peer = Side(), Side()
    for number in range(rounds):
        if sys.stderr.isatty():
            print(f"\rround {number + 1} of {rounds}", end="", file=sys.stderr, flush=True)
        ours.read(run(ours_program, budget_ms))
        if peer_program:
            peer.read(run(peer_program, budget_ms))
    if sys.stderr.isatty():
        print("\r", end="", file=sys.stderr)
    check_same_addresses(ours, peer)
    return ours, peer


def check_same_addresses(ours, peer):
    for place, digest in peer.digests.items():
        if ours.digests.get(place) != digest:
            raise Failed(f"the programs do not access the same addresses: {place}: {ours.digests.get(place)} here, "
                         f"{digest} there; workload.hpp and workload.rs have to agree")


# -------------------------------------------------------------------------------------------- verdicts


@dataclass
class Row:
    """A figure of ours, what it is compared with, and what it had to reach."""

    key: Key
    ours: float
    raw: float = None
    peer: float = None
    wanted: list = field(default_factory=list)
    missed: list = field(default_factory=list)

    @property
    def faster(self):
        return self.peer / self.ours if self.peer is not None else None

    @property
    def over_raw(self):
        return self.ours - self.raw if self.raw is not None else None

    @property
    def verdict(self):
        if not self.wanted:
            return ""
        return "NOT REACHED: " + ", ".join(self.missed) if self.missed else "reached"

    def want(self, text, is_reached, found):
        self.wanted.append(text)
        if not is_reached:
            self.missed.append(found)


def target_of(key):
    for target in TARGETS:
        if (target.work, target.pattern, target.chain) == (key.work, key.pattern, key.chain):
            return target
    return None


def judge(row, target, figures, has_peer):
    """Notes in the row what the target wants there, and what is missed."""
    key, unit = row.key, "B" if row.key.work == "index" else "ns"
    faster = target.faster.get(key.regions, target.faster_always)
    if faster is not None and has_peer:
        row.want("not slower" if faster == NOT_SLOWER else f"{faster:g}x faster",
                 row.faster is not None and row.faster >= faster, faster_found(row, faster))
    over = target.over_raw_ns_of.get(key.layout, target.over_raw_ns)
    if over is not None:
        row.want(f"raw + {over:g} ns", row.raw is not None and row.over_raw <= over,
                 "no raw figure" if row.raw is None else f"raw + {row.over_raw:.2f} ns")
    if target.flat_ns is not None and key.regions == target.flat_ns[0]:
        judge_flat(row, target, figures)
    for name, base, times in limits(row, target, figures):
        row.want(f"{times:g}x {name}", base is not None and row.ours <= times * base,
                 f"no figure of {name}" if base is None else f"{row.ours / base:.2f}x {name}")
    if target.at_most is not None:
        row.want(f"at most {amount(target.at_most, unit)}", row.ours <= target.at_most, amount(row.ours, unit))


def judge_flat(row, target, figures):
    _, few, limit = target.flat_ns
    at = row.key.at(few)
    ours, raw = figures.get(at), figures.get(raw_of(at))
    is_known = row.raw is not None and ours is not None and raw is not None
    grown = row.over_raw - (ours - raw) if is_known else None
    # Rounded: a difference of differences is not exact.
    row.want(f"flat to {limit:g} ns", is_known and round(grown, 6) <= limit,
             f"{grown:+.2f} ns from {few} to {row.key.regions} regions" if is_known
             else f"no figure of {few} regions over raw")


def faster_found(row, wanted):
    """What stands in the place of the factor that was wanted, and whether anything could reach that."""
    if row.faster is None:
        return "no figure of the crate"
    if row.raw is not None and row.peer / row.raw < wanted:
        return f"{row.faster:.2f}x (raw pointers: {row.peer / row.raw:.2f}x)"
    return f"{row.faster:.2f}x"


def limits(row, target, figures):
    """Yields (name, figure, times): what the row may be so many times of."""
    if target.of_raw is not None:
        yield "raw", row.raw, target.of_raw
    if target.of_work is not None:
        work, times = target.of_work
        yield work, figures.get(row.key.of(work)), times
    if target.of_regions is not None and row.key.regions == target.of_regions[0]:
        _, other, times = target.of_regions
        yield f"{other} regions", figures.get(row.key.at(other)), times


def raw_of(key):
    return key.of(RAW.get(key.work, f"raw_{key.work}"))


def rows_of(ours, peer):
    """The rows of the table; both sides as Side.summary() gives them."""
    rows = []
    for key, figure in ours.items():
        if key.work.startswith("raw_"):
            continue
        row = Row(key, figure, raw=ours.get(raw_of(key)),
                  peer=peer.get(key.of(PEER.get(key.work, key.work))))
        if target := target_of(key):
            judge(row, target, ours, bool(peer))
        rows.append(row)
    order = {(target.work, target.pattern, target.chain): number for number, target in enumerate(TARGETS)}
    place = {key: number for number, key in enumerate(ours)}
    rows.sort(key=lambda row: (order.get((row.key.work, row.key.pattern, row.key.chain), len(order)),
                               row.key.work, row.key.pattern, row.key.chain, place[row.key]))
    return rows


def agreement(ours, peer):
    """How the peer's raw figures compare with ours: (lowest, median, highest); nothing without a peer."""
    ratios = [peer[key] / ours[key] for key in ours if key.work.startswith("raw_") and key in peer]
    return (min(ratios), statistics.median(ratios), max(ratios)) if ratios else None


# ---------------------------------------------------------------------------------------------- output


def amount(value, unit):
    if unit == "B":
        return f"{value / 1024:.1f} KiB"
    for size, name in ((1e6, "ms"), (1e3, "us")):
        if value >= size:
            return f"{value / size:.1f} {name}"
    return f"{value:.2f} ns"


def title(key):
    words = [key.work]
    if key.pattern != "none":
        words.append(f"{key.pattern}, {key.chain} addresses" if "u64" in key.work else key.pattern)
    return ", ".join(words)


def table(rows):
    """The lines of the table."""
    head = ("layout", "regions", "ours", "raw", "over raw", "crate", "faster", "target", "verdict")
    widths = (10, 7, 10, 10, 10, 10, 8, 44, 0)
    form = "  ".join(f"{{:{'<' if number in (0, 7, 8) else '>'}{width or ''}}}" for number, width in enumerate(widths))
    lines, last = [form.format(*head)], None
    for row in rows:
        if title(row.key) != last:
            last = title(row.key)
            lines += ["", last]
        unit = "B" if row.key.work == "index" else "ns"
        over = f"{row.over_raw:+.2f} ns" if row.over_raw is not None and row.ours < 1000 else ""
        lines.append(form.format(
            row.key.layout, row.key.regions, amount(row.ours, unit),
            amount(row.raw, unit) if row.raw is not None else "", over,
            amount(row.peer, unit) if row.peer is not None else "",
            f"{row.faster:.2f}x" if row.faster is not None else "", ", ".join(row.wanted), row.verdict).rstrip())
    return lines


def summary(rows, raw_agreement):
    with_target = [row for row in rows if row.wanted]
    missed = [row for row in with_target if row.missed]
    lines = ["", f"{len(with_target) - len(missed)} of {len(with_target)} targets reached"]
    if raw_agreement:
        low, middle, high = raw_agreement
        lines.append(f"raw accesses of the peer take {middle:.2f} times what ours take ({low:.2f} to {high:.2f})")
        if not 0.8 <= middle <= 1.25:
            lines.append("these should be alike: the machine was busy, measure again")
    return lines


def as_json(rows, sides, raw_agreement):
    ours, peer = sides
    return {
        "compilers": {"ours": ours.compiler, "peer": peer.compiler},
        "raw_agreement": raw_agreement,
        "rows": [{"work": row.key.work, "layout": row.key.layout, "pattern": row.key.pattern, "chain": row.key.chain,
                  "regions": row.key.regions, "ours": row.ours, "raw": row.raw, "peer": row.peer,
                  "faster": row.faster, "wanted": row.wanted, "missed": row.missed} for row in rows],
    }


# ------------------------------------------------------------------------------------------------ main


def parse(arguments):
    parser = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    parser.add_argument("--ours", required=True)
    parser.add_argument("--peer")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--budget-ms", type=int, default=12)
    for flag in ("--quick", "--json", "--strict"):
        parser.add_argument(flag, action="store_true")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds, options.budget_ms = 2, 2
    if options.rounds < 1 or options.budget_ms < 0:
        parser.error("--rounds is at least 1, --budget-ms at least 0")
    return options


def main(arguments):
    if "--help" in arguments or "-h" in arguments:
        print(__doc__.strip())
        return 0
    options = parse(arguments)
    try:
        sides = measure(options.ours, options.peer, options.rounds, options.budget_ms)
    except Failed as failure:
        print(f"compare.py: {failure}", file=sys.stderr)
        return 1
    ours, peer = (side.summary() for side in sides)
    rows, raw_agreement = rows_of(ours, peer), agreement(ours, peer)
    if options.json:
        print(json.dumps(as_json(rows, sides, raw_agreement), indent=1))
    else:
        print(f"ours: guestmem with {sides[0].compiler}; the best of {options.rounds} runs")
        print(f"crate: vm-memory with {sides[1].compiler}\n" if peer else "crate: not measured\n")
        print("\n".join(table(rows) + summary(rows, raw_agreement)))
    return 1 if options.strict and any(row.missed for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
