# SPDX-License-Identifier: Apache-2.0
"""`guestmem template` as a user meets it, and template folders that somebody has altered."""

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = os.environ["GUESTMEM"]
TIMEOUT = 60
PAGE = 4096


def template(*words, **options):
    return subprocess.run([PROGRAM, "template", *words], capture_output=True, text=True, timeout=TIMEOUT, **options)


class Template(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.store = os.path.join(self.folder, "store")
        self.ram = self.write("ram", random.Random(1).randbytes(3 * PAGE) + bytes(5 * PAGE) + b"x" * PAGE)
        self.state = self.write("state", b"registers")

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def path(self, *names):
        return os.path.join(self.store, *names)

    def make(self, name="base", *more, verb="make"):
        done = template(verb, name, "--store", self.store, "--memory", self.ram, "--state", self.state, *more)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def on(self, verb, *words):
        return template(verb, *words, "--store", self.store)


class Commands(Template):
    def test_make_list_show_verify_rm(self):
        self.assertRegex(self.make("base", "--note", "source=a test"),
                         "^base: 36K of memory, 16K stored, id [0-9a-f]{32}\n$")
        self.assertEqual(sorted(os.listdir(self.path("base"))), ["image", "manifest.json", "state", "sums"])
        self.assertRegex(self.on("list").stdout, r"\nbase +36K +16K +0  2")
        shown = self.on("show", "base").stdout
        self.assertIn("  note     source: a test\n", shown)
        self.assertIn("RAM ram\n", shown)
        self.assertEqual(self.on("verify", "base").stdout, "base: 4 pages and the state are as they were\n")
        removed = self.on("rm", "base")
        self.assertEqual((removed.returncode, removed.stdout, removed.stderr), (0, "", ""))
        self.assertEqual(os.listdir(self.store), [])

    def test_the_image_is_the_memory_and_zeros_take_no_blocks(self):
        self.ram = self.write("ram", bytes(64 << 20))
        with open(self.ram, "r+b") as file:
            file.seek(33 << 20)
            file.write(b"y" * PAGE)
        self.make()
        with open(self.ram, "rb") as ram, open(self.path("base", "image"), "rb") as image:
            self.assertEqual(ram.read(), image.read())
        self.assertLess(os.stat(self.path("base", "image")).st_blocks * 512, 1 << 20)

    def test_regions_have_places(self):
        done = template("make", "two", "--store", self.store, "--json", "--memory", f"{self.ram},name=low,size=16K",
                        "--memory", f"{self.ram},name=high,at=4G,offset=8K,rom")
        manifest = json.loads(done.stdout)
        keys = ("name", "guest_address", "size", "image_offset", "rom")
        self.assertEqual([tuple(region[key] for key in keys) for region in manifest["regions"]],
                         [("low", 0, 4 * PAGE, 0, False), ("high", 4 << 30, 7 * PAGE, 4 * PAGE, True)])
        self.assertEqual(json.loads(self.on("show", "two", "--json").stdout)["id"], manifest["id"])

    def test_wrong_words_and_worlds(self):
        for words, code in ((["a b"], 1), (["base", "--memory", "/nowhere"], 1),
                            (["base", "--memory", f"{self.ram},x=1"], 2),
                            (["base", "--memory", f"{self.ram},size=5000"], 1),
                            (["base", "--memory", f"{self.ram},size=1G"], 1),
                            (["base", "--memory", f"{self.ram},offset=1G"], 1), ([], 2)):
            memory = [] if "--memory" in words else ["--memory", self.ram]
            done = template("make", *words, *memory, "--store", self.store)
            self.assertEqual((done.returncode, done.stdout), (code, ""), words)
            self.assertTrue(done.stderr.startswith("guestmem: "), done.stderr)
        self.assertEqual(os.listdir(self.store), [], "and nothing is left")
        for verb in ("show", "verify", "fork", "rm"):
            done = self.on(verb, "nowhere")
            self.assertEqual(done.returncode, 1, verb)
            self.assertIn("nowhere", done.stderr)

    def test_a_name_is_made_once(self):
        self.make()
        self.assertIn("exists", template("make", "base", "--store", self.store, "--memory", self.ram).stderr)

    def test_a_path_is_a_folder(self):
        path = os.path.join(self.folder, "here", "base")
        os.mkdir(os.path.dirname(path))
        self.assertEqual(template("make", path, "--memory", self.ram).returncode, 0)
        self.assertEqual(template("verify", path + "/").returncode, 0)
        self.assertEqual(template("rm", path).returncode, 0)

    def test_forks_hold_the_template(self):
        self.make()
        process = subprocess.Popen([PROGRAM, "template", "fork", "base", "--count", "3", "--hold", "--json", "--store",
                                    self.store], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.DEVNULL, text=True)
        try:
            lines = [json.loads(process.stdout.readline()) for _ in range(3)]
            self.assertEqual(len({line["generation"] for line in lines}), 3)
            self.assertEqual({line["mapped_bytes"] for line in lines}, {9 * PAGE})
            self.assertEqual({line["private_bytes"] for line in lines}, {0})
            self.assertIn(f"in use   by process {process.pid} since", self.on("show", "base").stdout)
            refused = self.on("rm", "base")
            self.assertEqual(refused.returncode, 1)
            self.assertIn(f"it has forks alive (processes {process.pid})", refused.stderr)
        finally:
            process.kill()
            process.communicate(timeout=TIMEOUT)
        self.assertNotIn("in use", self.on("show", "base").stdout, "the kernel has dropped the lease")
        self.assertEqual(self.on("rm", "base").returncode, 0)

    def test_a_copy_that_keeps_the_time_is_as_good(self):
        self.make()
        subprocess.run(["cp", "-a", self.path("base"), self.path("copy")], check=True)
        self.assertEqual(self.on("fork", "copy").returncode, 0)
        subprocess.run(["cp", "-r", self.path("base"), self.path("late")], check=True)
        late = self.on("fork", "late")
        self.assertEqual(late.returncode, 1)
        self.assertIn("cp --preserve", late.stderr)
        self.assertEqual(self.on("verify", "late").returncode, 0)


class Altered(Template):
    """Whatever stands in the folder: an answer, an error, and never a signal, much time or much memory."""

    FILES = ("manifest.json", "image", "sums", "state")
    FORK = ("fork", "--count", "2")

    def setUp(self):
        super().setUp()
        self.make()
        self.random = random.Random(20260821)
        # The address space of a sanitizer is no sign of much memory.
        limited = ["prlimit", f"--as={4 << 30}"]
        is_possible = subprocess.run([*limited, PROGRAM, "--version"], capture_output=True, check=False).returncode == 0
        self.limited = limited if is_possible else []

    def try_all(self, what):
        for verb in (["verify"], self.FORK, ["show"], ["list"]):
            words = verb if verb == ["list"] else [verb[0], "base", *verb[1:]]
            begin = time.monotonic()
            done = subprocess.run([*self.limited, PROGRAM, "template", *words, "--store", self.store],
                                  capture_output=True, timeout=TIMEOUT)
            self.assertIn(done.returncode, (0, 1), (what, words, done.stderr))
            self.assertLess(time.monotonic() - begin, 20, (what, words))
        return self.on("verify", "base").returncode

    def alter(self, name, change):
        path = self.path("base", name)
        with open(path, "rb") as file:
            content = bytearray(file.read())
        os.chmod(path, 0o600)
        with open(path, "wb") as file:
            file.write(change(content))
        os.chmod(path, 0o400)

    def restored(self):
        shutil.rmtree(self.store)
        self.make()

    def flipped(self, content):
        content[self.random.randrange(len(content))] ^= 1 << self.random.randrange(8)
        return content

    def is_harmless(self, name):
        # A blank of the manifest may be another blank.
        return name == "manifest.json"

    def test_a_flipped_bit_anywhere(self):
        for name in self.FILES:
            for round_ in range(12):
                self.alter(name, self.flipped)
                is_good = self.try_all((name, round_)) == 0
                self.assertTrue(not is_good or self.is_harmless(name), name)
                self.restored()

    def test_other_lengths(self):
        for name in self.FILES:
            for change in (lambda content: b"", lambda content: content[:-1], lambda content: content + b"\0" * PAGE,
                           lambda content: content * 50):
                self.alter(name, change)
                self.try_all(name)
                self.restored()

    def test_fields_of_the_manifest(self):
        with open(self.path("base", "manifest.json"), encoding="ascii") as file:
            manifest = json.load(file)
        values = (None, -1, 0, 1, 4097, 2**63, 2**64 - 1, 2**64 - 4096, 1e300, "", "x" * 300, "../..", [], {}, [[]],
                  True)
        for key in manifest:
            for value in self.random.sample(values, 4):
                changed = dict(manifest, **{key: value})
                if changed == manifest:
                    continue
                self.alter("manifest.json", lambda _: json.dumps(changed).encode())
                self.assertEqual(self.on(self.FORK[0], "base", *self.FORK[1:]).returncode, 1, (key, value))
                self.try_all((key, value)) if key in ("image_bytes", "regions") else None


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
