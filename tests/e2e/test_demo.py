# SPDX-License-Identifier: Apache-2.0
"""The demo as a user runs it: it does what it says, and leaves nothing behind, also when it is interrupted."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import e2e_case
from processes import Process, wait_until

DEMO = Path(__file__).resolve().parent / "demo.py"
MARK = "GUESTMEM_DEMO_TEST"


def marked_processes(mark):
    """The processes that were started, however indirectly, with this mark in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"{MARK}={mark}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((int(folder.name), (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()))
        except OSError:
            continue
    return found


class DemoTest(unittest.TestCase):
    def setUp(self):
        self.mark = f"{os.getpid()}-{time.monotonic_ns()}"
        self.folder = tempfile.TemporaryDirectory(prefix="guestmem-e2e-")
        self.addCleanup(self.folder.cleanup)

    def start_demo(self):
        # A folder of its own for temporary files shows what stays there.
        command = ["env", f"{MARK}={self.mark}", f"TMPDIR={self.folder.name}", sys.executable, DEMO]
        demo = Process("demo", command)
        self.addCleanup(demo.stop)
        return demo

    def assert_nothing_is_left(self):
        wait_until(lambda: not marked_processes(self.mark), 5, f"end of {marked_processes(self.mark)}")
        self.assertEqual(list(Path(self.folder.name).rglob("*")), [])

    def test_both_guests_print_the_message_and_power_off(self):
        demo = self.start_demo()
        status = demo.wait(240)
        self.assertEqual(status, 0, demo.tail(200))
        for prefix in ("A    |", "B    |"):
            for text in ("ready: slot", "received IRQ and full message: hello world", "agent ended with status 0"):
                demo.wait_for(f"^{prefix.replace('|', '[|]')} {text}", 0)
        demo.wait_for("^Both guests have received 'hello world'", 0)
        self.assertNotIn("\x1b", demo.output(), "colors are for terminals")
        self.assert_nothing_is_left()

    def interrupt_when(self, pattern, number, expected):
        demo = self.start_demo()
        demo.wait_for(pattern, 120)
        demo.send_signal(number)
        self.assertEqual(demo.wait(30), expected, demo.tail())
        self.assert_nothing_is_left()

    def test_ctrl_c_while_the_guests_boot_leaves_nothing(self):
        self.interrupt_when("booting A", signal.SIGINT, 130)

    def test_sigterm_while_the_guests_listen_leaves_nothing(self):
        self.interrupt_when("^A    [|] ready: ", signal.SIGTERM, 143)

    def test_sigkill_takes_the_guests_along(self):
        demo = self.start_demo()
        demo.wait_for("booting A", 120)
        wait_until(lambda: any("qemu" in line for _, line in marked_processes(self.mark)), 20, "start of QEMU")
        demo.kill()
        wait_until(lambda: not marked_processes(self.mark), 20, "end of the demo's processes")

    def test_help_says_what_it_does(self):
        shown = subprocess.run([sys.executable, DEMO, "--help"], capture_output=True, text=True, timeout=20)
        self.assertEqual(shown.returncode, 0, shown.stderr)
        self.assertIn("usage:", shown.stdout)

    def test_a_missing_program_is_a_clear_error(self):
        environment = dict(os.environ, GUESTMEM="/nonexistent/guestmem")
        shown = subprocess.run([sys.executable, DEMO], env=environment, capture_output=True, text=True, timeout=20)
        self.assertEqual(shown.returncode, 1)
        self.assertIn("/nonexistent/guestmem: not there", shown.stdout)


if __name__ == "__main__":
    e2e_case.main()
