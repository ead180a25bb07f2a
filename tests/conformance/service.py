# SPDX-License-Identifier: Apache-2.0
"""Starts and stops `guestmem share serve` for the conformance tests.

`Service` is one running service in a folder of its own. `ConformanceCase` is the base of all
test cases: it makes the folder, starts services, and at the end stops each by SIGTERM and
checks that it ends with code 0 and without a complaint. `main` runs a file's tests and turns
what could not run into "SKIPPED: why" and exit code 77.

The program is $GUESTMEM.
"""

import os
import random
import re
import resource
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
import unittest

SKIP_CODE = 77
NOBODY = 65534
READY = re.compile(r"^guestmem-share: info: ready: ", re.MULTILINE)
LOG_LINE = re.compile(r"^guestmem-share: (info|warning|error): \S")
# Sanitizers and a loaded machine make everything slower; waits are bounds, not delays.
START_SECONDS = 20.0
STOP_SECONDS = 10.0


def program():
    """The path of the guestmem program, or None."""
    path = os.environ.get("GUESTMEM", "")
    return path if path and os.access(path, os.X_OK) else None


def raise_descriptor_limit():
    """Takes all descriptors that the hard limit allows; returns their number."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def is_instrumented():
    """Whether the program has a sanitizer, which makes system calls of its own: then it has no filter of them."""
    with open(program(), "rb") as file:
        text = file.read()
    return b"__asan_init" in text or b"__tsan_init" in text


def need_root(test):
    return unittest.skipUnless(os.geteuid() == 0, "acting as another uid needs root")(test)


def wait_until(condition, timeout=5.0, step=0.005):
    """Polls until condition() is true; returns its value, or the last one at the deadline."""
    deadline = time.monotonic() + timeout
    while True:
        value = condition()
        if value or time.monotonic() >= deadline:
            return value
        time.sleep(step)


def seeded_random(name):
    """A generator whose seed is printed; GUESTMEM_TEST_SEED repeats a run."""
    seed = int(os.environ.get("GUESTMEM_TEST_SEED", "20240229"))
    print(f"{name}: seed {seed} (GUESTMEM_TEST_SEED)", flush=True)
    return random.Random(seed)


def run_as(uid, function, timeout=20.0):
    """Runs function() in a child with that uid and gid; returns what it returns (a string).

    The child reports through a pipe and leaves without cleanups that belong to the parent.
    """
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        code = 0
        try:
            os.close(read_end)
            signal.alarm(int(timeout))
            os.setgroups([])
            os.setresgid(uid, uid, uid)
            os.setresuid(uid, uid, uid)
            os.write(write_end, str(function()).encode())
        except BaseException as problem:  # the child must never return into the test runner
            os.write(write_end, f"{type(problem).__name__}: {problem}".encode())
            code = 1
        os._exit(code)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


class Service:
    """One `guestmem share serve` in the foreground.

    arguments follow `share serve`. nofile sets RLIMIT_NOFILE (soft and hard), uid runs it as
    another user, notify is the value of NOTIFY_SOCKET.
    """

    def __init__(self, arguments, log_path, *, nofile=None, uid=None, notify=None, binary=None,
                 cwd=None):
        self.arguments = [binary or program(), "share", "serve", *map(str, arguments)]
        self.log_path = log_path
        environment = {key: value for key, value in os.environ.items()
                       if key not in ("NOTIFY_SOCKET", "GUESTMEM_SHARE_CONTROL")}
        # With the address sanitizer freed memory stays resident in its quarantine (256 MiB), which would hide
        # what a test of memory looks for; a small one still finds every use after free that comes soon.
        environment["ASAN_OPTIONS"] = ":".join(
            filter(None, [environment.get("ASAN_OPTIONS"), "quarantine_size_mb=1"]))
        if notify:
            environment["NOTIFY_SOCKET"] = notify
        extra = {}
        if uid is not None:
            extra = {"user": uid, "group": uid, "extra_groups": []}

        def limit():
            resource.setrlimit(resource.RLIMIT_NOFILE, (nofile, nofile))

        with open(log_path, "wb") as log:
            self.process = subprocess.Popen(
                self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=cwd,
                env=environment, start_new_session=True,
                preexec_fn=limit if nofile is not None else None, **extra)
        self.stopped = False

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def lines(self, pattern):
        """The log's lines that contain the pattern (a regular expression, any case)."""
        return [line for line in self.log().splitlines()
                if re.search(pattern, line, re.IGNORECASE)]

    def wait_for_lines(self, pattern, count, timeout=5.0):
        """The log's lines with the pattern, as soon as there are at least count."""
        wait_until(lambda: len(self.lines(pattern)) >= count, timeout)
        return self.lines(pattern)

    def is_alive(self):
        return self.process.poll() is None

    def is_ready(self):
        return bool(READY.search(self.log()))

    def wait_ready(self, timeout=START_SECONDS):
        wait_until(lambda: self.is_ready() or not self.is_alive(), timeout)
        if not self.is_alive() or not self.is_ready():
            code = self.process.poll()
            self.kill()
            raise AssertionError(f"{' '.join(self.arguments)}: not ready, exit code {code}, "
                                 f"log:\n{self.log()}")
        return self

    def wait_exit(self, timeout=STOP_SECONDS):
        """The exit code of a service that ends by itself; None at the timeout."""
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            return None
        self.stopped = True
        return code

    def descriptors(self):
        """What the service holds: a list of readlink values."""
        result = []
        folder = f"/proc/{self.pid}/fd"
        for name in os.listdir(folder):
            try:
                result.append(os.readlink(f"{folder}/{name}"))
            except FileNotFoundError:
                pass
        return result

    def descriptor_count(self):
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def memory_descriptors(self):
        """/proc/PID/fd paths of the service's memfds."""
        folder = f"/proc/{self.pid}/fd"
        return [f"{folder}/{name}" for name in os.listdir(folder)
                if os.readlink(f"{folder}/{name}").startswith("/memfd:")]

    def settled_descriptor_count(self, wanted, timeout=5.0):
        """The wanted count when it is that and stays so, else what it is at the deadline.

        It is also that before the service has seen what was sent to it.
        """
        def is_settled():
            if self.descriptor_count() != wanted:
                return False
            time.sleep(0.1)
            return self.descriptor_count() == wanted

        return wanted if wait_until(is_settled, timeout) else self.descriptor_count()

    def cpu_seconds(self):
        with open(f"/proc/{self.pid}/stat", encoding="ascii") as file:
            fields = file.read().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def set_descriptor_limit(self, soft):
        _, hard = resource.prlimit(self.pid, resource.RLIMIT_NOFILE)
        resource.prlimit(self.pid, resource.RLIMIT_NOFILE, (soft, hard))

    def terminate(self, number=signal.SIGTERM, timeout=STOP_SECONDS):
        """Signals and waits; returns (exit code, what was logged since)."""
        mark = len(self.log())
        self.process.send_signal(number)
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"still there {timeout} s after signal {number}; log:\n"
                                 f"{self.log()[-4000:]}") from None
        self.stopped = True
        return code, self.log()[mark:]

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.stopped = True


class ConformanceCase(unittest.TestCase):
    """A folder per test, and services that must end well."""

    def setUp(self):
        self.directory = tempfile.mkdtemp(prefix="guestmem-")
        self.addCleanup(shutil.rmtree, self.directory, ignore_errors=True)
        self._services = 0

    def path(self, name):
        return os.path.join(self.directory, name)

    def open_to_everybody(self):
        """Lets other uids reach the sockets in the folder (their modes decide)."""
        os.chmod(self.directory, 0o755)

    def public_program(self):
        """The program at a place where every uid can run it."""
        target = self.path("guestmem")
        if not os.path.exists(target):
            shutil.copy(program(), target)
            os.chmod(target, 0o755)
        return target

    def need_descriptors(self, count):
        """Skips the test where the limit, which the service inherits, does not allow it."""
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if limit < count:
            self.skipTest(f"needs {count} descriptors, RLIMIT_NOFILE is {limit}")

    def write_config(self, text, name="share.toml"):
        """Writes a configuration; @ stands for the test's folder."""
        path = self.path(name)
        with open(path, "w", encoding="utf-8") as file:
            file.write(text.replace("@", self.directory))
        os.chmod(path, 0o644)
        return path

    def launch(self, arguments, **options):
        """A service that need not become ready. Whatever happens, it is gone at the end."""
        self._services += 1
        service = Service(arguments, self.path(f"log.{self._services}"), **options)
        self.addCleanup(service.kill)
        return service

    def serve(self, arguments, **options):
        """A ready service, whose end is checked."""
        service = self.launch(arguments, **options)
        service.wait_ready()
        self.addCleanup(self.finish, service)
        return service

    def serve_config(self, text, **options):
        return self.serve(["--config", self.write_config(text)], **options)

    def serve_quick(self, *, slots=4, vectors=2, size="64K", name="mailbox", extra=(), **options):
        """--quick on `sock` in the test's folder; the control socket is `sock.control`."""
        return self.serve(["--quick", name, "--size", size, "--vectors", vectors,
                           "--slots", slots, "--socket", self.path("sock"), *extra], **options)

    def finish(self, service):
        """SIGTERM, exit code 0, and nothing but information in the log."""
        if service.stopped:
            return
        if not service.is_alive():
            self.fail(f"the service ended by itself with code {service.process.returncode}; "
                      f"log:\n{service.log()[-4000:]}")
        code, said = service.terminate()
        self.assertEqual(code, 0, f"exit code after SIGTERM; log:\n{service.log()[-4000:]}")
        self.assert_quiet(said)

    def assert_quiet(self, said):
        """The end is quiet: nothing but information (arrivals and departures of the last
        moment are logged as ever)."""
        for line in said.splitlines():
            self.assertRegex(line, r"^guestmem-share: info: ")

    def run_tool(self, *arguments, timeout=20.0, stdin=None, uid=None, binary=None,
                 environment=None):
        """Runs a guestmem command; returns the completed process with text output."""
        extra = {}
        if uid is not None:
            extra = {"user": uid, "group": uid, "extra_groups": []}
        try:
            return subprocess.run([binary or program(), *map(str, arguments)], timeout=timeout,
                                  input=stdin,
                                  stdin=subprocess.DEVNULL if stdin is None else None,
                                  capture_output=True, text=True, errors="replace",
                                  check=False,
                                  env={**os.environ, **(environment or {})}, **extra)
        except subprocess.TimeoutExpired as late:
            said = (late.stderr or b"").decode(errors="replace")
            raise AssertionError(f"guestmem {' '.join(map(str, arguments))} did not end in "
                                 f"{timeout} s; stderr:\n{said}") from None


def share_config(slots, vectors, *, limits="", size="64K", ids="stable"):
    """A configuration of one share "mailbox" on `sock`, with its control socket on `control`."""
    return f"""
[control]
path = "@/control"

[limits]
{limits}

[[share]]
name = "mailbox"
size = "{size}"
vectors = {vectors}
slots = {slots}
ids = "{ids}"
socket = "@/sock"
"""


def is_socket(path):
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except FileNotFoundError:
        return False


class _TimedResult(unittest.TextTestResult):
    """Prints how long each test took: slow tests are found without a profiler."""

    def startTest(self, test):
        self._began = time.monotonic()
        super().startTest(test)

    def addSuccess(self, test):
        self.stream.write(f"[{time.monotonic() - self._began:5.2f} s] ")
        super().addSuccess(test)


def main():
    """Runs the tests of the calling file. 0: all passed, 1: some failed, 77: some cannot run."""
    if program() is None:
        print("SKIPPED: GUESTMEM does not name the guestmem program")
        sys.exit(SKIP_CODE)
    raise_descriptor_limit()
    runner = unittest.TextTestRunner(verbosity=2, resultclass=_TimedResult)
    result = unittest.main(module="__main__", testRunner=runner, exit=False).result
    if not result.wasSuccessful():
        sys.exit(1)
    if result.testsRun == 0:
        print("no test ran")
        sys.exit(1)
    if result.skipped:
        reasons = sorted({reason for _, reason in result.skipped})
        print(f"SKIPPED: {len(result.skipped)} of {result.testsRun} tests: {'; '.join(reasons)}")
        sys.exit(SKIP_CODE)
    sys.exit(0)
