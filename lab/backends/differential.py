# SPDX-License-Identifier: Apache-2.0
"""The same backend options for a later QEMU, for `guestmem backend explain`, and for the library itself.

QEMU comes from Debian's packages of another release, with all that it needs, down to its dynamic linker; it is called
through that linker, so that it sees the same files as the other two and takes no library of the machine. It has the
object and no machine. All three are asked about the same case, each with files of its own, and compared are: whether
it is taken; the properties that QMP shows; how the kernel says it is mapped; how the file is opened; how long the
files are afterwards.
"""

import hashlib
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from backend_cases import (CASES, LATER_CASES, LATER_DIFFERENCES, ROM_TABLE, Qemu, explain, make_files, mismatches,
                           reason_for)
from guests import LabError, run

SUITE = "trixie-backports"
GUARD_BYTES = 4096  # behind what it maps, QEMU leaves one page that nobody may touch

PREFIX = "qemu"


@dataclass(frozen=True)
class Mapping:
    permissions: str
    size_bytes: int
    opened: str  # read, read-write, nothing
    guest: str   # rom, ram


def command_of(tree):
    """QEMU by the linker and the libraries of its tree."""
    linker = tree / "lib64/ld-linux-x86-64.so.2"
    return [str(linker.resolve()), "--library-path", str(tree / "usr/lib/x86_64-linux-gnu"),
            str(tree / "usr/bin/qemu-system-x86_64")]


def run_differential(results, tree, program, probe, lab):
    command = command_of(tree)
    version = run([*command, "--version"], "the later QEMU", timeout=30).decode().split("\n", maxsplit=1)[0]
    major = re.search(r"version (\d+)", version)
    if not results.expect(major and int(major.group(1)) >= 11, f"{PREFIX}: it is version 11 or later", version):
        return
    check_libraries(results, command, tree)
    cases = [*CASES, *ROM_TABLE, *LATER_CASES]
    for case in cases:
        with tempfile.TemporaryDirectory(prefix="case-", dir=lab) as folder:
            try:
                wrong = compare(case, folder, command, program, probe)
            except (AssertionError, KeyError, OSError, ValueError) as error:
                wrong = [f"one of them ended, or its answer is not known here: {error!r}"]
            results.expect(not wrong, f"{PREFIX}: {name_of(case)}", "; ".join(wrong))
    for end, why in LATER_DIFFERENCES.items():
        results.expect(any(case.endswith(end) for case in cases), f"{PREFIX}: the difference '{end}' is of a case", why)


def name_of(case):
    """The case, with what it is to the two where they differ."""
    why = reason_for(case, LATER_DIFFERENCES)
    text = case.replace("{folder}/", "")
    return f"{text} (differs: {why})" if why else text


def check_libraries(results, command, tree):
    """Nothing of the machine's own libraries is in it."""
    qemu = Qemu(command, "memory-backend-ram,id=m,size=64K")
    try:
        with open(f"/proc/{qemu.process.pid}/maps", encoding="utf-8") as maps:
            files = set(re.findall(r"(/\S+\.so[.\d]*)$", maps.read(), re.MULTILINE))
    finally:
        qemu.close()
    foreign = sorted(path for path in files if not path.startswith(f"{tree}/"))
    results.expect(files and not foreign, f"{PREFIX}: it runs with its own libraries alone", ", ".join(foreign))


def compare(case, folder, command, program, probe):
    """What is wrong with a case, in sentences."""
    theirs, ours = os.path.join(folder, "theirs"), os.path.join(folder, "ours")
    for place in (theirs, ours):
        os.mkdir(place)
        make_files(place)
    before = files_of(theirs)
    text = case.replace("{folder}", theirs)
    taken, said = explain(program, text)
    wrong = [] if files_of(theirs) == before else ["explaining has changed files"]
    made = make(probe, case.replace("{folder}", ours))
    if taken != (made is not None):
        wrong.append(f"explained as {'taken' if taken else 'refused'}, and it was the other way when it was made")
    reason = reason_for(case, LATER_DIFFERENCES)
    qemu = Qemu(command, text)
    try:
        wrong += mismatches(taken, said, qemu, reason)
        if taken and qemu.taken and not reason:
            wrong += mismatched_mappings(said, made, mapping_of_qemu(qemu, said, theirs))
    finally:
        qemu.close()
    if taken and not reason and files_of(ours) != files_of(theirs):
        wrong.append(f"files are left as {files_of(ours)} here, {files_of(theirs)} by QEMU")
    if not taken and files_of(ours) != before:
        wrong.append(f"it was refused, and has left {files_of(ours)}")
    shutil.rmtree(ours)
    return wrong


def files_of(folder):
    """The files of a folder with their lengths and the beginning of a digest of what they have."""
    found = {}
    for name in sorted(os.listdir(folder)):
        data = Path(folder, name).read_bytes()
        found[name] = f"{len(data)} bytes, {hashlib.sha256(data).hexdigest()[:8]}"
    return found


def make(probe, text):
    """The mapping that the library makes; None when it is an error."""
    said = run([probe, "map", text], "probe map", timeout=30).decode()
    found = re.fullmatch(r"made: (\S{4}) (\d+) (\S+) (\S+)\n", said)
    if not found and not said.startswith("refused: "):
        raise LabError(f"probe map {text}: {said}")
    return Mapping(found.group(1), int(found.group(2)), found.group(3), found.group(4)) if found else None


def mismatched_mappings(said, made, theirs):
    if theirs is None:
        yield "the mapping of QEMU is not found in its /proc/PID/maps"
        return
    explained = Mapping(("rw-" if said["writable"] else "r--") + ("s" if said["share"] else "p"), said["mapped_bytes"],
                        made.opened, said["guest"])
    for name, ours in (("explained", explained), ("made", made)):
        if ours != theirs:
            yield f"{name} as {ours}, QEMU has {theirs}"


def mapping_of_qemu(qemu, said, folder):
    """What the kernel shows of the object: a mapping of its size, by its name, with the guard page behind it."""
    names = {
        "memory-backend-ram": r"/memfd:.* \(deleted\)" if said["share"] else "",
        "memory-backend-memfd": r"/memfd:.* \(deleted\)",
        "memory-backend-shm": r"/dev/shm/\S+ \(deleted\)",
        "memory-backend-file": re.escape(folder) + r"/.*",
    }
    with open(f"/proc/{qemu.process.pid}/maps", encoding="utf-8") as maps:
        rows = [re.match(r"(\w+)-(\w+) (\S{4}) \S+ \S+ \S+ *(.*)", line).groups() for line in maps]
    for (first, behind, permissions, name), (guard, guard_end, none, _) in zip(rows, rows[1:]):
        size = int(behind, 16) - int(first, 16)
        is_guarded = guard == behind and none == "---p" and int(guard_end, 16) - int(guard, 16) == GUARD_BYTES
        if size == said["mapped_bytes"] and is_guarded and re.fullmatch(names[said["type"]], name):
            return Mapping(permissions, size, how_opened(qemu, name), "ram" if permissions[1] == "w" else "rom")
    return None


def how_opened(qemu, name):
    """By the flags of the descriptor that QEMU keeps for the file."""
    if not name:
        return "nothing"
    folder = f"/proc/{qemu.process.pid}"
    for number in os.listdir(f"{folder}/fd"):
        if os.readlink(f"{folder}/fd/{number}") == name:
            with open(f"{folder}/fdinfo/{number}", encoding="utf-8") as info:
                flags = int(re.search(r"^flags:\s+(\d+)$", info.read(), re.MULTILINE).group(1), 8)
            return {os.O_RDONLY: "read", os.O_RDWR: "read-write"}[flags & os.O_ACCMODE]
    return "no descriptor"
