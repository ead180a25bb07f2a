# SPDX-License-Identifier: Apache-2.0
"""The same backend options for the installed QEMU and for `guestmem backend explain`: outcome, properties, mapping.

Where the two differ on purpose, DIFFERENCES says why; a difference that is not there fails, and so does one that is
there and is not named.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

PROGRAM = os.environ["GUESTMEM"]
QEMU = shutil.which("qemu-system-x86_64")
SKIPPED = 77

FILE = "memory-backend-file,id=m,mem-path={folder}/{name}"

# What both are asked for. {folder} has: full (64 KiB), short (12 KiB), empty, and no file called absent.
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
] + [
    FILE.replace("{name}", name) + rest
    for name, rest in [
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
    ]
]

# Cases that end another way here, and why. The key is the end of the case.
DIFFERENCES = {
    "absent,size=64K,readonly=on": "QEMU 7.2 makes the file; later ones do not",
    "empty,size=64K,share=on,readonly=on": "QEMU starts, and its first access is SIGBUS",
    "full,size=4097,share=on": "QEMU 7.2 takes any size of a file that is long enough; later ones do not",
    "size=64K,size=128K": "QEMU takes the last of two sizes; here they contradict each other",
}


def explain(text):
    """(is it taken, the JSON of the backend or None)."""
    done = subprocess.run([PROGRAM, "backend", "explain", "--json", text], capture_output=True, text=True, check=False)
    if done.returncode not in (0, 1):
        assert done.returncode == 2 and done.stderr, done
        return False, None
    said = json.loads(done.stdout)
    assert said["is_refused"] == (done.returncode == 1), said
    return not said["is_refused"], said["backends"][0]


class Qemu:
    """A QEMU that has one object and no machine, asked over QMP; taken is False when it did not start."""

    def __init__(self, text):
        self.process = subprocess.Popen(
            [QEMU, "-machine", "none", "-nodefaults", "-display", "none", "-S", "-object", text, "-qmp", "stdio"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
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
        if self.taken:
            self.ask("quit")
        self.process.stdin.close()
        self.process.wait(timeout=30)
        self.process.stdout.close()


class BackendOptions(unittest.TestCase):
    def test_qemu_and_we_say_the_same(self):
        for case in CASES:
            with self.subTest(case=case), tempfile.TemporaryDirectory() as folder:
                for name, size in (("full", 65536), ("short", 12288), ("empty", 0), ("a,b", 65536)):
                    with open(os.path.join(folder, name), "wb") as file:
                        file.write(b"x" * size)
                self.compare(case, folder)

    def compare(self, case, folder):
        text = case.replace("{folder}", folder)
        before = sorted(os.listdir(folder))
        taken, said = explain(text)
        self.assertEqual(sorted(os.listdir(folder)), before, "explaining makes no file")
        qemu = Qemu(text)
        try:
            reasons = [why for end, why in DIFFERENCES.items() if case.endswith(end) and why]
            if reasons:
                self.assertNotEqual(taken, qemu.taken, f"is no difference any more: {reasons[0]}")
                return
            self.assertEqual(taken, qemu.taken, f"here: {said['problems'] if said else 'not read'}")
            if taken:
                self.compare_properties(qemu, said)
        finally:
            qemu.close()

    def compare_properties(self, qemu, said):
        self.assertEqual(said["size_bytes"], qemu.property("size"))
        self.assertEqual(said["share"], qemu.property("share"))
        options = said["options"]
        self.assertEqual("merge=off" not in options, qemu.property("merge"))
        self.assertEqual("dump=off" not in options, qemu.property("dump"))
        self.assertEqual("prealloc=on" in options, qemu.property("prealloc"))
        self.assertEqual("reserve=off" not in options, qemu.property("reserve"))
        self.assertEqual(said["host_nodes"], qemu.property("host-nodes"))
        if said["type"] == "memory-backend-file" and said["file_effect"] != "temporary":
            wanted = ("rw-" if said["writable"] else "r--") + ("s" if said["share"] else "p")
            self.assertEqual(wanted, qemu.permissions(qemu.property("mem-path")))


if __name__ == "__main__":
    if not QEMU:
        print("SKIPPED: there is no qemu-system-x86_64")
        sys.exit(SKIPPED)
    unittest.main(verbosity=2)
