# SPDX-License-Identifier: Apache-2.0
"""Machines with a payload: those of `guestmem run`, and QEMU's beside them. All of them end in bounded time."""

import os
import re
import select
import signal
import statistics
import subprocess
import time

TIMEOUT = 120
# A machine has begun by then, and what its start needed is over.
SETTLED = 0.5
PASSED = 48
QEMU_PASSED = 33
RAM = "128M"

CHIPS = ("vdev ioapic\n    loc 0xf8000000\n    intr apic\n    name myioapic\n"
         "vdev ser8250\n    intr myioapic:4\n")
# What a kernel without legacy hardware wants, and nothing else.
MICROVM = "microvm,x-option-roms=off,pic=off,pit=off,rtc=off"


class Failure(Exception):
    pass


def first_byte_ms(words):
    """From before the process is made until its first byte has come; the process is ended."""
    words = [os.fspath(word) for word in words]
    read_end, write_end = os.pipe()
    actions = [(os.POSIX_SPAWN_OPEN, 0, "/dev/null", os.O_RDONLY, 0), (os.POSIX_SPAWN_DUP2, write_end, 1),
               (os.POSIX_SPAWN_OPEN, 2, "/dev/null", os.O_WRONLY, 0)]
    begin = time.perf_counter_ns()
    pid = os.posix_spawn(words[0], words, os.environ, file_actions=actions)
    try:
        os.close(write_end)
        if not select.select([read_end], [], [], TIMEOUT)[0] or not os.read(read_end, 1):
            raise Failure(f"{' '.join(words)}: no first byte")
        return (time.perf_counter_ns() - begin) / 1e6
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read_end)


def memory_of(pid):
    """KiB that are no guest RAM, which is a memfd on both sides."""
    status = open(f"/proc/{pid}/status", encoding="ascii", errors="replace").read()
    rss = sum(int(re.search(rf"^{key}:\s*(\d+)", status, re.MULTILINE)[1]) for key in ("RssAnon", "RssFile"))
    private, is_ram = 0, False
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            if re.match("[0-9a-f]+-[0-9a-f]+ ", line):
                is_ram = "/memfd:" in line
            elif line.startswith("Private_Dirty:") and not is_ram:
                private += int(line.split()[1])
    return {"rss_kib": rss, "private_dirty_kib": private}


def finish(child, status):
    out, _ = child.communicate(timeout=TIMEOUT)
    if child.returncode != status:
        raise Failure(f"{' '.join(map(str, child.args))}: status {child.returncode}\n{out}")
    return out


def popen(words):
    return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True)


def listening(words):
    child = popen(words)
    if not any("echo listens" in line for line in child.stdout):
        child.kill()
        child.communicate()
        raise Failure(f"{' '.join(map(str, words))} has ended")
    return child


def end_all(children):
    for child in children:
        child.kill()
        child.communicate()


def memory_while_it_listens(words):
    child = listening(words)
    try:
        time.sleep(SETTLED)
        return memory_of(child.pid)
    finally:
        end_all([child])


def kernel_kib():
    """What the kernel has for itself, as far as /proc/meminfo says."""
    keys = ("Slab", "KernelStack", "PageTables", "SecPageTables", "VmallocUsed", "Percpu")
    with open("/proc/meminfo", encoding="ascii") as file:
        sizes = dict(re.findall(r"^(\w+):\s*(\d+) kB", file.read(), re.MULTILINE))
    return sum(int(sizes.get(key, 0)) for key in keys)


def kernel_kib_for_each(commands):
    """The median of what each further machine takes of the kernel; others on this host move it."""
    children, steps = [], []
    try:
        before = kernel_kib()
        for words in commands:
            children.append(listening(words))
            time.sleep(SETTLED / 2)
            after = kernel_kib()
            steps.append(after - before)
            before = after
    finally:
        end_all(children)
    return statistics.median(steps)


def play(pong, ping, status):
    """Half of the shortest and of the mean there and back, in us; pong is there first."""
    children = []
    try:
        children = [popen(pong), popen(ping)]
        out = finish(children[1], status)
        finish(children[0], status)
    finally:
        for child in children:
            if child.poll() is None:
                child.kill()
                child.communicate()
    found = re.search(r"rally rounds \d+ retries \d+ mean_ns (\d+) best_ns (\d+)", out)
    if not found:
        raise Failure(f"no rally:\n{out}")
    return {"best": int(found[2]) / 2000, "mean": int(found[1]) / 2000}


class Ours:
    def __init__(self, program, payloads, folder):
        self.program = program
        self.payloads = payloads
        self.folder = folder
        self.hello = self.file("hello", "hello", "", "")
        config = folder / "share.toml"
        config.write_text(f'[control]\npath = "{folder}/control"\n[[share]]\nname = "mbox"\nsize = "1M"\nslots = 16\n'
                          f'vectors = 1\nsocket = "{folder}/mbox.sock"\n')
        self.control = folder / "control"
        self.service = subprocess.Popen([program, "share", "serve", "--config", config], stdin=subprocess.DEVNULL,
                                        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        for line in self.service.stdout:
            if "info: ready" in line:
                return
        raise Failure("the share service has ended")

    def close(self):
        self.service.terminate()
        self.service.communicate(timeout=TIMEOUT)

    def file(self, name, payload, options, vdevs):
        file = self.folder / f"{name}.qvmconf"
        file.write_text(f"system {name}-{os.getpid()}\nram {RAM}\ncpu\nload {self.payloads / payload}.elf\n"
                        f'cmdline "ioapic=0xf8000000 {options}"\n{CHIPS}{vdevs}')
        return file

    def command(self, file):
        return [self.program, "run", file, "--share-control", self.control]

    def first_byte_ms(self):
        return first_byte_ms([self.program, "run", self.hello])

    def version_ms(self):
        return first_byte_ms([self.program, "--version"])

    def memory(self):
        return memory_while_it_listens(self.command(self.file("echo", "echo", "", "")))

    def kernel_kib(self, count):
        files = [self.file(f"echo{number}", "echo", "", "") for number in range(count)]
        return kernel_kib_for_each([self.command(file) for file in files])

    def kick_us(self, kind, rounds, options=""):
        vdevs = "vdev ivshmem\n    share mbox\n" if kind == "ivshmem" else "vdev shmem\n"
        name = "" if kind == "ivshmem" else f"name=play {options}"
        words = [self.command(self.file(role, kind, f"role={role} rounds={rounds} {name}", vdevs))
                 for role in ("pong", "ping")]
        return play(*words, PASSED)

    def measure(self, count):
        """The means of the payload measure, in us."""
        vdevs = "vdev shmem\nvdev ivshmem\n    share mbox\n"
        out = finish(popen(self.command(self.file("measure", "measure", f"count={count} shmem=1", vdevs))), PASSED)
        return {name: int(mean) / 1000 for name, mean in re.findall(r"^measure (\w+) best_ns \d+ mean_ns (\d+)", out,
                                                                    re.MULTILINE)}


class Qemu:
    def __init__(self, program, payloads, ours):
        self.program = subprocess.check_output(["which", program], text=True).strip()
        self.payloads = payloads
        self.share = f"socket,id=share,path={ours.folder}/mbox.sock"

    def command(self, machine, payload, options, *words):
        return [self.program, "-accel", "kvm", "-machine", machine, "-m", RAM, "-nodefaults", "-no-user-config",
                "-display", "none", "-no-reboot", "-device", "isa-debug-exit,iobase=0xf4,iosize=4",
                "-object", f"memory-backend-memfd,id=ram,size={RAM},share=on",
                "-kernel", self.payloads / f"{payload}.elf", "-append", options, *words]

    def first_byte_ms(self):
        return first_byte_ms(self.command(MICROVM, "hello", "", "-debugcon", "stdio"))

    def echo(self):
        return self.command(f"{MICROVM},memory-backend=ram", "echo", "", "-serial", "stdio")

    def memory(self):
        return memory_while_it_listens(self.echo())

    def kernel_kib(self, count):
        return kernel_kib_for_each([self.echo()] * count)

    def kick_us(self, rounds):
        words = [self.command("q35", "ivshmem", f"role={role} rounds={rounds}", "-serial", "stdio", "-chardev",
                              self.share, "-device", "ivshmem-doorbell,chardev=share,vectors=1")
                 for role in ("pong", "ping")]
        return play(*words, QEMU_PASSED)
