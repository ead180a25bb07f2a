# SPDX-License-Identifier: Apache-2.0
"""`guestmem backend explain` as a person reads it: all of the text, line by line."""

import os
import resource
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.environ["GUESTMEM"]
TIMEOUT = 60


def explain(*words, **options):
    return subprocess.run([PROGRAM, "backend", "explain", *words], capture_output=True, text=True, timeout=TIMEOUT,
                          **options)


class BackendExplain(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "ram")

    def write(self, size):
        with open(self.path, "wb") as file:
            file.write(b"a" * size)

    def assert_says(self, text, *lines, code=0):
        done = explain(text)
        self.assertEqual(done.stderr, "")
        self.assertEqual(done.stdout.splitlines(), [line.replace("PATH", self.path) for line in lines])
        self.assertEqual(done.returncode, code)

    def test_ram_with_prealloc(self):
        self.assert_says(
            "memory-backend-ram,id=a,size=1M,prealloc=on",
            "a: memory-backend-ram,id=a,size=1M,prealloc=on",
            "  opened   nothing is opened",
            "  mapped   1048576 bytes in pages of 4K, private, writable: the guest sees RAM",
            "  memory   1M now, 1M at worst",
            "  at exit  the memory goes with its last user",
            "  discard  pages are dropped and read as zeros",
            "           balloon: warning: prealloc=on takes all pages at the beginning, and this gives them "
            "back: later "
            "they may be lacking",
            "           free-page-reporting: warning: prealloc=on takes all pages at the beginning, and this "
            "gives them "
            "back: later they may be lacking",
            "           unplug: refused: prealloc=on takes all pages at the beginning, and this gives them back: later "
            "they may be lacking")

    def test_the_clone_of_a_template(self):
        self.write(8192)
        self.assert_says(
            f"memory-backend-file,id=vm1,size=8K,mem-path={self.path},readonly=on,rom=off",
            "vm1: memory-backend-file,id=vm1,size=8K,mem-path=PATH,readonly=on,rom=off",
            "  opened   PATH is opened for reading",
            "  mapped   8192 bytes in pages of 4K, private, writable: the guest sees RAM, and what it writes "
            "stays in this "
            "VM",
            "  memory   0 now, 8K at worst",
            "  at exit  the file stays as it is",
            "  discard  this VM's copies are dropped, and the file's bytes are read again; the file stays as it is",
            "           free-page-reporting: warning: a page that was reported free reads as the file's "
            "bytes, and not as "
            "zeros")

    def test_rom(self):
        self.write(4096)
        self.assert_says(
            f"memory-backend-file,id=bios,size=4K,mem-path={self.path},readonly=on,share=on",
            "bios: memory-backend-file,id=bios,size=4K,mem-path=PATH,share=on,readonly=on",
            "  opened   PATH is opened for reading",
            "  mapped   4096 bytes in pages of 4K, shared, read-only: the guest sees ROM",
            "  memory   0 now, 0 at worst",
            "  at exit  the file stays as it is",
            "  discard  ROM is what the guest shall find there")

    def test_what_is_refused_does_none_of_it(self):
        self.assert_says(
            f"memory-backend-file,id=a,size=4K,mem-path={self.path},readonly=on",
            "a: memory-backend-file,id=a,size=4K,mem-path=PATH,readonly=on",
            "  refused  PATH does not exist; with readonly=on none is made [file-missing]",
            "           name a file that is there",
            code=1)

    def test_a_path_that_cannot_be_looked_at_does_not_hide_the_others(self):
        loop = os.path.join(self.folder.name, "loop")
        os.symlink(loop, loop)
        done = explain(f"memory-backend-file,id=a,size=4K,mem-path={loop}", "memory-backend-ram,id=b,size=4K")
        self.assertEqual(done.returncode, 1)
        self.assertIn("[path-unknown]", done.stdout)
        self.assertIn("b: memory-backend-ram,id=b,size=4K\n  opened   nothing is opened", done.stdout)

    def test_all_limits_of_locked_memory_are_told(self):
        done = explain("--locked", "memory-backend-ram,id=a,size=1M", preexec_fn=self.without_locked_memory)
        if os.geteuid() == 0:
            self.assertEqual(done.returncode, 0, "root may lock all of it (CAP_IPC_LOCK)")
        else:
            self.assertIn("[memlock-limit]", done.stdout)

    @staticmethod
    def without_locked_memory():
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (65536, 65536))


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
