# SPDX-License-Identifier: Apache-2.0
"""The guests of the bed: a stock Debian kernel, an initramfs with the probe, and QEMU by emulation (TCG)."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from processes import Process

QEMU = "qemu-system-x86_64"
BOOT_TIMEOUT = 120  # a guest boots in 2 to 6 s
COMMAND_TIMEOUT = 300

# Messages of the kernel stay out of the probe's lines; init.sh shows them at the end. panic=-1 with -no-reboot turns
# a panic into the end of QEMU.
KERNEL_PARAMETERS = "console=ttyS0 loglevel=1 panic=-1"

# As cmake/compiler.cmake has them.
COMPILER_FLAGS = ("-std=c++23", "-O1", "-g1", "-Wall", "-Wextra", "-Wpedantic", "-Wshadow", "-Wconversion",
                  "-Wsign-conversion", "-Wno-maybe-uninitialized", "-Werror")


# Folders that tests read.
SOURCES = ("guestmem/mem/backends",)

USERS = "root:x:0:0:root:/:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n"
GROUPS = "root:x:0:\ndaemon:x:1:\nnogroup:x:65534:\n"

# What separates a check's name from its detail, in the lines of the probe.
DETAIL = " -- "


class LabError(Exception):
    """The bed cannot be made; the text says what, where and why."""


def run(command, what, cwd=None, data=None, timeout=COMMAND_TIMEOUT):
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, cwd=cwd, input=data, capture_output=True, check=False, timeout=timeout)
    except FileNotFoundError:
        raise LabError(f"{what}: the program '{command[0]}' is not installed (./dev setup)") from None
    except subprocess.TimeoutExpired:
        raise LabError(f"{what}: {' '.join(command)}: not done in {timeout} s") from None
    if done.returncode != 0:
        raise LabError(f"{what}: {' '.join(command)}: exit status {done.returncode}\n"
                       f"{done.stderr.decode(errors='replace').strip()}")
    return done.stdout


def unpack(source, lab, group, *options):
    """A group of packages.txt, unpacked into a folder of that name."""
    tree = lab / group
    run([sys.executable, source / "lab/apt_view.py", "--packages", source / "lab/backends/packages.txt",
         "--group", group, "--architecture", "amd64", "--view", lab / "apt" / group, "--into", tree, *options],
        f"packages [{group}]", timeout=1500)
    return tree


def kernel_of(tree):
    images = sorted(tree.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise LabError(f"kernel: {tree}: {len(images)} files boot/vmlinuz-*, expected 1")
    return images[0]


# The probe

def build_probe(source, build, lab):
    """Compiled against the library of the dev preset; built again when a source or the library is younger."""
    library = build / "libguestmem.a"
    folder = source / "lab/backends/probe"
    program = lab / "probe"
    sources = sorted(folder.glob("*.cpp"))
    newest = max(path.stat().st_mtime for path in [library, *sources, *folder.glob("*.hpp")])
    if program.exists() and program.stat().st_mtime > newest:
        return program
    objects = lab / "objects"
    objects.mkdir(exist_ok=True)
    compiling = [Process(f"g++ {path.name}", ["g++", *COMPILER_FLAGS, f"-I{source}", "-c", path, "-o",
                                              objects / f"{path.stem}.o"]) for path in sources]
    for process in compiling:
        if process.wait(COMMAND_TIMEOUT) != 0:
            raise LabError(f"{process.name} failed\n{process.tail()}")
    making = lab / "probe.making"
    run(["g++", *(objects / f"{path.stem}.o" for path in sources), library, "-lfmt", "-pthread",
         "-o", making], "link the probe")
    making.rename(program)
    return program


# The initramfs

def make_initramfs(source, lab, name, programs, sources=()):
    """busybox, init.sh, the programs with the shared libraries that they need, and folders of the project.

    The folders are where they are outside, as the project's tests know them by that path.
    """
    busybox = shutil.which("busybox")
    if not busybox:
        raise LabError("busybox: not installed; the package is busybox-static (./dev setup)")
    root = lab / name
    shutil.rmtree(root, ignore_errors=True)
    for folder in ("bin", "dev", "etc", "proc", "sys", "tmp"):
        (root / folder).mkdir(parents=True)
    (root / "etc/passwd").write_text(USERS)
    (root / "etc/group").write_text(GROUPS)
    shutil.copy(busybox, root / "bin/busybox")
    shutil.copy(source / "lab/backends/init.sh", root / "init")
    (root / "init").chmod(0o755)
    for program in programs:
        shutil.copy(program, root / "bin" / program.name)
        for library in shared_libraries(program):
            place = root / str(library).lstrip("/")
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(library.resolve(), place)
    for folder in sources:
        shutil.copytree(source / folder, root / str(source).lstrip("/") / folder)
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    data = run([busybox, "cpio", "-o", "-H", "newc"], "initramfs", cwd=root, data=f"{names}\n".encode())
    archive = lab / f"{name}.cpio"
    archive.write_bytes(data)
    return archive


def shared_libraries(program):
    """The files that the dynamic linker takes, itself among them."""
    text = run(["ldd", program], f"libraries of {program.name}").decode()
    missing = re.findall(r"(\S+) => not found", text)
    if missing:
        raise LabError(f"{program}: libraries are missing: {', '.join(missing)}")
    return [Path(path) for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", text, re.MULTILINE)]


# A guest

@dataclass(frozen=True)
class Bed:
    """A part of the bed: what runs in the guest, and the machine that it needs."""

    part: str
    memory: str
    options: tuple = ()
    parameters: str = ""
    tests: str = ""       # the test program that runs; none: the probe's part of that name
    left_out: tuple = ()  # of its tests: pattern and reason
    limit: int = 60       # seconds for the program, counted by the guest

    @property
    def command(self):
        if not self.tests:
            return f"probe {self.part}"
        # Its whole path: some tests start the program anew.
        patterns = ":".join(pattern for pattern, _ in self.left_out)
        return f"/bin/{self.tests} --gtest_color=no --gtest_filter=-{patterns}"

    @property
    def timeout(self):
        return self.limit + BOOT_TIMEOUT


class Guest(Process):
    def __init__(self, bed, kernel, initramfs):
        super().__init__(bed.part, [
            QEMU, "-name", f"guestmem-lab-{bed.part}", "-accel", "tcg", "-cpu", "max", "-m", bed.memory,
            "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console", *bed.options,
            "-kernel", kernel, "-initrd", initramfs,
            "-append", f'{KERNEL_PARAMETERS} {bed.parameters} limit={bed.limit} command="{bed.command}"'])


def boot(results, bed, kernel, initramfs, log):
    """The guest when it has powered off; its lines are in the log, too."""
    guest = Guest(bed, kernel, initramfs)
    try:
        status = guest.wait(bed.timeout)
        results.expect(status == 0, f"{bed.part}: the guest powers off", f"QEMU ended with status {status}")
    except AssertionError as error:
        guest.kill()
        results.add("FAIL", f"{bed.part}: the guest powers off", str(error).splitlines()[0])
    log.write_text(guest.output() + "\n")
    return guest


def run_probe(results, bed, kernel, initramfs, log):
    """Takes over the lines of the probe."""
    guest = boot(results, bed, kernel, initramfs, log)
    count, ended = 0, None
    for line in guest.lines:
        if found := re.match(r"(PASS|FAIL|NOT RUN) ([\w-]+: .*)", line.text):
            count += 1
            name, _, detail = found.group(2).partition(DETAIL)
            results.add(found.group(1), name, detail)
        elif found := re.match(rf"END {re.escape(bed.part)} (\d+)$", line.text):
            ended = int(found.group(1))
    results.expect(ended == count, f"{bed.part}: the probe comes to its end",
                   f"{count} lines came, the probe says {ended}; see {os.path.relpath(log)}\n{guest.tail(15)}")


def run_tests(results, bed, kernel, initramfs, log):
    """Takes over what GoogleTest says: each test that fails or skips itself, and how many have passed."""
    guest = boot(results, bed, kernel, initramfs, log)
    text = guest.output()
    failed = sorted(set(re.findall(r"^\[  FAILED  \] (\w[\w/]*\.[\w/]+)", text, re.MULTILINE)))
    for name in failed:
        results.add("FAIL", f"{bed.part}: {name}", f"see {os.path.relpath(log)}")
    for name in sorted(set(re.findall(r"^\[  SKIPPED \] (\w[\w/]*\.[\w/]+)$", text, re.MULTILINE))):
        results.not_run(f"{bed.part}: {name}", f"it skips itself in this guest, too; see {os.path.relpath(log)}")
    for pattern, why in bed.left_out:
        results.not_run(f"{bed.part}: {pattern}", why)
    passed = re.search(r"^\[  PASSED  \] (\d+) tests?\.", text, re.MULTILINE)
    count = int(passed.group(1)) if passed else 0
    results.expect(count > 0, f"{bed.part}: {bed.tests} comes to its end ({count} tests have passed)",
                   f"see {os.path.relpath(log)}\n{guest.tail(15)}")
