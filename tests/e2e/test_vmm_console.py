# SPDX-License-Identifier: Apache-2.0
"""The console of `guestmem run`: keys reach the guest, Ctrl-A x ends it, output that nobody reads hangs nothing."""

import fcntl
import os
import pty
import select
import signal
import subprocess
import termios
import time

import processes
import vmm
import vmm_case
from kept_service import links_of  # of tests/conformance, by the path that e2e_case has added

F_SETPIPE_SZ = 1031
SMALL_PIPE_BYTES = 4096
CTRL_A = b"\x01"


class Terminal:
    """The program on a terminal of its own, as the one who types sees it."""

    def __init__(self, words):
        self.master, self.slave = pty.openpty()
        with processes.undisturbed():
            self.child = subprocess.Popen(words, stdin=self.slave, stdout=self.slave, stderr=self.slave,
                                          start_new_session=True)
        self.seen = b""

    def close(self):
        if self.child.poll() is None:
            self.child.kill()
        self.child.wait()
        os.close(self.master)
        os.close(self.slave)

    def type(self, keys):
        os.write(self.master, keys)

    def wait_for(self, text, timeout=vmm_case.PATIENCE):
        deadline = time.monotonic() + timeout
        while text not in self.seen:
            if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
                raise AssertionError(f"no {text!r} on the terminal in {timeout} s: {self.seen[-2000:]!r}")
            self.seen += os.read(self.master, 65536)
        self.seen = self.seen.split(text, 1)[1]

    def is_raw(self):
        return not termios.tcgetattr(self.slave)[3] & termios.ICANON


class ConsoleTest(vmm_case.VmmCase):
    def words(self, options="", vdevs=""):
        file = self.folder / "echo.qvmconf"
        file.write_text(vmm.text_of(self.name_of("echo"), self.payload("echo"), options, vdevs))
        return vmm.command(self.program, file)

    def open_terminal(self):
        terminal = Terminal(self.words())
        self.addCleanup(terminal.close)
        terminal.wait_for(b"echo listens")
        return terminal

    def popen(self, words, **options):
        with processes.undisturbed():
            child = subprocess.Popen(words, start_new_session=True, **{"stdin": subprocess.DEVNULL,
                                                                       "stdout": subprocess.PIPE,
                                                                       "stderr": subprocess.PIPE, **options})
        self.addCleanup(child.wait)
        self.addCleanup(lambda: child.poll() is None and child.kill())
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream:
                self.addCleanup(stream.close)
        return child


class TerminalTest(ConsoleTest):
    def test_keys_reach_the_guest_one_by_one_and_the_terminal_is_as_before_afterwards(self):
        terminal = self.open_terminal()
        self.assertTrue(terminal.is_raw())
        for key in (b"a", b"Z", b"\x03"):
            terminal.type(key)
            terminal.wait_for(b"heard " + key)
        terminal.type(b"q")
        terminal.wait_for(b"done 1")
        self.assertEqual(terminal.child.wait(vmm_case.PATIENCE), vmm.PASSED)
        self.assertFalse(terminal.is_raw())

    def test_ctrl_a_x_ends_the_machine(self):
        terminal = self.open_terminal()
        terminal.type(CTRL_A + b"x")
        self.assertEqual(terminal.child.wait(vmm_case.PATIENCE), vmm.ENDED)
        self.assertFalse(terminal.is_raw())

    def test_ctrl_a_twice_is_one_for_the_guest(self):
        terminal = self.open_terminal()
        terminal.type(CTRL_A + CTRL_A)
        terminal.wait_for(b"heard " + CTRL_A)

    def test_ctrl_a_p_pauses_and_lets_go_on(self):
        terminal = self.open_terminal()
        terminal.type(CTRL_A + b"p")
        terminal.type(b"k" + CTRL_A + b"p")
        terminal.wait_for(b"heard k")

    def test_a_signal_leaves_the_terminal_as_it_was(self):
        terminal = self.open_terminal()
        terminal.child.send_signal(signal.SIGTERM)
        self.assertEqual(terminal.child.wait(vmm_case.PATIENCE), vmm.ENDED)
        self.assertFalse(terminal.is_raw())


class PipeTest(ConsoleTest):
    def test_what_stands_in_a_pipe_reaches_the_guest_before_its_end(self):
        child = self.popen(self.words(), stdin=subprocess.PIPE)
        out, _ = child.communicate(b"abq", timeout=vmm_case.PATIENCE)
        self.assertEqual(child.returncode, vmm.PASSED, out)
        self.assertIn(b"heard a\nheard b\nheard q\n", out)

    def test_a_file_is_input_too(self):
        file = self.folder / "keys"
        file.write_bytes(b"xyq")
        with open(file, "rb") as keys:
            child = self.popen(self.words(), stdin=keys)
        out, _ = child.communicate(timeout=vmm_case.PATIENCE)
        self.assertEqual(child.returncode, vmm.PASSED, out)
        self.assertIn(b"heard x\nheard y\nheard q\n", out)

    def test_endless_input_that_cannot_be_waited_for_ends_with_the_machine(self):
        file = self.folder / "mute.qvmconf"
        file.write_text(f"system {self.name_of('mute')}\nram 64M\nload {self.payload('hello')}\n")
        for words in (vmm.command(self.program, file), self.words()):
            with open("/dev/zero", "rb") as zeros:
                child = self.popen(words, stdin=zeros)
            time.sleep(0.5)
            child.terminate()
            child.communicate(timeout=vmm_case.PATIENCE)
            self.assertIn(child.returncode, (vmm.ENDED, vmm.PASSED))

    def test_output_that_is_closed_early_does_not_stop_the_guest(self):
        child = self.popen(self.words("flood=500 timeout=500"))
        child.stdout.readline()
        child.stdout.close()
        self.assertEqual(child.wait(vmm_case.PATIENCE), vmm.FAILED, "the guest has heard no q, and said so")

    def test_output_that_nobody_reads_does_not_stop_the_guest(self):
        child = self.popen(self.words("flood=500 timeout=500"))
        fcntl.fcntl(child.stdout, F_SETPIPE_SZ, SMALL_PIPE_BYTES)
        self.assertEqual(child.wait(vmm_case.PATIENCE), vmm.FAILED)

    def test_streams_that_are_closed_from_the_start_are_taken_by_nothing_else(self):
        """The first file that is opened would get a closed stream's number, and be written to."""
        child = self.popen(self.words(), stdout=None, stderr=None,
                           preexec_fn=lambda: [os.close(number) for number in (0, 1, 2)])
        fds = f"/proc/{child.pid}/fd"

        self.wait_until(lambda: "anon_inode:kvm-vcpu:0" in links_of(fds), "the machine is made")
        self.assertLessEqual({os.readlink(f"{fds}/{name}") for name in os.listdir(fds) if int(name) < 3}, {"/dev/null"})
        child.terminate()
        self.assertEqual(child.wait(vmm_case.PATIENCE), vmm.ENDED)


if __name__ == "__main__":
    vmm_case.main()
