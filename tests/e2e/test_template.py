# SPDX-License-Identifier: Apache-2.0
"""Templates of a real QEMU: a Debian guest that counts is frozen and goes on; forks go on from the same number, each
its own way. And a QEMU that is unsuitable, refuses, or dies in between: the guest goes on, nothing is left behind."""

import array
import contextlib
import json
import mmap
import os
import re
import resource
import signal
import socket
import subprocess
import threading
import time
import unittest
from pathlib import Path

import e2e_case
import guest_image
import processes
import qemu
import share_service

FORKS = 10
RAM_MIB = 128
MIB = 1 << 20

INIT = b"""#!/bin/busybox sh
number=0
while true; do
    number=$((number + 1))
    echo "count $number."
    /bin/busybox usleep 100000
done
"""


def initramfs(folder):
    archive = guest_image._Cpio()
    for name in ("bin", "dev"):
        archive.add_folder(name)
    archive.add_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", guest_image._static_busybox(), 0o755)
    archive.add_file("init", INIT, 0o755)
    path = Path(folder) / "initramfs.cpio"
    path.write_bytes(archive.finish())
    return path


def machine(*words, ram="ram0"):
    """What a template and its forks have in common."""
    kind = qemu.accelerator()
    return [qemu.PROGRAM, "-accel", kind, "-cpu", "host" if kind == "kvm" else "max", "-machine",
            "q35" + (f",memory-backend={ram}" if ram else ""), "-m", RAM_MIB, "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", *words]


def private_bytes(pid, name):
    """What a process has of its own in the mapping of a file."""
    total, is_it = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_it = line.endswith(name)
        elif is_it and (found := re.match(r"Private_\w+: +(\d+) kB", line)):
            total += int(found[1]) * 1024
    return total


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


class TemplateCase(unittest.TestCase):
    def setUp(self):
        self.program = e2e_case.environment("GUESTMEM")
        with processes.undisturbed():
            self.folder = Path(share_service.make_folder("guestmem-e2e-"))
            self.addCleanup(share_service.remove_folder, self.folder)
        self.addCleanup(processes.stop_all)
        self.store = self.folder / "store"

    def tool(self, verb, *words, **options):
        command = [self.program, "template", verb, "--store", self.store, *words]
        return subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=60,
                              check=False, stdin=subprocess.DEVNULL, **options)

    def done(self, verb, *words):
        ended = self.tool(verb, *words)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        return ended.stdout

    def refused(self, pattern, verb, *words, status=1, **options):
        ended = self.tool(verb, *words, **options)
        self.assertEqual(ended.returncode, status, ended.stderr)
        self.assertRegex(ended.stderr, pattern)

    def assert_store_is_empty(self):
        self.assertEqual(os.listdir(self.store) if self.store.exists() else [], [])

    def start_qemu(self, name, *words):
        """A QEMU and its QMP socket."""
        path = self.folder / f"{name}.qmp"
        return processes.Process(name, [*words, "-qmp", f"unix:{qemu.escape(path)},server=on,wait=off"]), path

    def run_state(self, path):
        with qemu.Qmp(path, 20) as qmp:
            return qmp.execute("query-status")["status"]

    def ram_file(self, name="ram", share="on"):
        return ["-object", f"memory-backend-file,id=ram0,size={RAM_MIB}M,share={share},"
                           f"mem-path={qemu.escape(self.folder / name)}"]


class CountingGuestTest(TemplateCase):
    def setUp(self):
        super().setUp()
        build, source = (Path(e2e_case.environment(name)) for name in ("GUESTMEM_BUILD", "GUESTMEM_SOURCE"))
        kernel = guest_image.prepare(build, source, lambda text: print(text, flush=True)).kernel
        self.machine = machine("-kernel", kernel, "-initrd", initramfs(self.folder),
                               "-append", "console=ttyS0 quiet panic=-1")
        self.guest, self.qmp = self.start_qemu("source", *self.machine, *self.ram_file(), *self.console("source"))
        self.wait_count("source", 5, e2e_case.BOOT_TIMEOUT)

    def console(self, name):
        return ["-serial", f"file:{self.folder / name}.log"]

    def counts(self, name):
        """The number of each whole line."""
        with contextlib.suppress(FileNotFoundError):
            text = (self.folder / f"{name}.log").read_text(errors="replace")
            return [int(number) for number in re.findall(r"^count (\d+)\.\r?$", text, re.MULTILINE)]
        return []

    def wait_count(self, name, number, timeout=30):
        processes.wait_until(lambda: self.counts(name) and self.counts(name)[-1] >= number, timeout,
                             lambda: f"{name} counts to {number}: {self.counts(name)[-3:]}")

    def start_forks(self, count, name="base", log="fork"):
        words = [self.program, "template", "fork", "--store", self.store, "--qemu", "--count", count, "--json", name,
                 "--", *self.machine, *self.console(log + "-{index}")]
        tool = processes.Process("forks", words, death_signal=signal.SIGTERM)
        processes.wait_until(lambda: len(self.said(tool)) == count or not tool.is_running(), 60, "the forks run")
        forks = self.said(tool)
        self.assertEqual(len(forks), count, tool.tail())
        self.addCleanup(self.kill_leftovers, forks)
        return tool, forks

    def said(self, tool):
        return [json.loads(line.text) for line in tool.lines if line.text.startswith("{")]

    def kill_leftovers(self, forks):
        for fork in forks:
            with contextlib.suppress(OSError):
                if self.folder.name in Path(f"/proc/{fork['pid']}/cmdline").read_text():
                    os.kill(fork["pid"], signal.SIGKILL)

    def test_forks_go_on_from_the_same_number_each_its_own_way(self):
        before = self.counts("source")[-1]
        self.done("make", "base", "--qemu", self.qmp)
        at_most = self.counts("source")[-1] + 2
        manifest = json.loads(self.done("show", "base", "--json"))
        self.assertEqual(manifest["provenance"]["layout"], "qemu-ramblock")
        self.assertEqual(manifest["provenance"]["qemu.memory"], "ram0")
        self.assertIn("q35", manifest["provenance"]["qemu.machine"])

        began = time.monotonic()
        tool, forks = self.start_forks(FORKS)
        print(f"{FORKS} forks run after {time.monotonic() - began:.2f} s: "
              f"{[round(fork['milliseconds']) for fork in forks]} ms", flush=True)
        names = [f"fork-{index}" for index in range(FORKS)]
        for name in names:
            self.wait_count(name, at_most + 3)
        firsts = {self.counts(name)[0] for name in names}
        self.assertEqual(len(firsts), 1, "all go on from the same number")
        self.assertTrue(before < firsts.pop() <= at_most)
        self.assertEqual(len({fork["generation"] for fork in forks}), FORKS)

        self.assert_each_goes_its_own_way(names, forks)
        own = [private_bytes(fork["pid"], f"{self.store}/base/image") for fork in forks]
        print(f"private of {RAM_MIB} MiB each: {[size // 1024 for size in own]} KiB", flush=True)
        self.assertGreater(min(own), 0)
        self.assertLess(sum(own), FORKS * RAM_MIB * MIB // 4)
        self.assert_show_lists("base", tool, forks, RAM_MIB * MIB)

        numbers = self.counts("source")
        self.assertEqual(numbers, list(range(1, len(numbers) + 1)), "the source has missed nothing")
        self.assertGreater(numbers[-1], at_most)
        self.done("verify", "base")
        self.refused("it has forks alive", "rm", "base")
        self.assertEqual(tool.stop(), 0, tool.tail())
        self.assertFalse([fork for fork in forks if is_alive(fork["pid"])])
        self.assertFalse(Path(forks[0]["qmp"]).parent.exists())
        self.assert_a_difference_goes_on()
        self.done("verify", "base")
        self.done("rm", "base")
        self.assert_store_is_empty()

    def assert_show_lists(self, name, tool, forks, mapped_bytes):
        """What `show --live` says of running forks, and maybe of who started them."""
        bills = json.loads(self.done("show", name, "--live", "--times", 1, "--json"))
        bills = {bill["pid"]: bill for bill in bills}
        self.assertEqual(bills.keys() - {tool.pid}, {fork["pid"] for fork in forks})
        for fork in forks:
            bill = bills[fork["pid"]]
            self.assertEqual(bill["mapped_bytes"], mapped_bytes)
            self.assertEqual(bill["shared_bytes"] > 0, mapped_bytes > 0)
            self.assertEqual(bill["private_bytes"] > 0, mapped_bytes > 0)
            self.assertEqual(bill["generation"], fork["generation"].replace("-", ""))
            self.assertAlmostEqual(bill["first_instruction_ns"] / 1e6, fork["milliseconds"], delta=1)

    def assert_a_difference_goes_on(self):
        """The source has run on: what it has written since is a template, whose forks go on from there."""
        before = self.counts("source")[-1]
        self.done("diff", "later", "--parent", "base", "--qemu", self.qmp)
        at_most = self.counts("source")[-1] + 2
        manifest = json.loads(self.done("show", "later", "--json"))
        self.assertEqual(manifest["parent"]["name"], "base")
        print(f"the difference has {manifest['parent']['pages'] * 4} of {RAM_MIB * 1024} KiB", flush=True)
        self.assertTrue(0 < manifest["parent"]["pages"] * 4096 < RAM_MIB * MIB // 8)
        self.assertLess((self.store / "later" / "image").stat().st_blocks * 512, RAM_MIB * MIB // 8)

        tool, forks = self.start_forks(2, "later", "late")
        for index in range(2):
            self.wait_count(f"late-{index}", at_most + 3)
        first, other = (self.counts(f"late-{index}")[0] for index in range(2))
        self.assertEqual(first, other)
        self.assertTrue(before < first <= at_most)
        self.wait_count("source", at_most + 3)
        self.refused("later is a difference to it|it has forks alive", "rm", "base")
        self.refused(rf"it has forks alive \(processes {tool.pid}\)", "rm", "later")
        # They map memory, and nothing of the folder.
        self.assert_show_lists("later", tool, forks, 0)
        self.assertEqual(tool.stop(), 0, tool.tail())
        self.done("verify", "later")
        self.refused("later is a difference to it", "rm", "base")
        self.done("rm", "later")

    def assert_each_goes_its_own_way(self, names, forks):
        """One after the other is stopped: it stays where it is, the others and the source go on."""
        stopped = []
        for index, name in enumerate(names):
            with qemu.Qmp(forks[index]["qmp"], 20) as qmp:
                qmp.execute("stop")
            stopped.append(self.counts(name)[-1])
            for other in [*names[index + 1:], "source"]:
                self.wait_count(other, self.counts(other)[-1] + 1)
        self.assertEqual([self.counts(name)[-1] for name in names], stopped)

    def test_a_template_stays_while_a_fork_lives_whose_starter_was_killed(self):
        self.done("make", "base", "--qemu", self.qmp)
        tool, forks = self.start_forks(1)
        tool.kill()
        self.addCleanup(share_service.remove_folder, Path(forks[0]["qmp"]).parent)
        self.wait_count("fork-0", self.counts("fork-0")[-1] + 3)
        self.refused("it has forks alive", "rm", "base")
        os.kill(forks[0]["pid"], signal.SIGKILL)
        # Its last thread closes its files, some time behind its first.
        processes.wait_until(lambda: self.tool("rm", "base").returncode == 0, 10, "it is dead, and the template free")

    def test_the_guest_goes_on_when_the_store_takes_no_more(self):
        def with_small_files():
            resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, MIB))
        self.refused("limit|too large|File", "make", "base", "--qemu", self.qmp, preexec_fn=with_small_files)
        self.assert_store_is_empty()
        self.wait_count("source", self.counts("source")[-1] + 3)
        with qemu.Qmp(self.qmp, 20) as qmp:
            capabilities = qmp.execute("query-migrate-capabilities")
        self.assertIn({"capability": "x-ignore-shared", "state": False}, capabilities)
        self.done("make", "base", "--qemu", self.qmp)

    def test_a_paused_guest_stays_paused_and_its_fork_runs(self):
        with qemu.Qmp(self.qmp, 20) as qmp:
            qmp.execute("stop")
        last = self.counts("source")[-1]
        self.done("make", "base", "--qemu", self.qmp)
        self.start_forks(1)
        self.wait_count("fork-0", last + 3)
        self.assertLessEqual(self.counts("source")[-1], last + 1)
        with qemu.Qmp(self.qmp, 20) as qmp:
            qmp.execute("cont")
        self.wait_count("source", last + 3)

    def test_a_qemu_that_is_killed_meanwhile_leaves_no_template_or_a_whole_one(self):
        making = processes.Process("make", [self.program, "template", "make", "--store", self.store, "base",
                                            "--qemu", self.qmp])
        processes.wait_until(lambda: list(self.store.glob(".making-*")) or not making.is_running(), 20, "it makes")
        self.guest.kill()
        if making.wait(60) == 0:
            self.done("verify", "base")
        else:
            self.assert_store_is_empty()

    def test_a_fork_with_another_machine_is_an_error_and_leaves_nothing(self):
        self.done("make", "base", "--qemu", self.qmp)
        fork = ["base", "--qemu", "--count", 2, "--"]
        self.refused("QEMU ended", "fork", *fork, *machine("-device", "qemu-xhci"))
        self.refused("QEMU ended", "fork", *fork, *machine("-m", 2 * RAM_MIB))
        self.refused("no-such-program", "fork", *fork, "/no-such-program")
        self.refused("does not answer as QEMU does", "fork", *fork, "true")
        self.refused("cannot have -incoming", "fork", *fork, *machine("-incoming", "defer"), status=2)
        self.refused("behind -- comes QEMU's command line", "fork", *fork, status=2)
        self.done("rm", "base")


class UnsuitableTest(TemplateCase):
    def test_memory_that_is_no_shared_file_is_refused_and_the_guest_goes_on(self):
        other = ["-object", "memory-backend-ram,id=other,size=1M"]
        for name, pattern, words in (
                ("plain", r"its memory '\S+' is no file .*start QEMU with", machine(ram=None)),
                ("memfd", "'ram0' is no file", machine("-object", "memory-backend-memfd,id=ram0,share=on,"
                                                                  f"size={RAM_MIB}M")),
                ("private", "'ram0' is not shared", machine(*self.ram_file("private", share="off"))),
                ("nameless", "a file without a name", machine(*self.ram_file(""))),
                ("several", "several memory backends", machine(*self.ram_file("several"), *other))):
            with self.subTest(name):
                _, path = self.start_qemu(name, *words)
                qemu.Qmp(path, 20).__exit__()
                self.refused(pattern, "make", "base", "--qemu", path)
                self.assertEqual(self.run_state(path), "running")
        self.assert_store_is_empty()

    def test_a_file_that_was_replaced_is_refused(self):
        _, path = self.start_qemu("replaced", *machine(*self.ram_file()))
        qemu.Qmp(path, 20).__exit__()
        os.rename(self.folder / "ram", self.folder / "old")
        self.refused("No such file", "make", "base", "--qemu", path)
        (self.folder / "ram").write_bytes(b"")
        os.truncate(self.folder / "ram", RAM_MIB * MIB)
        self.refused("has not mapped the file", "make", "base", "--qemu", path)
        self.assertEqual(self.run_state(path), "running")

    def test_what_is_no_qmp_socket_is_refused(self):
        self.refused("nowhere", "make", "base", "--qemu", self.folder / "nowhere")
        with socket.socket(socket.AF_UNIX) as silent:
            silent.bind(str(self.folder / "silent"))
            silent.listen()
            self.refused("nobody greets as QEMU does", "make", "base", "--qemu", self.folder / "silent")
        self.refused("either --memory or --qemu", "make", "base", status=2)
        self.refused("either --memory or --qemu", "make", "base", "--memory", "x", "--qemu", "y", status=2)
        self.assert_store_is_empty()

    def test_a_template_of_something_else_is_no_qemu(self):
        (self.folder / "memory").write_bytes(b"x" * MIB)
        self.done("make", "base", "--memory", self.folder / "memory")
        self.refused("not made by `guestmem template make --qemu`", "fork", "base", "--qemu", "--", qemu.PROGRAM)


class FakeQemu(threading.Thread):
    """Answers as QEMU does, but for the command number `breaks_at`: that one is refused, or QEMU is gone there."""

    SIZE = 2 * MIB

    def __init__(self, folder, breaks_at, is_gone):
        super().__init__(daemon=True)
        self.path = Path(folder) / "fake.qmp"
        self.ram = Path(folder) / "fake.ram"
        self.breaks_at, self.is_gone = breaks_at, is_gone
        self.commands, self.properties, self.is_running, self.ignores = [], [], True, False
        self.ram.write_bytes(b"R" * self.SIZE)
        with open(self.ram, "r+b") as file:
            self.mapping = mmap.mmap(file.fileno(), self.SIZE)
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(self.path))
        self.listener.listen()
        self.start()

    def close(self):
        self.join(10)
        self.listener.close()
        self.mapping.close()
        self.path.unlink()

    def run(self):
        client, _ = self.listener.accept()
        fds = array.array("i")
        with client, contextlib.suppress(OSError):
            client.sendall(b'{"QMP": {}}\r\n')
            text = b""
            while True:
                data, control, _, _ = client.recvmsg(65536, socket.CMSG_SPACE(16))
                if not data:
                    break
                for _, _, passed in control:
                    fds.frombytes(passed)
                text += data
                while b"\n" in text:
                    line, text = text.split(b"\n", 1)
                    request = json.loads(line)
                    is_broken = len(self.commands) == self.breaks_at
                    self.commands.append(request["execute"])
                    self.properties += [request["arguments"]["property"]] if request["execute"] == "qom-get" else []
                    if is_broken and self.is_gone:
                        return self.drop(fds)
                    answer = ({"error": {"class": "GenericError", "desc": "not \x1b[31mtoday"}} if is_broken else
                              {"return": self.answer(request["execute"], request.get("arguments", {}), fds)})
                    client.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\r\n")
        self.drop(fds)

    def drop(self, fds):
        while fds:
            os.close(fds.pop())

    def answer(self, command, arguments, fds):
        if command == "stop":
            self.is_running = False
        elif command == "cont":
            self.is_running = True
        elif command == "migrate-set-capabilities":
            self.ignores = arguments["capabilities"][0]["state"]
        elif command == "migrate":
            os.write(fds[0], b"state of devices")
            self.drop(fds)
        return {
            "query-version": {"qemu": {"major": 7, "minor": 2, "micro": 22}},
            "query-status": {"status": "running" if self.is_running else "paused"},
            "qom-list": [{"name": "ram0", "type": "child<memory-backend-file>"}],
            "qom-get": {"type": "pc-q35-7.2-machine", "share": True, "mem-path": str(self.ram), "size": self.SIZE,
                        "offset": 0}.get(arguments.get("property")),
            "query-migrate-capabilities": [{"capability": "x-ignore-shared", "state": self.ignores}],
            "query-migrate": {"status": "completed"},
        }.get(command, {})


class BrokenQemuTest(TemplateCase):
    def make(self, breaks_at, is_gone):
        fake = FakeQemu(self.folder, breaks_at, is_gone)
        try:
            return fake, self.tool("make", "base", "--qemu", fake.path)
        finally:
            fake.close()

    def test_whatever_it_refuses_the_guest_goes_on_and_nothing_is_left(self):
        fake, ended = self.make(-1, False)
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertTrue(fake.is_running)
        self.assertFalse(fake.ignores)
        self.assertEqual((self.store / "base" / "state").read_bytes(), b"state of devices")
        count = len(fake.commands)
        self.done("rm", "base")
        for number in range(count):
            with self.subTest(f"command {number} is refused"):
                again, ended = self.make(number, False)
                name = again.commands[number]
                if ended.returncode == 0:
                    self.assertEqual((name, again.properties[-1]), ("qom-get", "offset"), "QEMU 7.2 has none")
                    self.done("rm", "base")
                else:
                    self.assertIn(r"not \x1b[31mtoday", ended.stderr)
                self.assert_store_is_empty()
                # What it refuses itself cannot be helped.
                self.assertTrue(again.is_running or name == "cont", again.commands)
                self.assertTrue(not again.ignores or name == "migrate-set-capabilities", again.commands)
            with self.subTest(f"it is gone at command {number}"):
                _, ended = self.make(number, True)
                self.assertEqual(ended.returncode, 1, ended.stderr)
                self.assert_store_is_empty()


def reason_to_skip():
    if os.geteuid() == 0 or e2e_case.reason_to_skip():
        return None
    shown = subprocess.run([qemu.PROGRAM, "-object", "memory-backend-file,help"], capture_output=True, text=True,
                           check=False, timeout=30).stdout
    return None if " rom=" in shown else "forks with a QEMU before 8.2 take root"


if __name__ == "__main__":
    if reason := reason_to_skip():
        print(f"SKIPPED: {reason}")
        raise SystemExit(e2e_case.SKIPPED)
    e2e_case.main()
