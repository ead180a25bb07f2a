# SPDX-License-Identifier: Apache-2.0
"""./dev lab backends: the memory backends where a plain machine cannot show them.

usage: ./dev lab backends [PART...]

Guests by emulation have the nodes, the reserved memory, the huge pages and the control groups; the library itself
runs in them, and the kernel is asked what became of its pages. Without a PART all are run. Everything that is made
is in build/lab-backends; removing that folder removes all of it.
"""

import argparse
import fcntl
import os
import platform
import sys
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests/e2e"), str(SOURCE / "tests/conformance"), str(SOURCE / "lab")]

import differential  # noqa: E402
import guests  # noqa: E402
import processes  # noqa: E402
from results import Results  # noqa: E402

BUILD = SOURCE / "build/dev"
KNOWN = {}  # see Results
LAB = SOURCE / "build/lab-backends"

# What the project's own tests find in a guest: two nodes with a processor each, huge pages, swap, and
# control groups of the first version.
TWO_NODES_AND_SWAP = (
    "-smp", "2,sockets=2",
    "-object", "memory-backend-ram,id=n0,size=2G", "-numa", "node,nodeid=0,memdev=n0,cpus=0",
    "-object", "memory-backend-ram,id=n1,size=2G", "-numa", "node,nodeid=1,memdev=n1,cpus=1",
    "-drive", f"file={LAB / 'swap'},if=none,format=raw,id=swap", "-device", "nvme,drive=swap,serial=swap")
_SAME = "long, and sees nothing of the machine that it has not seen outside"
LEFT_OUT = (("All/Conformance.*", _SAME), ("All/Preallocated.*", _SAME), ("BackendPlanHostile.*", _SAME))
SYS_LEFT_OUT = (("FaultGuard.ACaughtFaultTakesMicroseconds", "measures time, which emulation stretches"),)
# nokaslr: two tests of nodes take the kernel's page of zeros to be on node 0, where it is unless the kernel moves.
TEST_PARAMETERS = "nokaslr hugepagesz=2M hugepages=32 control_groups=1"

BEDS = [
    guests.Bed("numa", "576M", (
        "-object", "memory-backend-ram,id=n0,size=384M", "-numa", "node,nodeid=0,memdev=n0,cpus=0",
        "-object", "memory-backend-ram,id=n1,size=128M", "-numa", "node,nodeid=1,memdev=n1",
        "-object", "memory-backend-ram,id=n2,size=64M", "-numa", "node,nodeid=2,memdev=n2"), "hugepages=0:8,1:4"),
    guests.Bed("physical", "512M", (
        "-object", f"memory-backend-file,id=shm,mem-path={LAB / 'device'},size=1M,share=on",
        "-device", "ivshmem-plain,memdev=shm"), "memmap=64M$0x10000000"),
    guests.Bed("huge", "2560M", (), "default_hugepagesz=2M hugepagesz=1G hugepages=1 hugepagesz=2M hugepages=32"),
    guests.Bed("memory", "256M"),
    guests.Bed("cgroup-v2", "512M"),
    guests.Bed("cgroup-v1", "512M"),
    guests.Bed("tests", "4G", TWO_NODES_AND_SWAP, TEST_PARAMETERS, "mem_backends_test", LEFT_OUT, 400),
    guests.Bed("sys-tests", "4G", TWO_NODES_AND_SWAP, TEST_PARAMETERS, "sys_test", SYS_LEFT_OUT, 400),
]


def prepare_swap():
    with open(LAB / "swap", "wb") as file:
        file.truncate(256 << 20)


def prepare_device():
    """What the memory of the ivshmem device shows in the guest."""
    data = bytearray(1 << 20)
    data[4096:4108] = b"from outside"
    (LAB / "device").write_bytes(data)


def check_device(results):
    """What the guest has left in the memory of the device."""
    data = (LAB / "device").read_bytes()
    results.expect(data[8192:8204] == b"from inside!" and data[-8:] == b"abcdefgh",
                   "physical: the file behind the device has what was written in the guest",
                   f"{data[8192:8204]} and {data[-8:]}")


def arguments():
    parser = argparse.ArgumentParser(prog="./dev lab backends", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    names = [*(bed.part for bed in BEDS), "qemu"]
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"one of: {' '.join(names)}")
    parts = parser.parse_args().parts or names
    for part in parts:
        if part not in names:
            parser.error(f"no part {part}; there are: {' '.join(names)}")
    return parts


def run_guests(results, parts, probe):
    say("a kernel from the Debian archive")
    kernel = guests.kernel_of(guests.unpack(SOURCE, LAB, "kernel"))
    for bed in BEDS:
        if bed.part not in parts:
            continue
        say(f"a guest for: {bed.part}")
        log = LAB / f"{bed.part}.log"
        if bed.tests:
            prepare_swap()
            programs = [BUILD / "bin" / bed.tests]
            initramfs = guests.make_initramfs(SOURCE, LAB, "initramfs-tests", programs, guests.SOURCES)
            guests.run_tests(results, bed, kernel, initramfs, log)
            continue
        initramfs = guests.make_initramfs(SOURCE, LAB, "initramfs", [probe])
        if bed.part == "physical":
            prepare_device()
        guests.run_probe(results, bed, kernel, initramfs, log)
        if bed.part == "physical":
            check_device(results)


def run_parts(parts):
    started = time.monotonic()
    results = Results("backends", KNOWN)
    say("the probe")
    probe = guests.build_probe(SOURCE, BUILD, LAB)
    if any(bed.part in parts for bed in BEDS):
        run_guests(results, parts, probe)
    if "qemu" in parts:
        say(f"QEMU of {differential.SUITE} from the Debian archive")
        tree = guests.unpack(SOURCE, LAB, "qemu", "--suite", differential.SUITE)
        say("the same options for that QEMU and for guestmem")
        differential.run_differential(results, tree, BUILD / "bin/guestmem", probe, LAB)
    return results.finish(parts, time.monotonic() - started)


def say(text):
    print(f"\033[1m==> {text}\033[0m" if os.isatty(1) else f"==> {text}", flush=True)


def main():
    parts = arguments()
    if platform.machine() != "x86_64":
        sys.exit(f"lab backends: its guests are amd64 and run programs of this machine, which is {platform.machine()}")
    processes.exit_on_signals()
    LAB.mkdir(parents=True, exist_ok=True)
    with open(LAB / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"lab backends: another run holds {LAB / 'lock'}")
        try:
            return run_parts(parts)
        except (guests.LabError, OSError, AssertionError) as error:
            print(f"lab backends: {error}", file=sys.stderr)
            return 1
        finally:
            processes.ignore_signals()
            processes.stop_all()


if __name__ == "__main__":
    sys.exit(main())
