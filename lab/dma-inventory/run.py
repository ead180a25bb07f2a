# SPDX-License-Identifier: Apache-2.0
"""./dev lab dma-inventory: whether `guestmem dma discover` sees what the kernel sees.

usage: ./dev lab dma-inventory [--keep] [MACHINE...]

Boots machines that have an IOMMU each (QEMU by emulation, stock Debian kernels), lets each capture itself by the
program's own script, and compares: the groups that are found without looking at the kernel's groups, with the
kernel's. Without a MACHINE all are booted. Everything that is made is in build/lab-dma-inventory; removing that folder
removes all of it. With --keep the captures replace those of tests/conformance/machines, from which the tests read.
"""

import argparse
import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests/e2e"), str(SOURCE / "lab")]

import boot  # noqa: E402
import guest_image  # noqa: E402
import processes  # noqa: E402
from machines import MACHINES  # noqa: E402
from results import Results  # noqa: E402

PROGRAM = SOURCE / "build/dev/bin/guestmem"
LAB = SOURCE / "build/lab-dma-inventory"
KEPT = SOURCE / "tests/conformance/machines"
COMMAND_TIMEOUT = 60


def guestmem(*words):
    done = subprocess.run([PROGRAM, *map(str, words)], capture_output=True, text=True, check=False,
                          timeout=COMMAND_TIMEOUT)
    if done.returncode not in (0, 1):
        raise boot.BedError(f"guestmem {' '.join(map(str, words))}: exit status {done.returncode}\n{done.stderr}")
    return done.stdout


def unpack(archive, place):
    shutil.rmtree(place, ignore_errors=True)
    with tarfile.open(archive) as tar:
        tar.extractall(place)
    return place


def without_groups(tree, place):
    """The same machine, and nothing that the kernel says of groups."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(tree, place, symlinks=True)
    shutil.rmtree(place / "sys/kernel/iommu_groups", ignore_errors=True)
    for link in place.glob("sys/**/iommu_group"):
        link.unlink()
    return place


def partition(groups):
    """Sets of names, from a table of name: group."""
    sets = {}
    for name, group in groups.items():
        sets.setdefault(group, set()).add(name)
    return sorted(sorted(names) for names in sets.values())


def containments(inventory, names):
    """The containments of these devices only."""
    return partition({device["name"]: device["containment"] for device in inventory["devices"]
                      if device["name"] in names})


def check(results, machine, captured):
    def expect(is_good, text, detail=""):
        return results.expect(is_good, f"{machine.name}: {text}", detail)

    archive = LAB / f"{machine.name}.tar"
    archive.write_bytes(captured.archive)
    tree = unpack(archive, LAB / "trees" / machine.name)
    inventory = json.loads(guestmem("dma", "discover", "--json", "--root", tree))
    names = {device["name"] for device in inventory["devices"]}
    missing = sorted(set(captured.groups) - names)
    expect(not missing, f"every device of the kernel's {len(set(captured.groups.values()))} groups is found", missing)
    kinds = [unit["kind"] for unit in inventory["units"]]
    expect(set(kinds) == set(machine.units), f"its units are: {' '.join(machine.units) or 'none'}", kinds)
    told = {device["name"]: device["kernel_group"] for device in inventory["devices"]
            if device.get("kernel_group") is not None}
    expect(told == captured.groups, "the kernel's groups are read as they are", told)
    expect(json.loads(guestmem("dma", "discover", "--json", "--root", archive)) == inventory,
           "the archive and its folder say the same")

    if not captured.groups:
        expect(all(device["protection"] != "behind-unit" for device in inventory["devices"]), "no device is protected")
        return
    blind = json.loads(guestmem("dma", "discover", "--json", "--root",
                                without_groups(tree, LAB / "trees" / f"{machine.name}-blind")))
    kernels, found = partition(captured.groups), containments(blind, captured.groups)
    expect(found == kernels, f"{len(kernels)} groups found without the kernel's help are the kernel's",
           f"only the kernel: {[group for group in kernels if group not in found]}, "
           f"only here: {[group for group in found if group not in kernels]}")
    whole = containments(inventory, captured.groups)
    expect(whole == kernels, "with its help, too", f"{[group for group in whole if group not in kernels]}")
    unprotected = [device["name"] for device in inventory["devices"]
                   if device["name"] in captured.groups and device["protection"] != "behind-unit"]
    expect(not unprotected, "every device in a group is behind a unit", unprotected)
    expect(not [join for containment in inventory["containments"] for join in containment["joins"]
                if join["reason"] == "kernel-group"], "each join has a reason that is seen")


def run_machines(machines, is_kept):
    started = time.monotonic()
    results = Results("dma-inventory")
    script = guestmem("dma", "capture", "--script").encode()
    bed = boot.Bed(SOURCE, LAB, script)
    for machine in machines:
        say(f"{machine.name}: {machine.shows}")
        try:
            captured = bed.run(machine)
            check(results, machine, captured)
        except (boot.BedError, guest_image.ImageError) as error:
            results.expect(False, f"{machine.name}: it is captured", str(error))
            continue
        if is_kept:
            KEPT.mkdir(exist_ok=True)
            # The program blanks what the script cannot.
            guestmem("dma", "capture", "--root", LAB / f"{machine.name}.tar", KEPT / f"{machine.name}.tar")
    return results.finish([machine.name for machine in machines], time.monotonic() - started)


def arguments():
    parser = argparse.ArgumentParser(prog="./dev lab dma-inventory", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter, usage=argparse.SUPPRESS)
    names = [machine.name for machine in MACHINES]
    parser.add_argument("--keep", action="store_true", help="the captures become those that the tests read")
    parser.add_argument("machines", nargs="*", metavar="MACHINE", help=f"one of: {' '.join(names)}")
    parsed = parser.parse_args()
    for name in parsed.machines:
        if name not in names:
            parser.error(f"no machine {name}; there are: {' '.join(names)}")
    return parsed


def say(text):
    print(f"\033[1m==> {text}\033[0m" if os.isatty(1) else f"==> {text}", flush=True)


def main():
    parsed = arguments()
    if platform.machine() != "x86_64":
        sys.exit(f"lab dma-inventory: needs an x86-64 machine, this is {platform.machine()}")
    if not PROGRAM.exists():
        sys.exit(f"lab dma-inventory: {os.path.relpath(PROGRAM)}: not there; run ./dev build first")
    processes.exit_on_signals()
    LAB.mkdir(parents=True, exist_ok=True)
    with open(LAB / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"lab dma-inventory: another run holds {LAB / 'lock'}")
        try:
            chosen = [machine for machine in MACHINES if not parsed.machines or machine.name in parsed.machines]
            return run_machines(chosen, parsed.keep)
        except (guest_image.ImageError, OSError, AssertionError) as error:
            print(f"lab dma-inventory: {error}", file=sys.stderr)
            return 1
        finally:
            processes.ignore_signals()
            processes.stop_all()


if __name__ == "__main__":
    sys.exit(main())
