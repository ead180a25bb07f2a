# SPDX-License-Identifier: Apache-2.0
"""What the tests of a service with a keeper, with rights and with sessions have in common.

`KeptCase` starts instances of one service that follow one another, and ends every keeper of its folder. `Session` is a
place in a share by `share.attach` with "session", read from docs/protocols: stream, presence pages, bell, sender pages.
"""

import fcntl
import mmap
import os
import signal
import socket
import struct

import control_peer
from control_peer import ControlPeer
from ivshmem_peer import Peer, identity_of, select_readable
from service import ConformanceCase, wait_until

# What docs/protocols/control.md allows for an answer with a session.
SESSION_FDS = 32
PRESENCE_BYTES = 8192
SENDER_BYTES = 4096
PRESENCE_MAGIC = 0x52504d47


def sockets_of_keepers(folder):
    """As /proc/PID/fd names them. While other sockets come and go, one look at the kernel's list may miss one."""
    found = set()
    for _ in range(3):
        with open("/proc/net/unix", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if len(words) == 8 and os.path.dirname(words[7]) == folder and words[7].endswith("keeper"):
                    found.add(f"socket:[{words[6]}]")
    return found


def keepers_of(folder):
    """The process numbers of the keepers whose socket stands in the folder."""
    sockets, found = sockets_of_keepers(folder), []
    for name in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/comm", encoding="utf-8") as file:
                is_keeper = file.read() == "guestmem-keeper\n"
            if is_keeper and sockets & links_of(f"/proc/{name}/fd"):
                found.append(int(name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            pass
    return found


def links_of(folder):
    """Where the links of a folder lead; some may be gone before they are read."""
    found = set()
    for name in os.listdir(folder):
        try:
            found.add(os.readlink(f"{folder}/{name}"))
        except FileNotFoundError:
            pass
    return found


def is_running(pid):
    """Whether the process is there and not just waiting to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


class Session:
    """A place in a share, as a program that speaks the control protocol gets it."""

    def __init__(self, control, share, **arguments):
        control_peer.MAX_FDS = max(control_peer.MAX_FDS, SESSION_FDS)
        self.reply, fds = control.call_with_fds("share.attach", {"share": share, "session": True, **arguments})
        self.fds = fds
        self.slot = self.reply["slot"]
        self.stream = socket.socket(fileno=fds[0])
        self.presence, self.bell, self.senders = fds[1], fds[2], fds[3:]
        self.vectors, self.slots = self.reply["vectors"], self.reply["slots"]
        self.peer = None
        self._pages = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def join(self, timeout=10.0):
        """Reads the handshake; who may not notify gets no doorbells but its own."""
        slots = self.slots if self.reply["may_notify"] else None
        self.peer = Peer(sock=self.stream, vectors=self.vectors, slots=slots, timeout=timeout)
        return self

    def pages(self):
        if self._pages is None:
            self._pages = mmap.mmap(self.presence, PRESENCE_BYTES, prot=mmap.PROT_READ)
            magic, version, slots, vectors = struct.unpack_from("<4I", self._pages, 0)
            if (magic, version, slots, vectors) != (PRESENCE_MAGIC, 1, self.slots, self.vectors):
                raise AssertionError(f"presence pages begin with {magic:#x} {version} {slots} {vectors}")
        return self._pages

    def changes(self):
        return struct.unpack_from("<Q", self.pages(), 0x10)[0]

    def tenancy(self, slot):
        return struct.unpack_from("<I", self.pages(), 0x40 + 4 * slot)[0]

    def present(self):
        return [slot for slot in range(self.slots) if self.tenancy(slot) % 2]

    def hears_bell(self, timeout=5.0):
        """Whether the bell is rung in time; its count is taken."""
        if not select_readable(self.bell, timeout):
            return False
        os.read(self.bell, 8)
        return True

    def close(self):
        if self._pages is not None:
            self._pages.close()
        if self.peer is not None:
            self.peer.release_descriptors()
        self.stream.close()
        for fd in self.fds[1:]:
            os.close(fd)
        self.fds = self.fds[:1]


def mapping_fails(fd, size, prot=mmap.PROT_READ | mmap.PROT_WRITE):
    """Whether the memory cannot be mapped so."""
    try:
        mmap.mmap(fd, size, prot=prot).close()
    except PermissionError:
        return True
    return False


def picture_of(peer):
    """What must be the same for ever: the memory's object, and every doorbell's."""
    return identity_of(peer.memory), peer.eventfd_ids()


class KeptCase(ConformanceCase):
    """Instances of one service; whatever happens, no keeper of it is left."""

    def setUp(self):
        super().setUp()
        self.addCleanup(self.end_keepers)

    def end_keepers(self):
        for pid in keepers_of(self.directory):
            os.kill(pid, signal.SIGKILL)

    def keeper(self):
        """The one keeper's process number."""
        wait_until(lambda: keepers_of(self.directory))
        pids = keepers_of(self.directory)
        self.assertEqual(len(pids), 1, f"keepers: {pids}")
        return pids[0]

    def start(self, config, *words, **options):
        """An instance that is ready; the test kills it, or finish_all() ends it."""
        return self.launch(["--config", config, *words, "--keeper"], **options).wait_ready()

    def settle(self):
        """A client may have read its last message before the service has noted it; an answer comes after that."""
        with ControlPeer(self.path("control"), timeout=30.0) as control:
            control.call("share.list")

    def kill(self, service):
        """kill -9, when everybody who has joined is known to have joined."""
        self.settle()
        service.kill()

    def follow(self, service, config, *words):
        """Kills an instance and starts the next one."""
        self.kill(service)
        return self.start(config, *words)

    def finish_all(self, service):
        """SIGTERM: the service and its keeper end, and take their files along."""
        pids = keepers_of(self.directory)
        self.finish(service)
        self.assertTrue(wait_until(lambda: not any(map(is_running, pids)), 10.0), "a keeper is left")
        left = [name for name in os.listdir(self.directory) if not os.path.isfile(self.path(name))]
        self.assertEqual(left, [], "files of sockets")

    def settled_descriptors(self, service):
        """How many the service and its keeper have, once what was closed is closed."""
        def counts():
            return service.descriptor_count(), len(os.listdir(f"/proc/{keeper}/fd"))

        keeper, before = self.keeper(), None

        def is_settled():
            nonlocal before
            seen, before = before, counts()
            return seen == before

        wait_until(is_settled, 10.0, 0.2)
        return before

    def control(self, name="control"):
        peer = ControlPeer(self.path(name))
        self.addCleanup(peer.close)
        return peer

    def join(self, name="sock", **options):
        peer = Peer(self.path(name), **{"slots": 4, "vectors": 2, **options})
        self.addCleanup(peer.close)
        return peer

    def session(self, control, share="mailbox", **arguments):
        session = Session(control, share, **arguments)
        self.addCleanup(session.close)
        return session.join()

    def assert_stays(self, peer, seconds=0.1):
        self.assertTrue(peer.is_quiet(seconds), "it has heard something, or was closed")


def journal_of(keeper):
    """A file on the journal that the keeper holds."""
    folder = f"/proc/{keeper}/fd"
    for name in os.listdir(folder):
        if os.readlink(f"{folder}/{name}").startswith("/memfd:journal"):
            return open(f"{folder}/{name}", "r+b", buffering=0)
    raise AssertionError("the keeper has no journal")


def seals_of(fd):
    return fcntl.fcntl(fd, fcntl.F_GET_SEALS)
