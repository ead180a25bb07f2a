# SPDX-License-Identifier: Apache-2.0
"""Backend options for QEMU and for `guestmem backend explain`, and the comparison of what the two make of them.

A case has {folder}, in which are: full (64 KiB), short (12 KiB), empty, "a,b", and no file called absent. Where the
two differ on purpose, a table of differences says why: its keys are the ends of cases. A difference that is not there
is a mismatch, and so is one that is there and is not named.
"""

import json
import os
import re
import subprocess
import threading

TIMEOUT = 30

FILES = (("full", 65536), ("short", 12288), ("empty", 0), ("a,b", 65536))
FILE = "memory-backend-file,id=m,mem-path={folder}/{name}"


def of_files(rows):
    return [FILE.replace("{name}", name) + rest for name, rest in rows]


# What every QEMU since 7.2 knows.
CASES = [
    "memory-backend-ram,id=m,size=1M",
    "memory-backend-ram,id=m,size=4097",
    "memory-backend-ram,id=m,size=1.5M,share=on",
    "memory-backend-ram,id=m,size=0x10000,merge=off,dump=off",
    "memory-backend-ram,id=m,size=64k,prealloc=on,prealloc-threads=2",
    "memory-backend-ram,id=m,size=64K,reserve=off",
    "memory-backend-ram,id=m,size=64K,reserve=off,prealloc=on",
    "memory-backend-ram,id=m,size=64K,host-nodes=0,policy=bind",
    "memory-backend-ram,id=m,size=64K,host-nodes=0-0,policy=interleave",
    "memory-backend-ram,id=m,size=64K,host-nodes=0",
    "memory-backend-ram,id=m,size=64K,policy=preferred",
    "memory-backend-ram,id=m,size=64K,host-nodes=128,policy=bind",
    "memory-backend-ram,id=m,size=64K,host-nodes=7,policy=bind",
    "memory-backend-ram,id=m,size=64K,prealloc-threads=0",
    "memory-backend-ram,id=m,size=0",
    "memory-backend-ram,id=m,size=-1",
    "memory-backend-ram,id=m,size=1X",
    "memory-backend-ram,id=m,size=1.5",
    "memory-backend-ram,id=m,size=16E",
    "memory-backend-ram,id=m",
    "memory-backend-ram,size=64K",
    "memory-backend-ram,id=1m,size=64K",
    "memory-backend-ram,id=m,size=64K,share=maybe",
    "memory-backend-ram,id=m,size=64K,share=yes",
    "memory-backend-ram,id=m,size=64K,share=y,merge=n,dump=true",
    "memory-backend-ram,id=m,size=64K,colour=blue",
    "memory-backend-ram,id=m,size=64K,mem-path=/tmp",
    "memory-backend-ram,id=m,size=64K,size=128K",
    "memory-backend-memfd,id=m,size=64K",
    "memory-backend-memfd,id=m,size=64K,share=off,seal=off",
    "memory-backend-memfd,id=m,size=4097",
    "memory-backend-memfd,id=m,size=6M,hugetlb=on,hugetlbsize=3M",
    "memory-backend-memfd,id=m,size=8M,hugetlb=on,hugetlbsize=4M",
    "memory-backend-memfd,id=m,size=64K,hugetlbsize=2M",
    "memory-backend-file,id=m,size=64K",
] + of_files([
    ("full", ",size=64K,share=on"),
    ("full", ",size=64K,share=off"),
    ("full", ",size=64K,share=on,readonly=on"),
    ("full", ",size=64K,share=off,readonly=on"),
    ("full", ",size=32K,share=on"),
    ("full", ",size=64K,align=2M"),
    ("full", ",size=64K,align=3M"),
    ("full", ",size=64K,align=1K"),
    ("full", ",size=4097,share=on"),
    ("full", ",size=64K,prealloc=on,share=on"),
    ("short", ",size=64K,share=on"),
    ("empty", ",size=64K,share=on"),
    ("empty", ",size=64K,share=on,readonly=on"),
    ("absent", ",size=64K,share=on"),
    ("absent", ",size=64K,share=off"),
    ("absent", ",size=64K,readonly=on"),
    ("none/absent", ",size=64K"),
    ("", ",size=64K"),
    ("", ",size=64K,readonly=on"),
    ("a,,b", ",size=64K"),
])

# The whole table of what share, readonly and rom mean together; rom came with QEMU 8.2.
ROM_TABLE = of_files([("full", f",size=64K,share={share},readonly={readonly}{rom}")
                      for share in ("off", "on") for readonly in ("off", "on")
                      for rom in ("", ",rom=auto", ",rom=off", ",rom=on")])

# Properties and types that came after 7.2: rom (8.2), offset (8.1), memory-backend-shm (9.1).
LATER_CASES = [
    "memory-backend-shm,id=m,size=64K",
    "memory-backend-shm,id=m,size=64K,share=on,prealloc=on",
    "memory-backend-shm,id=m,size=64K,share=off",
    "memory-backend-shm,id=m,size=4097",
    "memory-backend-shm,id=m,size=64K,mem-path=/tmp",
    "memory-backend-shm,id=m,size=64K,host-nodes=0,policy=bind",
    "memory-backend-ram,id=m,size=64K,rom=on",
    "memory-backend-memfd,id=m,size=64K,offset=4K",
    "memory-backend-ram,id=m,size=64K,share=on,share=off",
    "memory-backend-ram,id=m,size=64K,x-use-canonical-path-for-ramblock-id=on",
    "memory-backend-ram,id=m,size=64K,prealloc-threads=4294967296",
    "memory-backend-ram,id=m,size=1P,reserve=off",
    "memory-backend-ram,id=m,size=+64K",
    "memory-backend-ram,id=m,size= 64K",
    "memory-backend-ram,id=m,size=.5M",
    "memory-backend-ram,id=m,size=1.M",
    "memory-backend-ram,id=m,size=010000",
    "memory-backend-ram,id=m,size=1e3",
    "memory-backend-ram,id=m,size=0x10K",
    "memory-backend-ram,id=m,size=64KiB",
    "memory-backend-ram,id=m,size=65536b",
    "memory-backend-ram,id=m,size=64K,noshare",
    "memory-backend-ram,id=m,size=64K,host-nodes=0,host-nodes=0,policy=bind",
    "memory-backend-ram,id=m,size=64K,host-nodes=1-0,policy=bind",
    "memory-backend-ram,id=m,size=64K,policy=BIND,host-nodes=0",
    "qom-type=memory-backend-ram,id=m,size=64K",
] + of_files([
    ("full", ",size=60K,offset=4K,share=on"),
    ("full", ",size=60K,offset=4096,readonly=on"),
    ("full", ",size=64K,offset=4K,share=on"),
    ("full", ",size=4K,offset=60K,share=off,readonly=on,rom=off"),
    ("full", ",size=4K,offset=64K,share=on"),
    ("full", ",size=4K,offset=100,share=on"),
    ("full", ",size=4K,offset=-4K,share=on"),
    ("full", ",size=4K,offset=0x7ffffffffffff000,share=on"),
    ("full", ",size=4K,offset=0xfffffffffffff000,share=on"),
    ("full", ",size=64K,rom=maybe"),
    ("full", ",size=64K,rom=yes"),
    ("full", ",size=64K,share=on,readonly=on,prealloc=on"),
    ("full", ",size=64K,share=off,readonly=on,prealloc=on"),
    ("full", ",size=64K,share=off,readonly=on,rom=off,prealloc=on"),
    ("full", ",size=64K,share=off,reserve=off"),
    ("full", ",size=64K,share=on,discard-data=on"),
    ("full", ",size=100,share=on"),
    ("full", ",size=64K,align=4K,offset=0"),
    ("short", ",size=12K,offset=0,share=off"),
    ("short", ",size=8K,offset=8K,share=off"),
    ("empty", ",size=64K,offset=4K,share=on"),
    ("empty", ",size=64K,offset=4K,share=off"),
    ("empty", ",size=64K,readonly=on,rom=off"),
    ("absent", ",size=64K,offset=1M,share=on"),
    ("absent", ",size=64K,offset=100,share=on"),
    ("absent", ",size=100,share=on"),
    ("absent", ",size=64K,readonly=on,rom=off"),
    ("", ",size=64K,offset=4K"),
    ("full", ",size=64K,align=256T"),
    ("full", ",size=64K,share=on,pmem=on"),
    ("full", ",size=64K,share=off,discard-data=on"),
    ("full", ",size=60K,offset=4K,share=on,discard-data=on"),
    ("full", ",size=64K,offset=1.5K"),
    ("full", ",size=64K,rom"),
    ("full", ",size=64K,prealloc"),
])

_EMPTY = "QEMU starts, and its first access is SIGBUS"
_TWO_VALUES = "QEMU takes the last of two values; here they contradict each other"
_C_NUMBERS = "QEMU takes what C takes for a number: a sign, blanks, no digits on one side of the point"

DIFFERENCES = {
    "absent,size=64K,readonly=on": "QEMU 7.2 makes the file; later ones do not",
    "empty,size=64K,share=on,readonly=on": _EMPTY,
    "full,size=4097,share=on": "QEMU 7.2 takes any size of a file that is long enough; later ones do not",
    "size=64K,size=128K": _TWO_VALUES,
}

# Of QEMU 11, over all cases.
LATER_DIFFERENCES = {
    "empty,size=64K,share=on,readonly=on": _EMPTY,
    "empty,size=64K,readonly=on,rom=off": _EMPTY,
    "size=64K,size=128K": _TWO_VALUES,
    "share=on,share=off": _TWO_VALUES,
    "x-use-canonical-path-for-ramblock-id=on": "names of migration streams; there are none here",
    "size=+64K": _C_NUMBERS,
    "size= 64K": _C_NUMBERS,
    "size=.5M": _C_NUMBERS,
    "size=1.M": _C_NUMBERS,
}


def make_files(folder):
    for name, size in FILES:
        with open(os.path.join(folder, name), "wb") as file:
            file.write(b"x" * size)


def explain(program, text):
    """(is it taken, the JSON of the backend or None)."""
    done = subprocess.run([program, "backend", "explain", "--json", text], capture_output=True, text=True, check=False,
                          timeout=TIMEOUT)
    if done.returncode not in (0, 1):
        assert done.returncode == 2 and done.stderr, done
        return False, None
    said = json.loads(done.stdout)
    assert said["is_refused"] == (done.returncode == 1), said
    return not said["is_refused"], said["backends"][0]


class Qemu:
    """A QEMU that has one object and no machine, asked over QMP; taken is False when it did not start.

    One that does not answer is killed, and then has not started or has closed its output.
    """

    def __init__(self, command, text):
        self.process = subprocess.Popen(
            [*command, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-object", text, "-qmp", "stdio"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self._watchdog = threading.Timer(TIMEOUT, self.process.kill)
        self._watchdog.start()
        self.taken = bool(self.process.stdout.readline())
        if self.taken:
            self.ask("qmp_capabilities")

    def ask(self, command, **arguments):
        print(json.dumps({"execute": command, "arguments": arguments}), file=self.process.stdin, flush=True)
        while True:
            answer = json.loads(self.process.stdout.readline())
            if "event" not in answer:
                return answer

    def property(self, name):
        return self.ask("qom-get", path="/objects/m", property=name)["return"]

    def permissions(self, path):
        """How the file is mapped, as /proc/PID/maps says: rw-s; None when it is not there."""
        with open(f"/proc/{self.process.pid}/maps", encoding="utf-8") as maps:
            for line in maps:
                found = re.match(r"\S+ (\S{4}) \S+ \S+ \S+\s+(.*)", line)
                if found and found.group(2) == path:
                    return found.group(1)
        return None

    def close(self):
        try:
            if self.taken:
                self.ask("quit")
        except (OSError, ValueError):  # it has ended already
            pass
        try:
            self.process.stdin.close()
        except OSError:
            pass
        self.process.wait(timeout=2 * TIMEOUT)
        self._watchdog.cancel()
        self.process.stdout.close()


def reason_for(case, differences):
    """Why the two differ in this case; None when they do not."""
    return next((why for end, why in differences.items() if case.endswith(end)), None)


def mismatches(taken, said, qemu, reason=None):
    """What is wrong between `explain` and a running QEMU, in sentences; none when all is as it should be."""
    if reason:
        return [] if taken != qemu.taken else [f"is no difference any more: {reason}"]
    if taken != qemu.taken:
        words = {True: "taken", False: "refused"}
        why = [problem["code"] for problem in said["problems"]] if said else "not read"
        return [f"{words[taken]} here, {words[qemu.taken]} by QEMU: {why}"]
    return list(_mismatched_properties(qemu, said)) if taken else []


def _mismatched_properties(qemu, said):
    options = said["options"]
    wanted = {
        "size": said["size_bytes"],
        "share": said["share"],
        "merge": "merge=off" not in options,
        "dump": "dump=off" not in options,
        "prealloc": "prealloc=on" in options,
        "reserve": "reserve=off" not in options,
        "host-nodes": said["host_nodes"],
    }
    for name, value in wanted.items():
        if (theirs := qemu.property(name)) != value:
            yield f"{name} is {value} here, {theirs} in QEMU"
    if said["type"] == "memory-backend-file" and said["file_effect"] != "temporary":
        ours = ("rw-" if said["writable"] else "r--") + ("s" if said["share"] else "p")
        theirs = qemu.permissions(qemu.property("mem-path"))
        if ours != theirs:
            yield f"the mapping is {ours} here, {theirs} in QEMU"
