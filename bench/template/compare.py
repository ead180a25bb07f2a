# SPDX-License-Identifier: Apache-2.0
"""A fork of a QEMU's template against QEMU's own restore of the same guest from a migration stream in a file.

usage: compare.py --guestmem PROGRAM [--qemu PROGRAM] [--size-mib N] [--rounds N] [--json] [--strict]

  --guestmem PROGRAM  guestmem of a release build
  --qemu PROGRAM      a QEMU (default: qemu-system-x86_64); before version 8.2 forks take root
  --size-mib N        the guest's RAM, all of it data (default: 256)
  --rounds N          rounds that count, after one that does not (default: 5)
  --json              one JSON object instead of the table
  --strict            status 1 when a target is not reached

The guest is SeaBIOS in RAM of random bytes: there are no pages of zeros that either side could leave out. Files are in
/dev/shm, so that no disk is measured. Both ways are measured in turns, A B B A, and medians are compared. Each QEMU
says by the same events when it begins to load and when its guest runs; the guest of a full restore has RAM without
a file, as QEMU's own has by default.
"""

import argparse
import contextlib
import json
import os
import re
import select
import shlex
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TIMEOUT = 120
MIB = 1 << 20
# Two runs of one program differ by as much.
NOT_SLOWER = 1.03
# SeaBIOS has looked for a disk by then; the machine has none.
BOOT_SECONDS = 1.5
# A guest that runs again touches what it needs at once.
SETTLE_SECONDS = 0.3
# What of RAM has to be data in a template and a stream, or something else is measured.
LEAST_DATA = 0.95


class Lines:
    """A stream's lines, each awaited within a bounded time."""

    def __init__(self, stream, read, who):
        self.stream, self.read, self.who, self.pending = stream, read, who, b""

    def take(self, deadline):
        while b"\n" not in self.pending:
            if not select.select([self.stream], [], [], max(0, deadline - time.monotonic()))[0]:
                raise TimeoutError(f"{self.who}: nothing came in time")
            data = self.read(65536)
            if not data:
                raise EOFError(f"{self.who} ended")
            self.pending += data
        line, self.pending = self.pending.split(b"\n", 1)
        return line


class Monitor:
    """Listens before QEMU starts, and QEMU connects: no event is missed."""

    def __init__(self, path):
        self.path, self.connection, self.events = path, None, []
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for one in (self.connection, self.listener):
            if one:
                one.close()
        self.path.unlink()

    def words(self):
        return ["-global", "migration.x-events=on", "-qmp", f"unix:{self.path}"]

    def accept(self, process):
        """`process` is QEMU, or who starts it."""
        deadline = time.monotonic() + TIMEOUT
        while not select.select([self.listener], [], [], 0.1)[0]:
            if process.poll() is not None or time.monotonic() > deadline:
                raise EOFError(f"{process.args[0]}: no QEMU has connected to its monitor")
        self.connection, _ = self.listener.accept()
        credentials = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        self.pid = struct.unpack("3i", credentials)[0]
        # Sent before QEMU greets: it answers no later than its other monitor.
        self.send("qmp_capabilities")
        self.connection.settimeout(TIMEOUT)
        self.lines = Lines(self.connection, self.connection.recv, "QEMU")
        version = json.loads(self.lines.take(time.monotonic() + TIMEOUT))["QMP"]["version"]["qemu"]
        self.version = ".".join(str(version[part]) for part in ("major", "minor", "micro"))
        self.answer("qmp_capabilities")

    def send(self, command, **arguments):
        self.connection.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")

    def ask(self, command, **arguments):
        self.send(command, **arguments)
        return self.answer(command)

    def answer(self, command):
        deadline = time.monotonic() + TIMEOUT
        while True:
            message = json.loads(self.lines.take(deadline))
            if "event" in message:
                self.events.append(message)
            elif "error" in message:
                raise ValueError(f"QEMU: {command}: {message['error']['desc']}")
            else:
                return message["return"]

    def wait(self, name, status=None):
        """When an event came by QEMU's clock, in seconds; it and those before it are forgotten."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            while self.events:
                event = self.events.pop(0)
                found = event.get("data", {}).get("status")
                if event["event"] == "MIGRATION" and found == "failed":
                    raise ValueError("QEMU: the migration failed")
                if event["event"] == name and status in (None, found):
                    return event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
            self.events.append(self.next_event(deadline))

    def next_event(self, deadline):
        while True:
            message = json.loads(self.lines.take(deadline))
            if "event" in message:
                return message
            if "error" in message:
                raise ValueError(f"QEMU: {message['error']['desc']}")

    def quit(self, process):
        self.send("quit")
        process.wait(TIMEOUT)


@contextlib.contextmanager
def started(words, **options):
    process = subprocess.Popen([str(word) for word in words], stdin=subprocess.DEVNULL, **options)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(TIMEOUT)
        if process.stdout:
            process.stdout.close()


@contextlib.contextmanager
def ended_with(pid):
    """A grandchild that must not outlive this, whatever becomes of its parent; a number used again is not hit."""
    handle = os.pidfd_open(pid)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            if not select.select([handle], [], [], 0)[0]:
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, number)
                select.select([handle], [], [], 10)
        os.close(handle)


def memory_of(pid):
    """MiB that are private to a process, and that it has in memory at all."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    private = sum(int(size) for size in re.findall(r"^Private_(?:Clean|Dirty): +(\d+) kB", text, re.MULTILINE))
    rss = int(re.search(r"^Rss: +(\d+) kB", text, re.MULTILINE)[1])
    return {"private": private / 1024, "rss": rss / 1024}


class Bench:
    def __init__(self, options, folder):
        self.guestmem, self.folder, self.size_mib = options.guestmem, folder, options.size_mib
        self.ram, self.store, self.stream = folder / "ram", folder / "store", folder / "stream"
        self.machine = [options.qemu, "-accel", "tcg", "-machine", "q35,memory-backend=ram0", "-m", self.size_mib,
                        "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"]
        # Where guestmem has its forks' sockets; root's are in /run/guestmem, removed with them.
        self.environment = {**os.environ, "XDG_RUNTIME_DIR": str(folder)}
        self.version = None

    @contextlib.contextmanager
    def source(self):
        """The guest of which templates and streams are made."""
        with open(self.ram, "wb") as file:
            for _ in range(self.size_mib):
                file.write(os.urandom(MIB))
        with Monitor(self.folder / "source.qmp") as monitor:
            words = ["-object", f"memory-backend-file,id=ram0,size={self.size_mib}M,mem-path={self.ram},share=on",
                     "-qmp", f"unix:{self.folder / 'make.qmp'},server=on,wait=off", *monitor.words()]
            with started([*self.machine, *words]) as process:
                monitor.accept(process)
                self.version = monitor.version
                monitor.ask("migrate-set-parameters", **{"max-bandwidth": 1 << 40})
                time.sleep(BOOT_SECONDS)
                monitor.ask("query-status")
                yield monitor
                monitor.quit(process)

    def tool(self, verb, *words):
        command = [self.guestmem, "template", verb, "--store", str(self.store), *words]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=self.environment,
                               stdin=subprocess.DEVNULL, check=False)
        if ended.returncode != 0:
            raise ValueError(f"template {verb}: status {ended.returncode}: {ended.stderr.strip()}")

    def make(self, source):
        """Makes the template, in the place of the one that is there."""
        if (self.store / "base").exists():
            self.tool("rm", "base")
        source.events.clear()
        begin = time.monotonic()
        self.tool("make", "base", "--qemu", str(self.folder / "make.qmp"))
        total = time.monotonic() - begin
        stood = source.wait("STOP")
        stood = source.wait("RESUME") - stood
        self.need_data("the template's image", os.stat(self.store / "base" / "image").st_blocks * 512)
        return {"total": total * 1e3, "stood": stood * 1e3}

    def save(self, source):
        """QEMU's own: everything into a file."""
        self.stream.unlink(missing_ok=True)
        source.events.clear()
        begin = time.monotonic()
        source.ask("migrate", uri=f"exec:cat > {shlex.quote(str(self.stream))}")
        stood = source.wait("STOP")
        source.wait("MIGRATION", "completed")
        deadline = time.monotonic() + TIMEOUT
        while source.ask("query-status")["status"] != "postmigrate" and time.monotonic() < deadline:
            time.sleep(0.001)
        source.ask("cont")
        total = time.monotonic() - begin
        stood = source.wait("RESUME") - stood
        self.need_data("QEMU's stream", os.stat(self.stream).st_size)
        return {"total": total * 1e3, "stood": stood * 1e3}

    def need_data(self, what, size):
        if size < LEAST_DATA * self.size_mib * MIB:
            raise ValueError(f"{what} has {size} bytes: RAM of {self.size_mib} MiB was to be all data")

    def fork(self):
        with Monitor(self.folder / "fork.qmp") as monitor:
            words = [self.guestmem, "template", "fork", "--store", self.store, "base", "--qemu", "--count", 1, "--json",
                     "--", *self.machine, *monitor.words()]
            begin = time.monotonic()
            with started(words, stdout=subprocess.PIPE, env=self.environment) as process:
                monitor.accept(process)
                with ended_with(monitor.pid):
                    loading = self.load_time(monitor)
                    pipe = process.stdout.fileno()
                    lines = Lines(pipe, lambda size: os.read(pipe, size), "guestmem template fork")
                    said = json.loads(lines.take(time.monotonic() + TIMEOUT))
                    total = time.monotonic() - begin
                    found = self.settled(monitor)
                    monitor.quit(process)
                return {"said": said["milliseconds"], "total": total * 1e3, "loading": loading, **found}

    def restore(self):
        """QEMU's own: everything from a file, into RAM without one."""
        with Monitor(self.folder / "restore.qmp") as monitor:
            words = ["-object", f"memory-backend-ram,id=ram0,size={self.size_mib}M", *monitor.words(), "-incoming",
                     "defer"]
            begin = time.monotonic()
            with started([*self.machine, *words]) as process:
                monitor.accept(process)
                monitor.send("migrate-incoming", uri=f"exec:cat {shlex.quote(str(self.stream))}")
                # Its answer is no event, and is passed over.
                loading = self.load_time(monitor)
                total = time.monotonic() - begin
                found = self.settled(monitor)
                monitor.quit(process)
                return {"total": total * 1e3, "loading": loading, **found}

    def load_time(self, monitor):
        """Milliseconds from the moment when QEMU begins to take the stream until the guest runs."""
        begin = monitor.wait("MIGRATION", "setup")
        return (monitor.wait("RESUME") - begin) * 1e3

    def settled(self, monitor):
        time.sleep(SETTLE_SECONDS)
        if (status := monitor.ask("query-status")["status"]) != "running":
            raise ValueError(f"QEMU {monitor.pid}: the guest is in state '{status}'")
        return memory_of(monitor.pid)


def in_turns(one, other, rounds):
    """Medians of what two works measure, A B B A; the first round does not count."""
    ones, others = [], []
    for number in range(rounds + 1):
        found = [one(), other(), other(), one()]
        if number > 0:
            ones += [found[0], found[3]]
            others += found[1:3]
    return tuple({name: statistics.median(each[name] for each in all_of) for name in all_of[0]}
                 for all_of in (ones, others))


def row(work, unit, ours, other, target=None):
    ratio = other / ours
    return {"work": work, "unit": unit, "ours": ours, "other": other, "ratio": ratio, "target": target,
            "is_reached": target is None or ratio * NOT_SLOWER >= target}


def compare(bench, rounds):
    with bench.source() as source:
        make, save = in_turns(lambda: bench.make(source), lambda: bench.save(source), rounds)
    fork, restore = in_turns(bench.fork, bench.restore, rounds)
    return [row("from incoming to running", "ms", fork["loading"], restore["loading"], 1.0),
            row("from QEMU's start to running", "ms", fork["said"], restore["total"]),
            row("with guestmem's own start", "ms", fork["total"], restore["total"]),
            row("private memory when it runs", "MiB", fork["private"], restore["private"]),
            row("resident memory when it runs", "MiB", fork["rss"], restore["rss"]),
            row("to make it: a template, a stream", "ms", make["total"], save["total"]),
            row("the guest stands still for it", "ms", make["stood"], save["stood"])]


def measure(options):
    folder = Path(tempfile.mkdtemp(prefix="guestmem-restore-", dir="/dev/shm"))
    try:
        bench = Bench(options, folder)
        return compare(bench, options.rounds), bench.version
    except (OSError, EOFError, ValueError, subprocess.SubprocessError) as error:
        sys.exit(f"compare: {error}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main():
    parser = argparse.ArgumentParser(usage=__doc__)
    parser.add_argument("--guestmem", required=True)
    parser.add_argument("--qemu", default="qemu-system-x86_64")
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--strict", action="store_true")
    options = parser.parse_args()
    if not shutil.which(options.qemu):
        sys.exit(f"compare: there is no {options.qemu} here")
    # Ends the QEMUs too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("compare: a signal came"))
    rows, version = measure(options)
    if options.json:
        print(json.dumps({"size_mib": options.size_mib, "qemu": version, "rows": rows}))
    else:
        print(f"{options.size_mib} MiB, all data; QEMU {version}; QEMU's restore / fork")
        for one in rows:
            target = "" if one["target"] is None else f"  at least {one['target']:.2f}"
            missed = "" if one["is_reached"] else ": not reached"
            print(f"  {one['work']:<34} {one['other']:8.1f} / {one['ours']:8.1f} {one['unit']:<3} = "
                  f"{one['ratio']:6.2f}{target}{missed}")
    return 1 if options.strict and not all(one["is_reached"] for one in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
