# SPDX-License-Identifier: Apache-2.0
"""Child processes of the end-to-end tests: watched, bounded, and gone when the test is gone.

A Process runs in a session of its own, so that Ctrl-C reaches only the test, which then stops its children.
The kernel ends a child when the thread that started it dies: start processes from the main thread.
Each output line is kept with the time at which it came and is given to `on_line` if there is one.

A program that wants nothing left over after Ctrl-C, SIGTERM and SIGHUP calls exit_on_signals(), makes what it
has to remove inside of undisturbed(), and ends with ignore_signals() and stop_all(). Locks are taken inside of
undisturbed(), too: an exception between the lines of a Condition leaves it neither held nor free.
"""

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from dataclasses import dataclass

MAX_LINE_BYTES = 16384
MAX_KEPT_LINES = 100000
_SIGNAL_LATENCY = 0.1  # seconds for which a wait for a line does not hear a signal

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)
_started = []  # every Process until stop_all()


@dataclass(frozen=True)
class Line:
    time: float  # time.monotonic()
    text: str


def printable(data):
    """Bytes from a guest as text that is safe to print."""
    text = data.decode("utf-8", "replace").rstrip("\r\n")
    return "".join(c if c.isprintable() or c == "\t" else f"\\x{ord(c):02x}" for c in text)


class Process:
    def __init__(self, name, arguments, on_line=None, death_signal=signal.SIGKILL):
        self.name = name
        self.arguments = [str(a) for a in arguments]
        self.started = time.monotonic()
        self.ended = None
        self._on_line = on_line
        self._lines = []
        self._closed_streams = 0
        self._readers = []
        self._changed = threading.Condition()
        parent = os.getpid()

        def die_with_parent():
            _libc.prctl(_PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
            if os.getppid() != parent:
                os._exit(1)

        with undisturbed():
            self._child = subprocess.Popen(
                self.arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True, preexec_fn=die_with_parent)
            _started.append(self)
            self._readers = [threading.Thread(target=self._read, args=(stream,), daemon=True)
                             for stream in (self._child.stdout, self._child.stderr)]
            for reader in self._readers:
                reader.start()

    @property
    def pid(self):
        return self._child.pid

    @property
    def lines(self):
        with undisturbed(), self._changed:
            return list(self._lines)

    def output(self):
        return "\n".join(line.text for line in self.lines)

    def is_running(self):
        return self._child.poll() is None

    def send_signal(self, number):
        self._child.send_signal(number)

    def wait_for(self, pattern, timeout, since=0):
        """The first line from index `since` on in which the pattern is found; fails when it cannot come."""
        wanted = re.compile(pattern)
        deadline = time.monotonic() + timeout
        position = since
        while True:
            with undisturbed(), self._changed:
                if position == len(self._lines) and self._closed_streams < len(self._readers):
                    self._changed.wait(min(max(deadline - time.monotonic(), 0), _SIGNAL_LATENCY))
                lines = self._lines[position:]
                has_ended = self._closed_streams == len(self._readers)
            for line in lines:
                if wanted.search(line.text):
                    return line
            position += len(lines)
            if has_ended:
                raise AssertionError(f"{self.name} ended without a line that has '{pattern}':\n{self.tail()}")
            if time.monotonic() >= deadline:
                raise AssertionError(f"{self.name}: no line with '{pattern}' in {timeout} s:\n{self.tail()}")

    def tail(self, count=30):
        return "\n".join(f"  {self.name} | {line.text}" for line in self.lines[-count:]) or "  (no output)"

    def wait(self, timeout):
        """The exit status, negative for a signal."""
        try:
            status = self._child.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.name} (pid {self.pid}) is still running after {timeout} s:\n"
                                 f"{self.tail()}") from None
        self._finish()
        return status

    def stop(self, timeout=10):
        """SIGTERM, then SIGKILL when that did not help; no error when it has ended already."""
        if self.is_running():
            self._child.terminate()
            try:
                self._child.wait(timeout)
            except subprocess.TimeoutExpired:
                self._child.kill()
        return self._reap()

    def kill(self):
        """SIGKILL."""
        if self.is_running():
            self._child.kill()
        return self._reap()

    def _reap(self):
        self._child.wait(10)
        self._finish()
        return self._child.returncode

    def _finish(self):
        if self.ended is None:
            self.ended = time.monotonic()
        for reader in self._readers:
            reader.join(5)
        for stream in (self._child.stdout, self._child.stderr):
            if not any(reader.is_alive() for reader in self._readers):
                stream.close()

    def _read(self, stream):
        while data := stream.readline(MAX_LINE_BYTES):
            line = Line(time.monotonic(), printable(data))
            with self._changed:
                if len(self._lines) < MAX_KEPT_LINES:
                    self._lines.append(line)
                self._changed.notify_all()
            if self._on_line:
                try:
                    self._on_line(self, line)
                except OSError:  # nobody listens to us; the child must not block on its output
                    self._on_line = None
        with self._changed:
            self._closed_streams += 1
            self._changed.notify_all()


class _Signals:
    """Turns the signals that end a program into exceptions, but not in the middle of undisturbed()."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    depth = 0
    pending = None

    @classmethod
    def arrive(cls, number, _frame):
        if cls.depth:
            cls.pending = number
        else:
            cls.leave(number)

    @staticmethod
    def leave(number):
        raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def exit_on_signals():
    """Ctrl-C raises KeyboardInterrupt, SIGTERM and SIGHUP raise SystemExit, so that the program unwinds."""
    for number in _Signals.numbers:
        signal.signal(number, _Signals.arrive)


def ignore_signals():
    """From here on the program cleans up: a second Ctrl-C does not disturb it."""
    for number in _Signals.numbers:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def undisturbed():
    """What is made in here is also recorded: a signal is heard at the end. Python runs handlers in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _Signals.depth += 1
    try:
        yield
    finally:
        _Signals.depth -= 1
        if not _Signals.depth and _Signals.pending:
            number, _Signals.pending = _Signals.pending, None
            _Signals.leave(number)


def stop_all():
    """Ends what is still running, the youngest first."""
    for process in reversed(_started):
        process.stop()
    _started.clear()


def wait_until(question, timeout, what):
    """Asks every 10 ms until the answer is true; the answer. `what` is text, or makes it when it is needed."""
    deadline = time.monotonic() + timeout
    while not (answer := question()):
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what() if callable(what) else what}: not within {timeout} s")
        time.sleep(0.01)
    return answer
