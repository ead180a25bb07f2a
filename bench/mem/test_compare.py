# SPDX-License-Identifier: Apache-2.0
"""Tests of the comparison's verdicts and table, and of the check of instruction counts, from canned figures."""

import contextlib
import io
import json
import tempfile
import unittest
from pathlib import Path

import compare
import test_instructions
from compare import Key


def key(work, layout="adjacent", pattern="runs", chain="independent", regions=1):
    return Key(work, layout, pattern, chain, regions)


def plain(work, regions=0):
    return Key(work, "none", "none", "none", regions)


def verdict(of, ours, peer=None):
    """The verdict on one key; `ours` and `peer` are figures by key."""
    return next(row.verdict for row in compare.rows_of(ours, peer or {}) if row.key == of)


class Verdicts(unittest.TestCase):
    def runs(self, ours, raw, peer, regions=64):
        at = key("read_u64", regions=regions)
        figures = {each: ns for number in (1, regions)
                   for each, ns in ((at.at(number), ours), (at.at(number).of("raw_read_u64"), raw))}
        return verdict(at, figures, {at: peer})

    def test_a_figure_at_both_bounds_is_reached(self):
        self.assertEqual(self.runs(ours=1.5, raw=0.5, peer=18), "reached")

    def test_a_figure_too_near_to_the_crate_is_not_reached(self):
        self.assertEqual(self.runs(ours=1.5, raw=0.5, peer=15), "NOT REACHED: 10.00x")

    def test_a_figure_too_far_from_raw_is_not_reached(self):
        self.assertEqual(self.runs(ours=1.75, raw=0.5, peer=100), "NOT REACHED: raw + 1.25 ns")

    def test_both_misses_are_said(self):
        self.assertEqual(self.runs(ours=2, raw=0.5, peer=8), "NOT REACHED: 4.00x, raw + 1.50 ns")

    def test_a_factor_that_raw_pointers_miss_too_is_said(self):
        self.assertEqual(self.runs(ours=1, raw=0.5, peer=5), "NOT REACHED: 5.00x (raw pointers: 10.00x)")
        self.assertEqual(self.runs(ours=1, raw=0.5, peer=6), "NOT REACHED: 6.00x")

    def test_the_factor_depends_on_the_number_of_regions(self):
        self.assertEqual(self.runs(ours=1, raw=0.5, peer=12, regions=64), "reached")
        self.assertEqual(self.runs(ours=1, raw=0.5, peer=12, regions=1024), "NOT REACHED: 12.00x")

    def test_a_number_of_regions_without_a_factor_has_the_limit_only(self):
        self.assertEqual(self.runs(ours=1, raw=0.5, peer=0.1, regions=4), "reached")

    def test_a_missing_figure_of_the_crate_is_not_reached(self):
        at, other = key("load_acquire"), key("store_release")
        self.assertEqual(verdict(at, {at: 1}, {other: 9}), "NOT REACHED: no figure of the crate")

    def test_without_a_peer_only_the_limits_count(self):
        at = key("read_u64")
        self.assertEqual(verdict(at, {at: 1, at.of("raw_read_u64"): 0.5}), "reached")

    def test_a_missing_raw_figure_is_not_reached(self):
        at = key("read_u64")
        self.assertEqual(verdict(at, {at: 1}), "NOT REACHED: no raw figure")

    def test_clusters_have_a_limit_of_their_own(self):
        for layout, expected in (("clusters", "reached"), ("sparse48", "NOT REACHED: raw + 5.00 ns")):
            at = key("read_u64", layout, "jumps", regions=64)
            self.assertEqual(verdict(at, {at: 6, at.of("raw_read_u64"): 1}), expected)

    def test_many_regions_cost_at_most_twice_what_few_do(self):
        many, few = key("read_u64", pattern="jumps", regions=1024), key("read_u64", pattern="jumps", regions=4)
        raw = {at.of("raw_read_u64"): 1 for at in (many, few)}
        self.assertEqual(verdict(many, {many: 4, few: 2, **raw}), "reached")
        self.assertEqual(verdict(many, {many: 4.5, few: 2, **raw}), "NOT REACHED: 2.25x 4 regions")
        self.assertEqual(verdict(many, {many: 4.5, **raw}), "NOT REACHED: no figure of 4 regions")

    def test_runs_are_flat_from_one_region_to_many(self):
        for work in ("read_u64", "write_u64"):
            many, one = key(work, regions=1024), key(work, regions=1)
            raw = {many.of(f"raw_{work}"): 0.5, one.of(f"raw_{work}"): 0.25}
            self.assertEqual(verdict(many, {many: 1.3, one: 0.75, **raw}), "reached")
            self.assertEqual(verdict(many, {many: 1.32, one: 0.75, **raw}),
                             "NOT REACHED: +0.32 ns from 1 to 1024 regions")
            # What raw accesses cost less is not forgiven.
            self.assertEqual(verdict(many, {many: 1, one: 0.75, **raw, many.of(f"raw_{work}"): 0.125}),
                             "NOT REACHED: +0.38 ns from 1 to 1024 regions")

    def test_what_flat_is_measured_by_has_to_be_there(self):
        many, one = key("read_u64", regions=1024), key("read_u64", regions=1)
        figures = {many: 1, one: 1, many.of("raw_read_u64"): 0.5, one.of("raw_read_u64"): 0.5}
        self.assertEqual(verdict(many, figures), "reached")
        for lost in (one, one.of("raw_read_u64")):
            less = {at: ns for at, ns in figures.items() if at != lost}
            self.assertEqual(verdict(many, less), "NOT REACHED: no figure of 1 regions over raw")

    def test_flat_is_said_at_the_larger_number_only(self):
        figures = {each: 1 for regions in (1, 4, 64, 1024)
                   for each in (key("read_u64", regions=regions), key("raw_read_u64", regions=regions))}
        wanted = {row.key.regions: row.wanted for row in compare.rows_of(figures, {})}
        self.assertEqual(wanted, {1: ["raw + 1 ns"], 4: ["raw + 1 ns"], 64: ["raw + 1 ns"],
                                  1024: ["raw + 1 ns", "flat to 0.3 ns"]})

    def test_a_tracked_write_is_measured_by_the_untracked_one(self):
        at = key("write_tracked_two_threads")
        self.assertEqual(verdict(at, {at: 2, at.of("write_u64_two_threads"): 1}), "reached")
        self.assertEqual(verdict(at, {at: 3, at.of("write_u64_two_threads"): 1}),
                         "NOT REACHED: 3.00x write_u64_two_threads")

    def test_a_copy_may_not_be_slower(self):
        at = key("read_4k", pattern="jumps")
        raw = {at.of("raw_read_4k"): 100}
        self.assertEqual(verdict(at, {at: 100, **raw}, {at: 99}), "reached")
        self.assertEqual(verdict(at, {at: 110, **raw}, {at: 99}), "NOT REACHED: 0.90x")
        self.assertEqual(verdict(at, {at: 111, **raw}, {at: 200}), "NOT REACHED: 1.11x raw")

    def test_absolute_limits_have_units(self):
        self.assertEqual(verdict(plain("caught_fault"), {plain("caught_fault"): 12_000}), "NOT REACHED: 12.0 us")
        self.assertEqual(verdict(plain("index"), {plain("index"): 300 * 1024}), "NOT REACHED: 300.0 KiB")

    def test_a_work_without_a_target_has_no_verdict(self):
        at = key("read_u64", pattern="jumps", chain="dependent", regions=64)
        self.assertEqual(verdict(at, {at: 100}, {at: 1}), "")

    def test_every_target_has_something_to_reach(self):
        for target in compare.TARGETS:
            wants = (target.faster, target.faster_always, target.over_raw_ns, target.of_raw, target.of_work,
                     target.at_most)
            self.assertTrue(any(wants), target)

    def test_no_two_targets_are_for_one_work(self):
        keys = [(target.work, target.pattern, target.chain) for target in compare.TARGETS]
        self.assertEqual(len(keys), len(set(keys)))


class Figures(unittest.TestCase):
    def test_the_best_run_counts_but_the_median_of_two_threads(self):
        side = compare.Side()
        for ns in (3, 1, 2):
            for work in ("read_u64", "write_u64_two_threads"):
                side.read(json.dumps({"work": work, "layout": "adjacent", "pattern": "runs",
                                      "chain": "independent", "regions": 1, "ns": ns}))
        self.assertEqual(side.summary(), {key("read_u64"): 1, key("write_u64_two_threads"): 2})

    def test_raw_figures_of_both_sides_are_compared(self):
        at, other = key("raw_read_u64"), key("raw_write_u64")
        self.assertEqual(compare.agreement({at: 1, other: 2, key("read_u64"): 1}, {at: 2, other: 2}), (1, 1.5, 2))
        self.assertIsNone(compare.agreement({at: 1}, {}))

    def test_amounts_have_the_unit_that_fits(self):
        self.assertEqual([compare.amount(value, "ns") for value in (1.234, 1234, 1_234_567)],
                         ["1.23 ns", "1.2 us", "1.2 ms"])


class Table(unittest.TestCase):
    def test_a_row_has_all_columns(self):
        at = key("read_u64", regions=64)
        rows = compare.rows_of({at: 1.0, at.of("raw_read_u64"): 0.5}, {at: 11.0})
        lines = compare.table(rows)
        self.assertEqual(lines[2], "read_u64, runs, independent addresses")
        self.assertEqual(lines[3].split(), ["adjacent", "64", "1.00", "ns", "0.50", "ns", "+0.50", "ns", "11.00", "ns",
                                            "11.00x", "12x", "faster,", "raw", "+", "1", "ns", "NOT", "REACHED:",
                                            "11.00x"])

    def test_raw_works_have_no_rows(self):
        self.assertEqual(compare.rows_of({key("raw_read_u64"): 1}, {}), [])

    def test_rows_stand_in_the_order_of_the_targets(self):
        first, last = key("read_u64"), key("store_release")
        rows = compare.rows_of({key("unknown"): 1, last: 1, first: 1}, {})
        self.assertEqual([row.key.work for row in rows], ["read_u64", "store_release", "unknown"])

    def test_the_summary_counts_and_warns(self):
        at, other = key("load_acquire"), key("store_release")
        rows = compare.rows_of({at: 1, other: 1}, {at: 2, other: 1})
        lines = compare.summary(rows, (0.5, 2.0, 3.0))
        self.assertIn("1 of 2 targets reached", lines)
        self.assertTrue(any("the machine was busy" in line for line in lines))
        self.assertFalse(any("busy" in line for line in compare.summary(rows, (0.5, 1.0, 3.0))))

    def test_a_peers_work_may_have_another_name(self):
        rows = compare.rows_of({plain("snapshot_pin", 4): 2}, {plain("snapshot", 4): 6})
        self.assertEqual(rows[0].faster, 3)


class Program(unittest.TestCase):
    """compare.py with two small programs in place of the real ones."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="guestmem-compare-")
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def program(self, name, *lines, status=0):
        path = self.folder / name
        text = "\n".join(json.dumps(line) for line in lines)
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{text}\nEND\nexit {status}\n")
        path.chmod(0o755)
        return str(path)

    @staticmethod
    def figure(ns, work="load_acquire"):
        return {"work": work, "layout": "adjacent", "pattern": "runs", "chain": "independent", "regions": 1, "ns": ns}

    @staticmethod
    def digest(value):
        return {"check": "u64", "layout": "adjacent", "pattern": "runs", "regions": 1, "digest": value}

    def run_main(self, *arguments):
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = compare.main(list(arguments))
        return status, out.getvalue(), err.getvalue()

    def sides(self, ours_ns, peer_ns, peer_digest="a"):
        ours = self.program("ours", {"program": "guestmem", "compiler": "g++ 1"}, self.digest("a"),
                            self.figure(ours_ns))
        peer = self.program("peer", {"program": "vm-memory", "compiler": "rustc 2"}, self.digest(peer_digest),
                            self.figure(peer_ns))
        return ["--ours", ours, "--peer", peer, "--quick"]

    def test_it_prints_the_table(self):
        status, out, _ = self.run_main(*self.sides(1, 4))
        self.assertEqual(status, 0)
        for word in ("g++ 1", "rustc 2", "load_acquire", "4.00x", "1 of 1 targets reached"):
            self.assertIn(word, out)

    def test_a_missed_target_is_a_failure_with_strict_only(self):
        self.assertEqual(self.run_main(*self.sides(4, 4))[0], 0)
        self.assertEqual(self.run_main(*self.sides(4, 4), "--strict")[0], 1)
        self.assertEqual(self.run_main(*self.sides(1, 4), "--strict")[0], 0)

    def test_other_addresses_are_not_compared(self):
        status, out, err = self.run_main(*self.sides(1, 4, peer_digest="b"))
        self.assertEqual((status, out), (1, ""))
        self.assertIn("do not access the same addresses", err)

    def test_a_program_that_fails_is_a_failure(self):
        status, _, err = self.run_main("--ours", self.program("ours", status=3))
        self.assertEqual(status, 1)
        self.assertIn("status 3", err)

    def test_a_program_that_is_not_there_is_a_failure(self):
        status, _, err = self.run_main("--ours", str(self.folder / "none"))
        self.assertEqual(status, 1)
        self.assertIn("cannot run", err)

    def test_json_has_the_same_facts(self):
        status, out, _ = self.run_main(*self.sides(2, 3), "--json")
        said = json.loads(out)
        self.assertEqual(status, 0)
        self.assertEqual(said["compilers"], {"ours": "g++ 1", "peer": "rustc 2"})
        self.assertEqual((said["rows"][0]["faster"], said["rows"][0]["missed"]), (1.5, ["1.50x"]))

    def test_help_tells_the_options(self):
        status, out, _ = self.run_main("--help")
        self.assertEqual(status, 0)
        for option in ("--ours", "--peer", "--rounds", "--quick", "--json", "--strict"):
            self.assertIn(option, out)


class Instructions(unittest.TestCase):
    def test_a_count_at_its_bound_is_good(self):
        self.assertEqual(test_instructions.problems_of({"read": 12}, {"read": 12}), [])

    def test_a_count_above_its_bound_is_found(self):
        self.assertIn("the bound is 12", test_instructions.problems_of({"read": 12.1}, {"read": 12})[0])

    def test_works_and_bounds_have_to_match(self):
        problems = test_instructions.problems_of({"read": 12}, {"write": 12})
        self.assertEqual(len(problems), 2)

    def test_a_work_that_was_optimized_away_is_found(self):
        self.assertIn("too few", test_instructions.problems_of({"read": 0.5}, {"read": 12})[0])

    def test_both_compilers_have_the_same_works(self):
        bounds = test_instructions.BOUNDS
        self.assertEqual(bounds["g++"].keys(), bounds["clang"].keys())


if __name__ == "__main__":
    unittest.main(verbosity=2)
