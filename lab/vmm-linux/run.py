# SPDX-License-Identifier: Apache-2.0
"""./dev lab vmm-linux: stock Linux guests of `guestmem run`, in an emulated host that has KVM.

usage: ./dev lab vmm-linux [GUEST...]

QEMU emulates a processor with AMD's virtualization (TCG), and the same Debian kernel is host and guest. Without a GUEST
all are run, one after the other in one host. Their consoles are in build/lab-vmm-linux/host.log.
"""

import argparse
import fcntl
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(SOURCE / "tests/e2e"), str(SOURCE / "lab")]

import guest_image  # noqa: E402
import nested_linux  # noqa: E402
import processes  # noqa: E402
from nested_linux import Setup  # noqa: E402
from results import Results  # noqa: E402

BUILD = SOURCE / "build/dev"
LAB = SOURCE / "build/lab-vmm-linux"
BOOT_TIMEOUT = 120
GUEST_TIMEOUT = 120  # a guest takes 6 to 13 s

RESET, GAVE_UP = 3, 7
IO_APIC = {"i8042": "IO-APIC 1-edge", "ttyS0": "IO-APIC 4-edge", "rtc0": "IO-APIC 8-edge", "acpi": "IO-APIC 9-fasteoi"}
PIC = {device: "XT-PIC" for device in ("cascade", *IO_APIC)}


@dataclass(frozen=True)
class Bed:
    """A guest, and what is particular about it."""

    setup: Setup
    shows: str
    wiring: dict
    clock: str = "kvm-clock"
    may_complain: tuple = ()  # patterns

    @property
    def name(self):
        return self.setup.name


BEDS = [
    Bed(Setup("bzimage", parameters="window=1 hear=1"), "a bzImage, shared memory, the console", IO_APIC),
    Bed(Setup("pvh", is_unpacked=True), "the kernel's ELF file by its PVH note", IO_APIC),
    Bed(Setup("one", processors=1), "one processor", IO_APIC),
    Bed(Setup("four", processors=4), "four processors on a host of two", IO_APIC),
    Bed(Setup("high", memory="ram 0,128M\nram 0x100000000,128M"), "memory above 4 GiB", IO_APIC),
    Bed(Setup("pic", parameters="noapic"), "the two 8259 instead of the I/O APIC", PIC,
        # The parameter's doing.
        may_complain=(r"^Not enabling interrupt remapping due to skipped IO-APIC setup",)),
    Bed(Setup("pit", parameters="nolapic_timer no-kvmclock tsc=unstable"), "only the 8254 and ACPI's timer",
        {"timer": "IO-APIC 0-edge", **IO_APIC}, clock="acpi_pm",
        # What is left after the parameters cannot count down to a moment, and an access takes longer by emulation than
        # Linux has patience for when it measures time.
        may_complain=(r"^Clockevents: could not switch to one-shot mode", r"^lapic is not functional",
                      r"^Could not switch to high resolution mode", r"^tsc: .*calibrat")),
    Bed(Setup("reset-acpi", parameters="then=reboot reboot=acpi", status=RESET), "reset by ACPI's register", IO_APIC),
    Bed(Setup("reset-keyboard", parameters="then=reboot reboot=k", status=RESET), "reset by the keyboard controller",
        IO_APIC),
    Bed(Setup("reset-pci", parameters="then=reboot reboot=pci", status=RESET), "reset by port 0xcf9", IO_APIC),
    Bed(Setup("triple-fault", parameters="then=reboot reboot=t", status=GAVE_UP), "a processor that gives up", IO_APIC),
    Bed(Setup("panic", parameters="then=panic", status=RESET), "a panic that ends in a reset", IO_APIC),
]


def check(results, bed, host):
    guest = host.outcome(bed.setup)

    def expect(is_good, text, detail=""):
        results.expect(is_good, f"{bed.name}: {text}", detail)

    expect(guest.status == bed.setup.status, f"{bed.shows}: it ends with {bed.setup.status} ({guest.seconds} s)",
           f"it ended with {guest.status}")
    expect(guest.found("processors") == [str(bed.setup.processors)], "all processors", guest.found("processors"))
    expect(guest.found("clock") == [bed.clock], f"its clock is {bed.clock}", guest.found("clock"))
    wiring = {device: how for device, (how, _) in guest.interrupts().items()}
    expect(wiring == bed.wiring, "interrupts are wired as they should", wiring)
    expect(guest.found("keyboard") == ["i8042 KBD port"], "the keyboard controller", guest.found("keyboard"))
    expect({"1c05:0001", "1af4:1110"} <= set(guest.devices()), "PCI devices", guest.devices())
    complaints = [text for text in guest.complaints() if not nested_linux.is_known(text, bed.may_complain)]
    expect(guest.found("kernel") and not complaints, "its kernel complains of nothing", complaints)
    if "window=" in bed.setup.parameters:
        expect("host: read answer to: hello from the host." in host.output(), "an answer in the shared memory")
        expect("host: the wait for a ring ended with 0" in host.output(), "its ring arrives")
        expect(guest.found("word") == ["swordfish"], "a word typed on the console arrives", guest.found("word"))


def run_beds(beds):
    started = time.monotonic()
    results = Results("vmm-linux")
    host = nested_linux.Host(BUILD / "bin/guestmem", BUILD, SOURCE, LAB, [bed.setup for bed in beds], say)
    say(f"a host with {len(beds)} guests")
    try:
        status = host.wait(BOOT_TIMEOUT + GUEST_TIMEOUT * len(beds))
        results.expect(status == 0, "host: it is switched off", f"QEMU ended with status {status}")
    except AssertionError as error:
        host.kill()
        results.expect(False, "host: it is switched off", str(error).splitlines()[0])
    (LAB / "host.log").write_text(host.output() + "\n")
    for bed in beds:
        check(results, bed, host)
    return results.finish([bed.name for bed in beds], time.monotonic() - started)


def say(text):
    print(f"\033[1m==> {text}\033[0m" if os.isatty(1) else f"==> {text}", flush=True)


def main():
    parser = argparse.ArgumentParser(prog="./dev lab vmm-linux", formatter_class=argparse.RawDescriptionHelpFormatter,
                                     description="Stock Linux guests of `guestmem run` in an emulated host with KVM.",
                                     epilog="\n".join(f"{bed.name:<16}{bed.shows}" for bed in BEDS))
    parser.add_argument("guests", nargs="*", metavar="GUEST", help="one of those below; none: all")
    wanted = parser.parse_args().guests
    unknown = set(wanted) - {bed.name for bed in BEDS}
    if unknown:
        parser.error(f"there is no guest {' '.join(sorted(unknown))}")
    if platform.machine() != "x86_64":
        sys.exit(f"lab vmm-linux: its machines are amd64 and run programs of this one, which is {platform.machine()}")
    processes.exit_on_signals()
    LAB.mkdir(parents=True, exist_ok=True)
    with open(LAB / "lock", "w", encoding="utf-8") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"lab vmm-linux: another run holds {LAB / 'lock'}")
        try:
            return run_beds([bed for bed in BEDS if not wanted or bed.name in wanted])
        except (guest_image.ImageError, OSError, AssertionError) as error:
            print(f"lab vmm-linux: {error}", file=sys.stderr)
            return 1
        finally:
            processes.ignore_signals()
            processes.stop_all()


if __name__ == "__main__":
    sys.exit(main())
