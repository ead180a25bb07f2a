# SPDX-License-Identifier: Apache-2.0
"""What may include what: the order of the rooms, system headers, public headers."""

import re

from project import Problem

# A room of guestmem/ and all that it may include besides itself. ARCHITECTURE.md draws the same picture.
# The order is base, sys, control, mem, device; then share and dma side by side; then vmm and cli.
ROOMS = {
    "base": (),
    "sys": ("base",),
    "control": ("base", "sys"),
    "mem": ("base", "sys", "control"),
    "device": ("base", "sys", "control", "mem"),
    "share": ("base", "sys", "control", "mem", "device"),
    "dma": ("base", "sys", "control", "mem", "device"),
    "vmm": ("base", "sys", "control", "mem", "device", "share", "dma"),
    "cli": ("base", "sys", "control", "mem", "device", "share", "dma", "vmm"),
}

# Rooms that are programs, not part of the library: their headers are nobody's door.
PROGRAMS = ("cli",)

# Headers that system calls come from. Only guestmem/sys and the guests' payloads include them; tests, benches
# and fuzzers may, since they also play the part of the world outside.
SYSTEM_HEADER = re.compile(
    r"sys/.*|linux/.*|asm/.*|arpa/.*|net/.*|netinet/.*|systemd/.*|"
    r"(unistd|fcntl|poll|signal|pthread|sched|dirent|pwd|grp|ifaddrs|netdb|semaphore|mqueue|spawn|syslog|"
    r"termios|ucontext|utime|wait|time|dlfcn|ftw|glob|mntent|numa|numaif|sd-daemon)\.h")

# Libraries whose types stay out of public headers.
THIRD_PARTY = re.compile(
    r"(fmt|nlohmann|toml\+\+|CLI|spdlog|systemd|boost|asio|libfdt|benchmark|gtest|gmock)/.*|toml\.hpp|asio\.hpp|"
    r"libfdt\.h|numa\.h|seccomp\.h|xen.*\.h")

_INCLUDE = re.compile(r'^\s*#\s*include\s*([<"])([^>"]+)[>"]')
_PROOF = re.compile(r"_(test|bench|fuzz)\.cpp$")


def includes(file):
    """Yields (line number, is quoted, what) for each #include of a file."""
    for number, line in enumerate(file.lines, 1):
        if found := _INCLUDE.match(line):
            yield number, found.group(1) == '"', found.group(2)


def room_of(path):
    """The room of a path like guestmem/share/ivshmem/wire.hpp: share."""
    parts = path.split("/")
    return parts[1] if len(parts) > 2 and parts[0] == "guestmem" else None


def is_proof(file):
    """Whether it is a test, a bench or a fuzzer, or a fake made for them."""
    is_apart = file.path.startswith(("tests/", "bench/")) or "/testing/" in file.path
    return is_apart or bool(_PROOF.search(file.path))


def check_layers(project):
    for folder in sorted(folder for folder in project.folders if folder.count("/") == 1):
        if folder.startswith("guestmem/") and folder.split("/")[1] not in ROOMS:
            yield Problem(folder, 0, "an unknown room: give it a place in ROOMS of tests/house/layers.py and in "
                                     "ARCHITECTURE.md")
    for file in project.cpp:
        room = room_of(file.path)
        if room not in ROOMS:
            continue
        for number, is_quoted, what in includes(file):
            other = room_of(what)
            if is_quoted and other is None:
                yield file.problem(number, f'include "{what}" by its full path, "guestmem/<room>/<thing>.hpp"')
            elif other and other != room and other not in ROOMS[room]:
                below = ", ".join(ROOMS[room]) or "nothing"
                yield file.problem(number, f"{room} includes {other}, which is not below it ({room} may include "
                                           f"{below}): turn the dependency around, or move the thing down")


def check_system_headers(project):
    for file in project.cpp:
        room = room_of(file.path)
        if room in (None, "sys") or is_proof(file):
            continue
        for number, is_quoted, what in includes(file):
            if not is_quoted and SYSTEM_HEADER.fullmatch(what):
                yield file.problem(number, f"<{what}> is for guestmem/sys only: use or add a function there "
                                           "(system calls are made and made to fail in one room)")


def check_public_headers(project):
    for file in project.with_suffix(".hpp", ".h"):
        room = room_of(file.path)
        if room is None or room in PROGRAMS or is_proof(file):
            continue
        for number, _, what in includes(file):
            if THIRD_PARTY.fullmatch(what):
                yield file.problem(number, f"<{what}> in a public header: include it in the .cpp, and show plain "
                                           "types here (a forward declaration or an implementation class)")
