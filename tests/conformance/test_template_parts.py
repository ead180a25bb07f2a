# SPDX-License-Identifier: Apache-2.0
"""Differences, compressed templates, and what forks take: folders are read by a second implementation of
docs/protocols/template.md, and the command line is tried as its users and its enemies do."""

import contextlib
import json
import os
import pty
import random
import select
import shutil
import struct
import subprocess
import sys
import time
import unittest

import test_template
from page_peer import sum_of
from test_template import PAGE, PROGRAM, TIMEOUT

CHUNK = 16 * PAGE
ZERO_SUM = sum_of(bytes(PAGE))


class Broken(Exception):
    """A folder is not as the document says."""


def check(fits, what):
    if not fits:
        raise Broken(what)


def read(*names):
    with open(os.path.join(*names), "rb") as file:
        return file.read()


def manifest_of(folder):
    manifest = json.loads(read(folder, "manifest.json"))
    said = manifest.pop("sum")
    text = json.dumps(manifest, indent=2, sort_keys=True, separators=(",", ": "))
    check(said == f"{sum_of(text.encode()):016x}", "the manifest's sum")
    check((manifest["format"], manifest["version"]) == ("guestmem-template", 1), "format")
    return manifest


def runs_of(folder, manifest):
    """(first page, count) of a difference; of all pages without a parent."""
    count_pages = manifest["image_bytes"] // PAGE
    if "parent" not in manifest:
        check(not os.path.exists(os.path.join(folder, "pages")), "pages without a parent")
        return [(0, count_pages)]
    data = read(folder, "pages")
    runs = list(struct.iter_unpack("<QQ", data))
    for (first, count), (after, _) in zip(runs, [*runs[1:], (count_pages + 1, 0)]):
        check(count > 0 and first + count < after, "runs ascend and do not touch")
    check(manifest["parent"]["pages_sum"] == f"{sum_of(data):016x}", "the sum of the runs")
    check(manifest["parent"]["pages"] == sum(count for _, count in runs), "the count of pages")
    return runs


def content_size(frame):
    """What a zstd frame announces (RFC 8878, 3.1.1.1); without a dictionary."""
    check(frame[:4] == b"\x28\xb5\x2f\xfd", "no zstd frame")
    descriptor = frame[4]
    check(descriptor & 0b1011 == 0, "reserved bits, or a dictionary")
    is_single = bool(descriptor & 0x20)
    at = 5 + (not is_single)
    size_bytes = (1 if is_single else 0, 2, 4, 8)[descriptor >> 6]
    check(size_bytes > 0, "a frame without its content size")
    return int.from_bytes(frame[at:at + size_bytes], "little") + (256 if size_bytes == 2 else 0)


def decompressed(folder, manifest):
    """The image of chunks. Without the program zstd only their structure is looked at."""
    data, index = read(folder, "image"), read(folder, "chunks")
    check(len(data) == manifest["stored_bytes"], "the size of what is stored")
    check(len(index) == -(-manifest["image_bytes"] // CHUNK) * 16, "an entry for each chunk")
    at, words, stored = 0, b"", []
    for number, (offset, size, zero) in enumerate(struct.iter_unpack("<QII", index)):
        check(zero == 0, "padding")
        if size == 0:
            check(offset == 0, "a chunk of zeros")
            continue
        check(offset == at, "frames without gaps")
        expected = min(CHUNK, manifest["image_bytes"] - number * CHUNK)
        check(content_size(data[at:at + size]) == expected, "the content's size")
        words += struct.pack("<QQ", number, sum_of(index[16 * number:16 * number + 16]))
        stored.append((number, expected))
        at += size
    check(at == len(data), "bytes behind the last frame")
    check(manifest["chunks_sum"] == f"{sum_of(words):016x}", "the sum of the chunks")
    if not shutil.which("zstd"):
        raise unittest.SkipTest("the program zstd is missing: only the structure of compressed images was looked at")
    plain = subprocess.run(["zstd", "-dcq"], input=data, capture_output=True, check=True, timeout=TIMEOUT).stdout
    image, at = bytearray(manifest["image_bytes"]), 0
    for number, size in stored:
        image[number * CHUNK:number * CHUNK + size] = plain[at:at + size]
        at += size
    check(at == len(plain), "other frames than announced")
    return bytes(image)


def own_pages(folder, manifest):
    """{page: bytes} of a template's own pages, compared with their sums; None: zstd is missing."""
    is_raw = manifest["encoding"] == "raw"
    check(is_raw != os.path.exists(os.path.join(folder, "chunks")), "an index of a raw image")
    image = read(folder, "image") if is_raw else decompressed(folder, manifest)
    if image is None:
        return None
    check(len(image) == manifest["image_bytes"], "the size of the image")
    sums = struct.unpack(f"<{len(image) // PAGE}Q", read(folder, "sums"))
    runs = runs_of(folder, manifest)
    own = {page for first, count in runs for page in range(first, first + count)}
    words, count_data = b"", 0
    for page, said in enumerate(sums):
        data = image[page * PAGE:page * PAGE + PAGE]
        check(page in own or (said == 0 and not any(data)), "a page that is not the template's")
        check(said == (sum_of(data) ^ ZERO_SUM if any(data) else 0), f"the sum of page {page}")
        if said:
            words += struct.pack("<QQ", page, said)
            count_data += 1
    check(manifest["data_pages"] == count_data, "the count of pages with data")
    check(manifest["sum_of_sums"] == f"{sum_of(words):016x}", "the sum of the sums")
    return {page: image[page * PAGE:page * PAGE + PAGE] for page in own}


def memory_of(store, name):
    """The memory of a template and of all to which it is a difference; None: zstd is missing."""
    chain = [os.path.join(store, name)]
    manifests = [manifest_of(chain[0])]
    while parent := manifests[-1].get("parent"):
        check(len(chain) < 64, "a chain too long")
        chain.append(os.path.join(store, parent["name"]))
        manifests.append(manifest_of(chain[-1]))
        check(manifests[-1]["id"] == parent["id"], "another parent")
    memory = bytearray(manifests[0]["image_bytes"])
    for folder, manifest in zip(reversed(chain), reversed(manifests)):
        pages = own_pages(folder, manifest)
        if pages is None:
            return None
        for page, data in pages.items():
            memory[page * PAGE:page * PAGE + PAGE] = data
    return bytes(memory)


class Parts(test_template.Template):
    def setUp(self):
        super().setUp()
        self.memory = bytearray(read(self.ram))

    def refused(self, pattern, verb, *words, code=1):
        done = self.on(verb, *words)
        self.assertEqual((done.returncode, done.stdout), (code, ""), (verb, words, done.stderr))
        self.assertRegex(done.stderr, "^guestmem: .*" + pattern)

    def done(self, verb, *words):
        done = self.on(verb, *words)
        self.assertEqual((done.returncode, done.stderr), (0, ""), (verb, words))
        return done.stdout

    def diff(self, name, parent, *more):
        self.write("ram", self.memory)
        return json.loads(self.done("diff", name, "--parent", parent, "--memory", self.ram, "--json", *more))

    def assert_is_memory(self, name, memory=None):
        memory = bytes(self.memory if memory is None else memory)
        found = memory_of(self.store, name)
        self.assertTrue(found is None or found == memory, name)
        self.done("verify", name)

    @contextlib.contextmanager
    def held(self, name, *words):
        """A process with forks, and the lines that it prints for them."""
        process = subprocess.Popen([PROGRAM, "template", "fork", name, "--hold", "--json", "--store", self.store,
                                    *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
                                   text=True)
        try:
            count = int(words[words.index("--count") + 1]) if "--count" in words else 1
            yield process, [json.loads(process.stdout.readline()) for _ in range(count)]
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT)

    def change(self, page, data):
        self.memory[page * PAGE:page * PAGE + len(data)] = data


class Differences(Parts):
    def test_only_pages_that_are_not_the_parents_are_stored(self):
        self.make()
        self.assert_is_memory("base")
        self.change(0, b"other")
        self.change(2, bytes(PAGE))         # it becomes zeros
        self.change(5, b"\0\0x")            # it was zeros
        self.change(8, b"x" * 9)            # as it was
        manifest = self.diff("day2", "base")
        self.assertEqual(runs_of(self.path("day2"), manifest), [(0, 1), (2, 1), (5, 1)])
        self.assertEqual((manifest["parent"]["pages"], manifest["data_pages"]), (3, 2))
        self.assert_is_memory("day2")
        self.assertLessEqual(os.stat(self.path("day2", "image")).st_blocks * 512, 2 * PAGE)
        self.assertIn("  parent   base (3 pages are not as there)\n", self.done("show", "day2"))
        self.assertRegex(self.done("list"), r"\nday2 +36K +8K ")
        text = self.done("diff", "same", "--parent", "day2", "--memory", self.ram)
        self.assertRegex(text, "^same: 36K of memory, 0 of it other than in day2, id [0-9a-f]{32}\n$")
        self.assert_is_memory("same")

    def test_a_long_chain_reads_flattens_and_forks_as_the_memory_was(self):
        source = random.Random(7)
        self.memory = bytearray(source.randbytes(50 * PAGE) + bytes(23 * PAGE))
        self.write("ram", self.memory)
        self.make("layer0", "--compress")
        then = [bytes(self.memory)]
        for number in range(1, 9):
            for _ in range(source.randrange(6)):
                self.change(source.randrange(73), source.choice((b"y" * 300, bytes(PAGE), source.randbytes(PAGE))))
            self.diff(f"layer{number}", f"layer{number - 1}", *source.choice(((), ("--compress",), ("--compress=9",))))
            then.append(bytes(self.memory))
        for number, memory in enumerate(then):
            self.assert_is_memory(f"layer{number}", memory)
        for name, more, encoding in (("raw", [], "raw"), ("small", ["--compress=19"], "zstd")):
            manifest = json.loads(self.done("flatten", "layer8", name, "--json", *more))
            self.assertEqual((manifest["encoding"], manifest.get("parent")), (encoding, None))
            self.assert_is_memory(name)
        self.done("flatten", "small", "unpacked")
        self.assertEqual(read(self.path("unpacked", "image")), self.memory)
        data_bytes = json.loads(self.done("show", "raw", "--json"))["data_pages"] * PAGE
        for name in ("layer8", "raw", "small"):
            for mode in (["copy"], ["lazy", "--fill"]):
                line = json.loads(self.done("fork", name, "--json", "--mode", *mode))
                self.assertEqual((line["mapped_bytes"], line["private_bytes"]), (len(self.memory), data_bytes), name)

    def test_a_chain_of_64_is_the_longest(self):
        self.make("layer1")
        for number in range(2, 65):
            self.change(number % 9, b"%d" % number)
            self.diff(f"layer{number}", f"layer{number - 1}")
        self.assert_is_memory("layer64")
        self.refused("64", "diff", "layer65", "--parent", "layer64", "--memory", self.ram)
        self.assertEqual(json.loads(self.done("fork", "layer64", "--json"))["mapped_bytes"], len(self.memory))

    def test_the_state_is_that_of_the_difference(self):
        self.make()
        self.diff("day2", "base", "--state", self.write("state2", b"later registers"))
        self.done("flatten", "day2", "whole")
        self.assertEqual(read(self.path("whole", "state")), b"later registers")

    def test_other_regions_are_refused(self):
        self.make()
        other = self.write("other", self.memory + bytes(PAGE))
        self.refused("region", "diff", "day2", "--parent", "base", "--memory", other)
        self.refused("region", "diff", "day2", "--parent", "base", "--memory", f"{self.ram},at=4K")
        self.refused("base", "diff", "../day2", "--parent", "base", "--memory", self.ram)
        self.assertEqual(os.listdir(self.store), ["base"])

    def test_a_parent_stays_as_long_as_it_is_one(self):
        self.make()
        for name in ("day2", "day3"):
            self.change(1, name.encode())
            self.diff(name, "base")
        self.refused("day2, day3 are differences to it", "rm", "base")
        self.done("rm", "day2")
        self.refused("day3 is a difference to it", "rm", "base")
        with self.held("day3"):
            self.refused("it has forks alive", "rm", "day3")
        self.done("rm", "day3")
        self.done("rm", "base")
        self.assertEqual(os.listdir(self.store), [])

    def test_a_parent_that_is_missing_or_another_is_an_error(self):
        self.make()
        self.change(1, b"changed")
        self.diff("day2", "base")
        os.rename(self.path("base"), self.path("away"))
        for verb in (["show", "day2"], ["verify", "day2"], ["fork", "day2"], ["send", "day2"],
                     ["flatten", "day2", "whole"], ["diff", "day3", "--parent", "day2", "--memory", self.ram]):
            self.refused("base", *verb)
        self.make()
        for verb in (["fork", "day2"], ["fork", "day2", "--mode", "copy"], ["send", "day2"]):
            self.refused("base", *verb)
        self.assertEqual(sorted(os.listdir(self.store)), ["away", "base", "day2"])
        shutil.rmtree(self.path("base"))
        os.rename(self.path("away"), self.path("base"))
        self.assert_is_memory("day2")
        self.done("fork", "day2")



class Words(Parts):
    def test_wrong_words(self):
        self.make()
        memory = ["--memory", self.ram]
        for pattern, *words in (
                ("--parent is required", "diff", "day2", *memory),
                ("either --memory or --qemu", "diff", "day2", "--parent", "base"),
                ("not in range 1 to 19", "make", "new", *memory, "--compress=0"),
                ("not in range 1 to 19", "make", "new", *memory, "--compress=20"),
                ("not in range 1 to 19", "make", "new", *memory, "--compress=much"),
                ("not expected: 3", "make", "new", *memory, "--compress", "3"),
                ("not in range 1 to 19", "send", "base", "--compress=-1"),
                ("--mode", "fork", "base", "--mode", "other"),
                ("--fill is for --mode lazy", "fork", "base", "--fill"),
                ("--fill is for --mode lazy", "fork", "base", "--fill", "--mode", "copy"),
                ("either NAME or --from", "fork"),
                ("either NAME or --from", "fork", "base", "--from", "socket"),
                ("cannot be mapped", "fork", "--from", "socket", "--mode", "map"),
                ("either NAME or --from", "fork", "--from", "socket", "--qemu", "--", "qemu"),
                ("--mode is for forks without --qemu", "fork", "base", "--qemu", "--mode", "copy", "--", "qemu"),
                ("--patience", "fork", "base", "--patience", "0"),
                ("--patience", "receive", "new", "--patience", "-1"),
                ("--count", "fork", "base", "--count", "-1"),
                ("NAME is required", "send"), ("NAME is required", "receive"), ("NEW is required", "flatten", "base"),
                ("--socket is required", "serve", "base"),
                ("--times requires --live", "show", "base", "--times", "1"),
                ("--interval", "show", "base", "--live", "--interval", "0"),
                ("--times", "show", "base", "--live", "--times", "-1")):
            with self.subTest(words):
                self.refused(pattern, *words, code=2)
        self.assertEqual(os.listdir(self.store), ["base"])

    def test_compress_takes_no_word_behind_it(self):
        for number, words in enumerate((["--compress", "NAME"], ["NAME", "--compress"], ["--compress=3", "NAME"],
                                        ["NAME", "--compress=19"])):
            name = f"small{number}"
            self.done("make", *[name if word == "NAME" else word for word in words], "--memory", self.ram)
            self.assertEqual(json.loads(self.done("show", name, "--json"))["encoding"], "zstd")
            self.assertIn("  image    zstd in ", self.done("show", name))
            self.assert_is_memory(name)
        self.change(2, b"other")
        self.assertEqual(self.diff("day2", "small0", "--compress")["encoding"], "zstd")
        self.assert_is_memory("day2")
        self.refused("a compressed image cannot be mapped", "fork", "small0")

    def test_all_json_is_json(self):
        self.make()
        self.diff("day2", "base", "--compress")
        for words in (["list"], ["show", "day2"], ["verify", "day2"], ["flatten", "day2", "whole"],
                      ["show", "base", "--live", "--times", "1"], ["fork", "base"], ["fork", "day2", "--mode", "lazy"]):
            json.loads(self.done(*words, "--json"))


class AlteredDifference(test_template.Altered):
    """The same of a difference with compressed pages; its parent is as it was."""

    FILES = ("manifest.json", "image", "sums", "state", "pages", "chunks")
    FORK = ("fork", "--mode", "copy", "--count", "2")

    def make(self, *_):
        self.write("ram", bytes(PAGE) + b"x" * PAGE * 8)
        super().make("parent")
        self.write("ram", b"z" * PAGE + b"x" * PAGE * 3 + bytes(PAGE) + b"another" + b"x" * (4 * PAGE - 7))
        super().make("base", "--parent", "parent", "--compress", verb="diff")

    def is_harmless(self, name):
        # A decoder of zstd passes over some bits: the memory is as it was. The time is what a fork looks at.
        if name == "image":
            changed_ns = json.loads(read(self.path("base", "manifest.json")))["image_changed_ns"]
            os.utime(self.path("base", "image"), ns=(changed_ns, changed_ns))
            self.assertEqual(self.on("flatten", "base", "whole").returncode, 0)
            return read(self.path("whole", "image")) == read(self.ram)
        return super().is_harmless(name)


class Live(Parts):
    """What `show --live` says of processes with forks."""

    def setUp(self):
        super().setUp()
        self.make()

    def bills(self, name="base", *more):
        return json.loads(self.done("show", name, "--live", "--times", "1", "--json", *more))

    def test_a_process_has_a_line_for_all_of_its_forks(self):
        with self.held("base", "--count", "3") as (one, _), self.held("base") as (other, _):
            bills = {bill["pid"]: bill for bill in self.bills()}
            self.assertEqual({pid: bill["forks"] for pid, bill in bills.items()}, {one.pid: 3, other.pid: 1})
            for bill in bills.values():
                self.assertEqual(bill["mapped_bytes"], bill["forks"] * 9 * PAGE)
                self.assertEqual((bill["private_bytes"], bill["untouched_bytes"] + bill["shared_bytes"]),
                                 (0, bill["mapped_bytes"]))
                self.assertGreater(bill["minor_faults"], 0)
                self.assertNotIn("first_instruction_ns", bill, "no guest runs")
            text = self.done("show", "base", "--live", "--times", "1")
            self.assertRegex(text, rf"\n +{one.pid} +3 +108K ")
            self.assertRegex(text, r"\n +all +4 +144K ")
        self.assertEqual(self.bills(), [], "the dead are not listed")

    def test_forks_that_are_copies_have_nothing_of_the_image(self):
        with self.held("base", "--mode", "copy") as (_, lines):
            self.assertEqual(lines[0]["private_bytes"], 4 * PAGE)
            self.assertEqual([bill["mapped_bytes"] for bill in self.bills()], [0] * len(self.bills()))

    def test_what_a_difference_maps_of_its_parent_counts(self):
        self.change(3, b"changed")
        self.diff("day2", "base")
        with self.held("day2", "--count", "2") as (process, _):
            bills = self.bills("day2")
            self.assertEqual([(bill["pid"], bill["forks"], bill["mapped_bytes"]) for bill in bills],
                             [(process.pid, 2, 2 * 9 * PAGE)])
            self.refused("it has forks alive|is a difference to it", "rm", "base")

    def test_lines_of_json_follow_each_other_until_the_last(self):
        begin = time.monotonic()
        text = self.done("show", "base", "--live", "--interval", "0.2", "--times", "3", "--json")
        self.assertEqual([json.loads(line) for line in text.splitlines()], [[]] * 3)
        self.assertGreaterEqual(time.monotonic() - begin, 0.4)
        self.assertNotIn("\x1b", self.done("show", "base", "--live", "--interval", "0.05", "--times", "2"))

    def test_a_terminal_is_drawn_again(self):
        text = self.on_terminal("show", "base", "--live", "--interval", "0.05", "--times", "3")[1]
        self.assertEqual(text.count(b"\x1b[H\x1b[J"), 3)
        self.assertEqual(text.count(b" PID "), 3)

    def test_a_reader_that_goes_ends_it(self):
        process = subprocess.Popen([PROGRAM, "template", "show", "base", "--live", "--interval", "0.05", "--store",
                                    self.store], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            process.stdout.readline()
            process.stdout.close()
            self.assertNotEqual(process.wait(TIMEOUT), 0)
        finally:
            process.kill()
            process.wait()

    def test_a_stream_of_pages_is_nothing_for_a_terminal(self):
        code, text = self.on_terminal("send", "base")
        self.assertEqual(code, 2)
        self.assertRegex(text, rb"^guestmem: .*terminal: redirect it\r\n$")

    def on_terminal(self, verb, *words):
        """Exit code and all that it prints."""
        master, slave = pty.openpty()
        try:
            process = subprocess.Popen([PROGRAM, "template", verb, *words, "--store", self.store], stdout=slave,
                                       stderr=slave, stdin=subprocess.DEVNULL)
            os.close(slave)
            text, end = b"", time.monotonic() + TIMEOUT
            with contextlib.suppress(OSError):  # EIO: nobody has it any more
                while select.select([master], [], [], max(0, end - time.monotonic()))[0]:
                    text += os.read(master, 65536)
            process.kill()
            return process.wait(), text
        finally:
            os.close(master)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
