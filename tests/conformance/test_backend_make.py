# SPDX-License-Identifier: Apache-2.0
"""`guestmem backend make` as a user meets it: what it makes, what it leaves, what it says on a terminal."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import tempfile
import time
import unittest

PROGRAM = os.environ["GUESTMEM"]
TIMEOUT = 60


def make(*words, **options):
    return subprocess.run([PROGRAM, "backend", "make", *words], capture_output=True, text=True, timeout=TIMEOUT,
                          **options)


class BackendMake(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = os.path.join(self.folder.name, "ram")

    def test_it_makes_each_and_says_how_long_it_took(self):
        done = make("memory-backend-ram,id=a,size=4M,prealloc=on", "memory-backend-memfd,id=b,size=1M")
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertRegex(done.stdout, r"^a: 4M made in [0-9.]+ ms\nb: 1M made in [0-9.]+ ms\n$")

    def test_json_is_a_line_for_each(self):
        done = make("--json", "memory-backend-ram,id=a,size=4M", "memory-backend-memfd,id=b,size=1M")
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        self.assertEqual([(line["id"], line["mapped_bytes"]) for line in lines], [("a", 4 << 20), ("b", 1 << 20)])
        self.assertTrue(all(line["made_ns"] > 0 for line in lines))

    def test_a_file_stays_with_its_pages(self):
        text = f"memory-backend-file,id=a,size=1M,share=on,prealloc=on,mem-path={self.path}"
        self.assertEqual(make(text).returncode, 0)
        status = os.stat(self.path)
        self.assertEqual(status.st_size, 1 << 20)
        self.assertGreaterEqual(status.st_blocks * 512, 1 << 20)

    def test_discard_data_empties_the_file_at_the_end(self):
        with open(self.path, "wb") as file:
            file.write(b"a" * (2 << 20))
        text = f"memory-backend-file,id=a,size=1M,share=on,discard-data=on,mem-path={self.path}"
        done = make(text)
        self.assertEqual(done.returncode, 0)
        self.assertIn("[discard-zeroes-file]", done.stderr)
        with open(self.path, "rb") as file:
            self.assertEqual(file.read(), b"\0" * (1 << 20) + b"a" * (1 << 20))

    def test_what_is_refused_is_not_begun(self):
        done = make("memory-backend-ram,id=a,size=4M",
                    f"memory-backend-file,id=b,size=4097,mem-path={self.path}")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("[size-not-whole-pages]", done.stderr)
        self.assertEqual(os.listdir(self.folder.name), [])

    def test_what_does_not_fit_together_is_not_begun(self):
        done = make("memory-backend-ram,id=a,size=4M", "memory-backend-ram,id=a,size=4M")
        self.assertEqual((done.returncode, done.stdout), (1, ""))
        self.assertIn("[id-twice]", done.stderr)

    def test_wrong_words_have_their_own_exit_code(self):
        done = make("memory-backend-ram,id=a,size=4X")
        self.assertEqual(done.returncode, 2)
        self.assertIn("size", done.stderr)
        self.assertEqual(make().returncode, 2)

    def test_hold_keeps_it_until_the_end_of_input(self):
        process = subprocess.Popen([PROGRAM, "backend", "make", "--hold", "memory-backend-memfd,id=held,size=1M"],
                                   stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            self.assertIn("held until", process.stderr.readline())
            with open(f"/proc/{process.pid}/maps", encoding="ascii", errors="replace") as maps:
                self.assertIn("/memfd:held (deleted)", maps.read())
            out, _ = process.communicate(timeout=TIMEOUT)
            self.assertRegex(out, "^held: 1M made in")
            self.assertEqual(process.returncode, 0)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()

    def test_a_terminal_shows_how_far_it_is_and_a_file_does_not(self):
        free = os.statvfs(self.folder.name)
        if free.f_bavail * free.f_frsize < 1 << 30:
            self.skipTest("SKIPPED: the folder for temporary files has less than 1 GiB")
        text = f"memory-backend-file,id=slow,size=512M,share=on,prealloc=on,mem-path={self.path}"
        shown = self.on_a_terminal(text)
        os.unlink(self.path)
        self.assertRegex(shown, r"\r\x1b\[Kslow: taking pages \[=* *\] [0-9]+M of 512M, [0-9]+ s left")
        self.assertRegex(shown, r"\r\x1b\[Kslow: 512M made in", "the bar is gone when it is done")
        self.assertEqual(make(text).stderr, "")

    def stop_for_a_while(self, process):
        """Between the file's making and its last page, so that the work takes longer than a bar's patience."""
        while process.poll() is None and not (os.path.exists(self.path) and os.path.getsize(self.path)):
            time.sleep(0.001)
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)
        process.send_signal(signal.SIGCONT)

    def on_a_terminal(self, *words):
        ours, theirs = pty.openpty()
        process = subprocess.Popen([PROGRAM, "backend", "make", *words], stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self.stop_for_a_while(process)
        shown = b""
        deadline = time.monotonic() + TIMEOUT
        try:
            while time.monotonic() < deadline:
                if not select.select([ours], [], [], 1)[0]:
                    continue
                try:
                    piece = os.read(ours, 65536)
                except OSError:  # EIO: nobody has the other side
                    break
                if not piece:
                    break
                shown += piece
        finally:
            if time.monotonic() >= deadline:
                process.kill()
            process.wait(TIMEOUT)
            os.close(ours)
        return shown.decode("ascii", "replace")


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
