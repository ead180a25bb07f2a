# SPDX-License-Identifier: Apache-2.0
"""An ivshmem client that believes nothing: a second implementation of the protocol.

The stream goes one way, from the server to the client. Each message is a signed 64-bit
little-endian integer and at most one file descriptor:

    0             no fd   protocol version; a negative errno here is a refusal
    own id        no fd   0..65535
    -1            fd      the shared memory, once
    another id    fd      an eventfd of that peer, one message per vector, vector 0 first
    own id        fd      an eventfd of this client, one message per vector, vector 0 first

A server with stable ids announces every slot but the client's own in ascending order, then
the client's own, and never speaks again. A server with classic ids announces the peers that
are present, then the client's own, and later each arrival (id and fd, once per vector) and each
departure (id, no fd).

`Decoder` is the state machine, without I/O. `Peer` is a client with a socket.
"""

import array
import errno
import fcntl
import mmap
import os
import select
import socket
import struct
import time
from typing import NamedTuple, Optional

MESSAGE_BYTES = 8
MAX_ID = 65535
# Room for more descriptors than a message may carry, so that a second one is seen.
ANCILLARY_BYTES = socket.CMSG_SPACE(8 * array.array("i").itemsize)


class ProtocolError(Exception):
    """The server said something that the protocol does not allow."""


class Refused(ProtocolError):
    """The version message carried a negative errno."""

    def __init__(self, number):
        self.errno = number
        super().__init__(f"refused: {errno.errorcode.get(number, number)}")


class Closed(ProtocolError):
    """The server closed the connection."""


class TimedOut(ProtocolError):
    """The server did not speak in time."""


class Message(NamedTuple):
    """One message as it came: its 8 bytes, its value and the identity of its descriptor."""

    raw: bytes
    value: int
    fd: Optional[int]
    identity: Optional[tuple]


def fdinfo(fd, pid="self"):
    """The fields of /proc/PID/fdinfo/FD as a dictionary of strings."""
    with open(f"/proc/{pid}/fdinfo/{fd}", encoding="ascii") as file:
        return dict(line.split(":", 1) for line in file.read().splitlines() if ":" in line)


def identity_of(fd):
    """What kernel object a descriptor refers to: ("eventfd", id) or ("memory", dev, inode)."""
    target = os.readlink(f"/proc/self/fd/{fd}")
    if target == "anon_inode:[eventfd]":
        return ("eventfd", int(fdinfo(fd)["eventfd-id"]))
    status = os.fstat(fd)
    return ("memory", status.st_dev, status.st_ino)


def pending_kicks(fd):
    """An eventfd's counter, read without consuming it."""
    return int(fdinfo(fd)["eventfd-count"].strip(), 16)


def receive_message(sock, identify=True):
    """Reads one message. Raises BlockingIOError when there is none, Closed at the end."""
    try:
        data, ancillary, flags, _ = sock.recvmsg(MESSAGE_BYTES, ANCILLARY_BYTES,
                                                 socket.MSG_CMSG_CLOEXEC)
    except ConnectionResetError:
        # The server closed while bytes from this client lay unread.
        raise Closed("the server reset the connection") from None
    fds = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            fds.frombytes(payload[:len(payload) - len(payload) % fds.itemsize])
    problem = None
    if flags & socket.MSG_CTRUNC:
        problem = "the descriptors of a message were cut off"
    elif len(fds) > 1:
        problem = f"a message carries {len(fds)} descriptors"
    elif data and len(data) != MESSAGE_BYTES:
        problem = f"a message has {len(data)} bytes"
    if problem or not data:
        for fd in fds:
            os.close(fd)
        if problem:
            raise ProtocolError(problem)
        raise Closed("the server closed the connection")
    value = int.from_bytes(data, "little", signed=True)
    fd = fds[0] if fds else None
    return Message(data, value, fd, identity_of(fd) if identify and fd is not None else None)


class Decoder:
    """The order of messages. `feed` takes one; `complete` turns true at the handshake's last.

    ids is "stable" or "classic". slots is the number of slots of a stable share; None takes
    any number. After the handshake a stable server must be silent.
    """

    def __init__(self, vectors, slots=None, ids="stable"):
        self.vectors = vectors
        self.slots = slots
        self.ids = ids
        self.version = None
        self.id = None
        self.memory = None
        self.eventfds = {}          # id -> list of fds, in the order of vectors
        self.order = []             # ids in the order of their announcement
        self.gone = []              # classic: ids that left, in order
        self.complete = False
        self._current = None        # the id whose vectors are being announced

    def expected_others(self):
        return [slot for slot in range(self.slots) if slot != self.id]

    def feed(self, value, fd):
        if self.version is None:
            self._version(value, fd)
        elif self.id is None:
            self._own_id(value, fd)
        elif self.memory is None:
            self._memory(value, fd)
        elif self.complete and self.ids == "stable":
            raise ProtocolError(f"message {value} (fd: {fd is not None}) after the handshake")
        else:
            self._peer(value, fd)

    def _version(self, value, fd):
        if fd is not None:
            raise ProtocolError("the version message carries a descriptor")
        if value < 0:
            raise Refused(-value)
        if value != 0:
            raise ProtocolError(f"version {value}, expected 0")
        self.version = value

    def _own_id(self, value, fd):
        if fd is not None:
            raise ProtocolError("the id message carries a descriptor")
        if not 0 <= value <= MAX_ID:
            raise ProtocolError(f"id {value} is not in 0..{MAX_ID}")
        if self.slots is not None and self.ids == "stable" and value >= self.slots:
            raise ProtocolError(f"id {value} of {self.slots} slots")
        self.id = value

    def _memory(self, value, fd):
        if value != -1:
            raise ProtocolError(f"expected -1 and the memory, got {value}")
        if fd is None:
            raise ProtocolError("-1 without the memory's descriptor")
        self.memory = fd

    def _peer(self, value, fd):
        if not 0 <= value <= MAX_ID:
            raise ProtocolError(f"peer {value} is not in 0..{MAX_ID}")
        if fd is None:
            self._departure(value)
            return
        known = self.eventfds.setdefault(value, [])
        if not known:
            if self._current is not None:
                raise ProtocolError(f"peer {value} begins before the vectors of "
                                    f"{self._current} are complete")
            self._check_first(value)
            self.order.append(value)
            self._current = value
        elif self._current != value:
            raise ProtocolError(f"peer {value} is announced twice or out of turn")
        known.append(fd)
        if len(known) == self.vectors:
            self._current = None
            if value == self.id:
                self._own_complete()

    def _check_first(self, value):
        if self.ids != "stable":
            if self.complete and value <= max(self.order):
                raise ProtocolError(f"arrival of {value} after {max(self.order)}: ids are reused")
            return
        if value != self.id and self.order and value <= self.order[-1]:
            raise ProtocolError(f"peer {value} after peer {self.order[-1]}: not ascending")

    def _own_complete(self):
        if self.ids == "stable" and self.slots is not None:
            others = self.order[:-1]
            if others != self.expected_others():
                raise ProtocolError(f"announced {others}, expected {self.expected_others()}")
        self.complete = True

    def _departure(self, value):
        if self.ids == "stable" or not self.complete:
            raise ProtocolError(f"departure of {value} during the handshake or with stable ids")
        if self._current is not None:
            raise ProtocolError(f"departure of {value} between the vectors of {self._current}")
        if value == self.id or value not in self.eventfds or value in self.gone:
            raise ProtocolError(f"departure of {value}, who is not there")
        self.gone.append(value)


class Peer:
    """A client with a socket. Every wait has a deadline.

    record=False skips the look into /proc for the identity of each descriptor, which is the
    slow part. keep_others=False closes the eventfds of others as they come; None stands for
    them in the table.
    """

    def __init__(self, path=None, *, sock=None, vectors, slots=None, ids="stable",
                 timeout=10.0, record=True, keep_others=True, handshake=True):
        self.timeout = timeout
        self.record = record
        self.keep_others = keep_others
        self.messages = []
        self.decoder = Decoder(vectors, slots, ids)
        self._map = None
        self.sock = connect(path, timeout) if sock is None else sock
        self.sock.settimeout(timeout)
        try:
            if handshake:
                self.handshake()
        except Refused:
            raise
        except BaseException:
            self.close()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    # -- the stream ------------------------------------------------------------------------

    def next_message(self, timeout=None):
        """Reads and decodes one message."""
        if not select_readable(self.sock, self.timeout if timeout is None else timeout):
            raise TimedOut(f"no message after {len(self.messages)} messages")
        message = receive_message(self.sock, self.record)
        self.messages.append(message)
        try:
            self.decoder.feed(message.value, message.fd)
        except ProtocolError:
            if message.fd is not None:
                os.close(message.fd)
            raise
        if not self.keep_others and message.fd is not None and message.value not in (-1, self.id):
            os.close(message.fd)
            self.eventfds[message.value][-1] = None
        return message

    def handshake(self):
        deadline = time.monotonic() + self.timeout
        while not self.decoder.complete:
            self.next_message(max(0.0, deadline - time.monotonic()))

    def is_quiet(self, seconds):
        """True when the connection stays open and nothing comes for that long."""
        return not select_readable(self.sock, seconds)

    def read_until_closed(self, timeout=5.0):
        """Decodes what still comes until the server closes; returns the values."""
        deadline = time.monotonic() + timeout
        values = []
        while True:
            try:
                values.append(self.next_message(max(0.0, deadline - time.monotonic())).value)
            except Closed:
                return values

    # -- what was learned ------------------------------------------------------------------

    @property
    def id(self):
        return self.decoder.id

    @property
    def memory(self):
        return self.decoder.memory

    @property
    def eventfds(self):
        return self.decoder.eventfds

    def eventfd_ids(self):
        """{slot: [kernel's eventfd id per vector]}: the same objects give the same table."""
        return {slot: [identity_of(fd)[1] for fd in fds]
                for slot, fds in sorted(self.eventfds.items())}

    # -- doorbells and memory --------------------------------------------------------------

    def kick(self, peer, vector, value=1):
        """Rings a peer's doorbell: an 8-byte write in native order."""
        os.write(self.eventfds[peer][vector], struct.pack("=Q", value))

    def wait(self, vector, timeout=5.0):
        """Waits for a kick to this client; returns the counter, or None at the timeout."""
        fd = self.eventfds[self.id][vector]
        if not select_readable(fd, timeout):
            return None
        return struct.unpack("=Q", os.read(fd, 8))[0]

    def pending(self, vector, slot=None):
        return pending_kicks(self.eventfds[self.id if slot is None else slot][vector])

    def map(self):
        """The shared memory, mapped once."""
        if self._map is None:
            self._map = mmap.mmap(self.memory, os.fstat(self.memory).st_size)
        return self._map

    def seals(self):
        return fcntl.fcntl(self.memory, fcntl.F_GET_SEALS)

    # -- the end ---------------------------------------------------------------------------

    def release_descriptors(self):
        """Closes the memory and the eventfds, keeps the connection."""
        if self._map is not None:
            self._map.close()
            self._map = None
        if self.decoder.memory is not None:
            os.close(self.decoder.memory)
            self.decoder.memory = None
        for fds in self.decoder.eventfds.values():
            for fd in fds:
                if fd is not None:
                    os.close(fd)
        self.decoder.eventfds = {}

    def close(self):
        """Leaves: the connection is closed first, as when a process ends."""
        self.sock.close()
        self.release_descriptors()


def select_readable(target, seconds):
    """poll() for input with a deadline; hang-up counts as readable."""
    poller = select.poll()
    poller.register(target, select.POLLIN)
    return bool(poller.poll(max(0, int(seconds * 1000 + 0.5))))


def connect(path, timeout=5.0):
    """A bare connection to a UNIX stream socket, nothing read.

    The connect itself blocks while the listener's queue is full, as QEMU's does; SO_SNDTIMEO
    bounds it. A socket with a Python timeout would fail at once instead.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("@ll", int(timeout), 0))
        sock.connect(str(path))
        sock.settimeout(timeout)
    except BaseException:
        sock.close()
        raise
    return sock


def read_refusal(sock, timeout=5.0):
    """Reads one message that must be a refusal; returns its errno."""
    if not select_readable(sock, timeout):
        raise TimedOut("no refusal")
    message = receive_message(sock, identify=False)
    if message.fd is not None:
        os.close(message.fd)
        raise ProtocolError("a refusal carries a descriptor")
    if message.value >= 0:
        raise ProtocolError(f"expected a refusal, got {message.value}")
    return -message.value
