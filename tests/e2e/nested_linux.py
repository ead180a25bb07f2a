# SPDX-License-Identifier: Apache-2.0
"""A Linux that `guestmem run` boots in a host that is itself a machine: QEMU emulates a processor with AMD's
virtualization (TCG), a stock Debian kernel with KVM boots in it, and the program runs there as it would on hardware.

A Setup is one configuration of a guest; `Host` boots one host that runs them one after the other, and `Outcome` is what
guests/linux.sh and guests/host.sh said of one.
"""

import ctypes
import ctypes.util
import re
import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

import guest_image
import qemu
from processes import Process

# TCG does not intercept XSETBV: KVM in it does not learn which state a guest has switched on, and Linux finds
# sizes in CPUID that do not agree. Without XSAVE there is nothing to disagree about.
PROCESSOR = "max,+svm,-xsave"
KERNEL_PARAMETERS = "console=ttyS0 quiet panic=-1"
SHARE = "mailbox"
SHARE_BYTES = 1 << 20
VECTORS = 2
COMMAND_TIMEOUT = 60

# What Linux complains of in this bed, and why.
KNOWN_COMPLAINTS = {
    r"fail to add MMCONFIG information": "a conventional PCI bus has no extended configuration space",
    r"^i8042: PNP: PS/2 appears to have AUX port disabled": "vdev pckeyboard has no mouse",
    r"^Unstable clock detected": "the time stamp counters of processors that TCG emulates in threads differ",
    r"^If you want to keep using the local clock": "the same",
    r'^"trace_clock=local"': "the same",
    r"^on the kernel command line": "the same",
    r"^clocksource: ": "its watchdog has found the same, or a busy machine",
    r"^TSC found unstable after boot": "the same",
    r"^hrtimer: interrupt took": "a busy machine",
}


def is_known(complaint, others=()):
    return any(re.search(pattern, complaint) for pattern in (*KNOWN_COMPLAINTS, *others))


@dataclass(frozen=True)
class Setup:
    """A guest. `is_unpacked`: an ELF file entered through its PVH note, instead of a bzImage."""

    name: str
    processors: int = 2
    memory: str = "ram 256M"
    parameters: str = ""
    is_unpacked: bool = False
    status: int = 0  # what `guestmem run` ends with

    def configuration(self):
        """Every device that there is, the I/O APIC where only its table says that it is."""
        cpus = "cpu\n" * self.processors
        return f"""system {self.name}
{self.memory}
{cpus}load /guest/{"vmlinux" if self.is_unpacked else "vmlinuz"}
initrd load /guest/initramfs
cmdline "{KERNEL_PARAMETERS} {self.parameters}"
vdev ioapic
    loc 0xf8000000
    intr apic
    name myioapic
vdev ser8250
    intr myioapic:4
vdev timer8254
    intr myioapic:0
vdev mc146818
vdev pckeyboard
vdev pci
vdev shmem
    create TEST1,0xf0000
vdev ivshmem
    share {SHARE}
    size {SHARE_BYTES >> 20}M
    vectors {VECTORS}
"""


class Outcome:
    """What was said of one guest."""

    def __init__(self, name, text):
        self.console = [line.removeprefix(f"{name} | ") for line in text.splitlines()
                        if line.startswith(f"{name} | ")]
        ended = re.search(rf"^host: {name} ended with status (\d+) after ([\d.]+) s$", text, re.MULTILINE)
        self.status = int(ended.group(1)) if ended else None
        self.seconds = float(ended.group(2)) if ended else None

    def found(self, what):
        """The values of the lines "found WHAT VALUE"."""
        return [line.removeprefix(f"found {what} ") for line in self.console if line.startswith(f"found {what} ")]

    def complaints(self):
        return [line.removeprefix("complaint ") for line in self.console if line.startswith("complaint ")]

    def interrupts(self):
        """By the name of the device: how it is wired, and how often it came on all processors."""
        table = {}
        for line in self.found("interrupt"):
            if not re.match(r"\d+:", line):
                continue
            counts = re.match(r"\d+:((?: +\d+)+) +(.*\S)", line)
            *wiring, device = counts.group(2).split()
            table[device] = (" ".join(wiring), sum(map(int, counts.group(1).split())))
        return table

    def devices(self):
        """By "vendor:device": the address and the capabilities by their number, of each PCI function."""
        table = {}
        for line in self.found("pci"):
            address, text = line.split()
            space = bytes.fromhex(text)
            vendor, device = struct.unpack_from("<HH", space)
            table[f"{vendor:04x}:{device:04x}"] = (address, capabilities(space))
        return table


def capabilities(space):
    """By number: the bytes of a capability, up to the end of the configuration space."""
    found, place = {}, space[0x34] if struct.unpack_from("<H", space, 6)[0] & 0x10 else 0
    while place and len(found) < 48:
        found[space[place]] = space[place:]
        place = space[place + 1]
    return found


class Host(Process):
    def __init__(self, program, build, source, folder, setups, progress):
        with guest_image.kernel_of(build, progress) as kernel:
            progress("making the initramfs of host and guest")
            initramfs = folder / "host.cpio"
            initramfs.write_bytes(_host_archive(program, build, source, folder, setups, kernel))
            # The lock of the cache is released: QEMU gets a copy.
            image = shutil.copy(kernel / "vmlinuz", folder / "vmlinuz")
        super().__init__("host", [
            qemu.PROGRAM, "-name", "guestmem-host", "-accel", "tcg,thread=multi", "-cpu", PROCESSOR, "-smp", "2",
            "-m", "1536", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
            "-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
            "-kernel", image, "-initrd", initramfs, "-append", KERNEL_PARAMETERS])

    def outcome(self, setup):
        return Outcome(setup.name, self.output())


def _host_archive(program, build, source, folder, setups, kernel):
    archive = guest_image.make_archive(source / "guests" / "host.sh")
    stripped = folder / "guestmem"
    _run(["strip", "-o", stripped, program])
    archive.add_file("bin/guestmem", stripped.read_bytes(), 0o755)
    folders = {""}
    for library in _shared_libraries(stripped):
        for parent in reversed(library.relative_to("/").parents):
            if str(parent) not in folders | {"."}:
                archive.add_folder(str(parent))
                folders.add(str(parent))
        archive.add_file(str(library.relative_to("/")), library.read_bytes(), 0o755)
    for module in ("order-host", *(kernel / "order-host").read_text().split()):
        archive.add_file(f"modules/{module}", (kernel / module).read_bytes(), 0o644)
    archive.add_folder("run")
    archive.add_folder("runs")
    for setup in setups:
        archive.add_file(f"runs/{setup.name}.qvmconf", setup.configuration().encode(), 0o644)
    archive.add_folder("guest")
    archive.add_file("guest/initramfs", _guest_archive(build, source), 0o644)
    image = (kernel / "vmlinuz").read_bytes()
    if not all(setup.is_unpacked for setup in setups):
        archive.add_file("guest/vmlinuz", image, 0o644)
    if any(setup.is_unpacked for setup in setups):
        archive.add_file("guest/vmlinux", unpack_kernel(image), 0o644)
    return archive.finish()


def _guest_archive(build, source):
    window = Path(build) / "guests" / "window"
    if not window.is_file():
        raise guest_image.ImageError(f"guest program: {window}: not there; build the target guest_window (./dev build)")
    archive = guest_image.make_archive(source / "guests" / "linux.sh")
    archive.add_file("bin/window", window.read_bytes(), 0o755)
    return archive.finish()


def _shared_libraries(program):
    """The files that the dynamic linker takes, itself among them, by the names under which it looks for them."""
    text = _run(["ldd", program])
    return [Path(path) for path in re.findall(r"(?:=> |^\s*)(/\S+) \(0x", text, re.MULTILINE)]


def _run(command):
    command = [str(word) for word in command]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=COMMAND_TIMEOUT)
    except FileNotFoundError:
        raise guest_image.ImageError(f"the program '{command[0]}' is not installed (./dev setup)") from None
    if done.returncode != 0:
        raise guest_image.ImageError(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


def unpack_kernel(image):
    """The ELF file in a bzImage whose payload is compressed by LZ4's legacy format, as Debian's cloud kernels are."""
    setup_bytes = ((image[0x1f1] or 4) + 1) * 512
    offset, size = struct.unpack_from("<II", image, 0x248)
    payload = image[setup_bytes + offset:setup_bytes + offset + size]
    if payload[:4] != bytes.fromhex("02214c18"):
        raise guest_image.ImageError(f"kernel: its payload begins with {payload[:4].hex()}; only LZ4's legacy format "
                                     "(02214c18) is known here")
    name = ctypes.util.find_library("lz4")
    if not name:
        raise guest_image.ImageError("kernel: there is no liblz4 to unpack it with; the package is liblz4-1")
    decompress = ctypes.CDLL(name).LZ4_decompress_safe
    room = ctypes.create_string_buffer(8 << 20)  # what a block of the legacy format has at most
    parts, place = [], 4
    # The last four bytes are the size of what comes out.
    while place < len(payload) - 4:
        block_bytes = struct.unpack_from("<I", payload, place)[0]
        count = decompress(payload[place + 4:place + 4 + block_bytes], room, block_bytes, len(room))
        if count < 0:
            raise guest_image.ImageError(f"kernel: the LZ4 block at {place:#x} of its payload is broken")
        parts.append(room.raw[:count])
        place += 4 + block_bytes
    return b"".join(parts)
