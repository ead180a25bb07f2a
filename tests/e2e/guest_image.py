# SPDX-License-Identifier: Apache-2.0
"""What a guest boots: a stock Debian kernel and an initramfs, made without installing anything.

The kernel comes from its Debian package (apt checks its signature), which is unpacked into a cache folder
beside the preset's build folder; all presets share it. Two tests at once are kept apart by a lock, and
everything appears in the cache by a rename, so that an interrupted run leaves nothing half made. A cached
kernel is used until the cache folder is removed. The initramfs has busybox, the VFIO modules, guests/init.sh
and the agent; its name holds a hash of its content. nested_linux.py makes others from the same kernel, which has
modules for machines in a guest, too.
"""

import contextlib
import fcntl
import hashlib
import lzma
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

META_PACKAGE = "linux-image-cloud-amd64"
MODULES = {"order": ("vfio_iommu_type1", "vfio_pci"),  # by the file that lists them with what they need
           "order-host": ("kvm_amd",)}
LOCK_TIMEOUT = 300
COMMAND_TIMEOUT = 300
KEPT_INITRAMFS = 8


class ImageError(Exception):
    """The guest image cannot be made; the text says what, where and why."""


@dataclass(frozen=True)
class Image:
    kernel: Path
    initramfs: Path


def prepare(build, source, progress=lambda text: None):
    """The image for the agent that was built in `build`. `progress` is told what takes long."""
    agent = Path(build) / "guests" / "agent"
    init = Path(source) / "guests" / "init.sh"
    if not agent.is_file():
        raise ImageError(f"guest agent: {agent}: not there; build the target guest_agent (./dev build)")
    with kernel_of(build, progress) as kernel:
        return Image(kernel / "vmlinuz", _initramfs(kernel.parent, kernel, agent, init, progress))


@contextlib.contextmanager
def kernel_of(build, progress):
    """The folder of the kernel and its modules in the cache, whose lock is held meanwhile."""
    cache = Path(build).resolve().parent / "guest-cache"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / "lock", progress):
        _remove_leftovers(cache)
        yield _cached_kernel(cache) or _fetch_kernel(cache, progress)


@contextlib.contextmanager
def _locked(path, progress):
    with open(path, "w") as lock:
        deadline = time.monotonic() + LOCK_TIMEOUT
        told = False
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise ImageError(f"guest image: {path}: another run has held the lock for "
                                     f"{LOCK_TIMEOUT} s") from None
                if not told:
                    progress("waiting for another run that makes the guest image")
                    told = True
                time.sleep(0.1)
        yield


def _remove_leftovers(cache):
    """What a killed run has left; called with the lock held."""
    for folder in cache.glob("fetch-*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in cache.glob("making-*"):
        file.unlink(missing_ok=True)


def _run(command, what, cwd=None):
    environment = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
    try:
        done = subprocess.run(command, cwd=cwd, env=environment, stdin=subprocess.DEVNULL,
                              capture_output=True, text=True, timeout=COMMAND_TIMEOUT)
    except FileNotFoundError:
        raise ImageError(f"{what}: the program '{command[0]}' is not installed (./dev setup)") from None
    except subprocess.TimeoutExpired:
        raise ImageError(f"{what}: {' '.join(command)}: not done in {COMMAND_TIMEOUT} s") from None
    if done.returncode != 0:
        raise ImageError(f"{what}: {' '.join(command)}: exit status {done.returncode}\n{done.stderr.strip()}")
    return done.stdout


# The kernel

def _cached_kernel(cache):
    def is_whole(folder):
        return all((folder / order).exists() for order in MODULES)

    kernels = sorted(filter(is_whole, cache.glob("kernel-*")), key=lambda folder: folder.stat().st_mtime)
    return kernels[-1] if kernels else None


def _fetch_kernel(cache, progress):
    with tempfile.TemporaryDirectory(prefix="fetch-", dir=cache) as folder:
        work = Path(folder)
        try:
            package, version = _resolve_kernel()
            progress(f"downloading {package} {version}")
            _download(package, version, work)
        except ImageError as error:
            # No lists yet, or lists so old that the mirror has replaced the file that they name.
            if os.geteuid() != 0:
                raise ImageError(f"{error}\nIf the package lists are missing or old, run apt-get update "
                                 "as root.") from error
            progress("updating the package lists (apt-get update)")
            _run(["apt-get", "-q", "update"], "package lists")
            package, version = _resolve_kernel()
            progress(f"downloading {package} {version}")
            _download(package, version, work)
        progress(f"unpacking {package}")
        return _unpack_kernel(cache, work, f"kernel-{package}-{version}")


def _resolve_kernel():
    """Name and version of the real package behind the meta package."""
    package = _field(META_PACKAGE, "Depends", r"(linux-image-[0-9][^ ,|]*)")
    return package, _field(package, "Version", r"(\S+)")


def _field(package, name, pattern):
    shown = _run(["apt-cache", "--no-all-versions", "show", package], f"kernel package {package}")
    found = re.search(rf"^{name}: .*?{pattern}", shown, re.MULTILINE)
    if not found:
        raise ImageError(f"kernel package {package}: apt-cache shows no usable field '{name}'")
    return found.group(1)


def _download(package, version, work):
    # As root apt drops its rights to a user who cannot write here, and warns; it is told to stay.
    _run(["apt-get", "-q", "-o", "APT::Sandbox::User=root", "-o", "Acquire::Retries=3", "download",
          f"{package}={version}"], f"kernel package {package}", cwd=work)


def _unpack_kernel(cache, work, name):
    packages = list(work.glob("*.deb"))
    if len(packages) != 1:
        raise ImageError(f"kernel package: {work}: {len(packages)} files downloaded, expected 1")
    tree = work / "tree"
    _run(["dpkg-deb", "-x", str(packages[0]), str(tree)], "unpack the kernel package")
    images = list(tree.glob("boot/vmlinuz-*"))
    if len(images) != 1:
        raise ImageError(f"kernel package: {packages[0].name}: {len(images)} files boot/vmlinuz-*, expected 1")
    release = images[0].name.removeprefix("vmlinuz-")
    _run(["depmod", "-b", str(tree), release], "list the kernel modules")
    made = work / "kernel"
    made.mkdir()
    shutil.move(images[0], made / "vmlinuz")
    for file, modules in MODULES.items():
        order = []
        for module in load_order(tree / "lib" / "modules" / release, modules):
            plain, data = unpacked_module(module)
            (made / plain).write_bytes(data)
            order.append(plain)
        (made / file).write_text("".join(f"{module}\n" for module in order))
    place = cache / name.replace("/", "_").replace(":", "_")
    if place.exists():  # without some of the modules
        place.rename(work / "replaced")
    made.rename(place)
    return place


def unpacked_module(path):
    """The name and the bytes that insmod takes."""
    data = path.read_bytes()
    if path.suffix != ".xz":
        return path.name, data
    return path.stem, lzma.decompress(data)


def load_order(folder, modules):
    """The files of these modules and of all that they need, each after what it needs."""
    def stem(path):
        return re.sub(r"\.ko(\.xz)?$", "", Path(path).name).replace("-", "_")
    needs = {}
    for line in (folder / "modules.dep").read_text().splitlines():
        module, _, rest = line.partition(":")
        needs[stem(module)] = (module, rest.split())
    builtin = {stem(line) for line in (folder / "modules.builtin").read_text().splitlines()}
    order = []
    for name in modules:
        if name in builtin:
            continue
        if name not in needs:
            raise ImageError(f"kernel modules: {folder.name}: there is no module '{name}'")
        module, others = needs[name]
        for path in [*reversed(others), module]:
            if not path.endswith((".ko", ".ko.xz")):
                raise ImageError(f"kernel modules: {path}: this kind of compression is not known here")
            if folder / path not in order:
                order.append(folder / path)
    return order


# The initramfs

def _initramfs(cache, kernel, agent, init, progress):
    modules = (kernel / "order").read_text().split()
    archive = make_archive(init)
    archive.add_file("bin/agent", agent.read_bytes(), 0o755)
    for module in ("order", *modules):
        archive.add_file(f"modules/{module}", (kernel / module).read_bytes(), 0o644)
    data = archive.finish()
    place = cache / f"initramfs-{hashlib.sha256(data).hexdigest()[:16]}.cpio"
    if place.exists():
        os.utime(place)
        return place
    progress("making the initramfs")
    making = cache / "making-initramfs"
    making.write_bytes(data)
    making.rename(place)
    others = sorted(cache.glob("initramfs-*.cpio"), key=lambda path: path.stat().st_mtime, reverse=True)
    for old in others[KEPT_INITRAMFS:]:
        old.unlink()
    return place


def make_archive(init, busybox=None):
    """An archive with busybox (the machine's, unless bytes of another are given) and this first process."""
    archive = _Cpio()
    for folder in ("bin", "dev", "modules", "proc", "sys", "tmp"):
        archive.add_folder(folder)
    archive.add_device("dev/console", 5, 1)
    archive.add_file("bin/busybox", busybox or _static_busybox(), 0o755)
    archive.add_file("init", init.read_bytes(), 0o755)
    return archive


def _static_busybox():
    path = shutil.which("busybox", path=os.environ.get("PATH", "") + ":/bin:/usr/bin")
    if not path:
        raise ImageError("busybox: not installed; the package is busybox-static (./dev setup)")
    data = Path(path).read_bytes()
    if b"/ld-linux" in data[:4096]:
        raise ImageError(f"busybox: {path}: is not static; install the package busybox-static (./dev setup)")
    return data


class _Cpio:
    """An archive in the "newc" format that the kernel unpacks (initramfs buffer format)."""

    def __init__(self):
        self._parts = []
        self._count = 0

    def add_folder(self, name):
        self._add(name, 0o040755, b"")

    def add_file(self, name, data, mode):
        self._add(name, 0o100000 | mode, data)

    def add_device(self, name, major, minor):
        self._add(name, 0o020600, b"", major, minor)

    def finish(self):
        self._add("TRAILER!!!", 0, b"")
        return b"".join(self._parts)

    def _add(self, name, mode, data, major=0, minor=0):
        # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
        self._count += 1
        fields = (self._count, mode, 0, 0, 1, 0, len(data), 0, 0, major, minor, len(name) + 1, 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        for part in (header + name.encode() + b"\0", data):
            self._parts.append(part + b"\0" * (-len(part) % 4))


def main():
    """Makes the image and prints where it is, so that a later run need not wait: guest_image.py BUILD SOURCE"""
    if len(sys.argv) != 3:
        sys.exit("usage: guest_image.py BUILD SOURCE")
    try:
        image = prepare(sys.argv[1], sys.argv[2], print)
    except (ImageError, OSError) as error:
        sys.exit(f"guest_image.py: {error}")
    print(image.kernel, image.initramfs, sep="\n")


if __name__ == "__main__":
    main()
