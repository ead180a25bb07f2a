# SPDX-License-Identifier: Apache-2.0
"""A host program in a share, through the C library, and a rally with a guest's payload.

HostShm has QNX's host operations, which know who poked where the sender says so; HostSession has the library's own
session, which hears every doorbell. The rally is that of guests/payload/lib/rally.hpp: ping writes a number and kicks,
pong writes it back and kicks.
"""

import ctypes
import os
import struct
import time

PAGE_BYTES = 4096
POKE_ALL = 0xFFFF
ETIMEDOUT = 110

PING_NUMBER, PONG_NUMBER, PONG_PLACE, PING_PLACE = 0x00, 0x40, 0x80, 0xC0
# As the payload does: a kick that nobody could hear yet is sent again.
AGAIN_MS = 200


KICKED = 1 << 0
PRESENCE = 1 << 1


class Refused(OSError):
    pass


class Options(ctypes.Structure):
    """gm_share_options of guestmem/share.h."""
    _fields_ = [("struct_size", ctypes.c_size_t), ("control", ctypes.c_char_p), ("share", ctypes.c_char_p),
                ("size_bytes", ctypes.c_uint64), ("vectors", ctypes.c_uint32), ("slots", ctypes.c_uint32),
                ("slot", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("timeout_ms", ctypes.c_uint32),
                ("reserved", ctypes.c_uint32)]


class Facts(ctypes.Structure):
    """gm_share_facts of guestmem/share.h."""
    _fields_ = [("struct_size", ctypes.c_size_t), ("size_bytes", ctypes.c_uint64), ("extent_bytes", ctypes.c_uint64),
                ("generation", ctypes.c_uint64), ("memory_generation", ctypes.c_uint64),
                ("presence_changes", ctypes.c_uint64), ("slot", ctypes.c_uint32), ("vectors", ctypes.c_uint32),
                ("slots", ctypes.c_uint32), ("answers", ctypes.c_uint8 * 8)]


def load_library(path):
    library = ctypes.CDLL(os.fspath(path))
    handle = ctypes.c_void_p
    library.gm_share_last_error.restype = ctypes.c_char_p
    library.gm_host_shm_create.argtypes = [ctypes.c_size_t, ctypes.POINTER(handle)]
    library.gm_host_shm_attach.argtypes = [handle, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_uint32]
    library.gm_host_shm_poke.argtypes = [handle, ctypes.c_uint32]
    library.gm_host_shm_status.argtypes = [handle, ctypes.POINTER(ctypes.c_uint32)]
    library.gm_host_shm_wait_status.argtypes = [handle, ctypes.c_int, ctypes.POINTER(ctypes.c_uint32)]
    library.gm_host_shm_size.restype = ctypes.c_uint32
    library.gm_host_shm_data.restype = handle
    for name in ("destroy", "detach", "size", "data", "idx"):
        getattr(library, f"gm_host_shm_{name}").argtypes = [handle]
    number, pointer = ctypes.c_uint32, ctypes.POINTER
    library.gm_share_attach.argtypes = [pointer(Options), pointer(handle)]
    library.gm_share_get_facts.argtypes = [handle, pointer(Facts)]
    library.gm_share_map.argtypes = [handle, pointer(handle)]
    library.gm_share_ring.argtypes = [handle, number, number]
    library.gm_share_wait.argtypes = [handle, handle, ctypes.c_size_t, number, ctypes.c_int, pointer(number), handle,
                                      ctypes.c_size_t, handle]
    library.gm_share_peers.argtypes = [handle, pointer(number), ctypes.c_size_t, pointer(ctypes.c_size_t)]
    library.gm_share_data.restype = handle
    for name in ("close", "unmap", "data"):
        getattr(library, f"gm_share_{name}").argtypes = [handle]
    return library


class Client:
    """What both kinds have: `notified` gathers who poked, `active` is who is there, `idx` the own place."""

    def __init__(self, library):
        self.library = library
        self.handle = ctypes.c_void_p()
        self.notified = 0
        self.active = 0
        self.idx = 0
        self.bytes = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def _check(self, number):
        if number != 0:
            raise Refused(number, self.library.gm_share_last_error().decode(errors="replace"))

    def word(self, offset):
        return struct.unpack("<I", ctypes.string_at(self._at(offset), 4))[0]

    def set_word(self, offset, value):
        ctypes.memmove(self._at(offset), struct.pack("<I", value), 4)

    def _at(self, offset):
        if offset + 4 > self.bytes:
            raise IndexError(offset)
        return self._data() + offset

    def wait_until(self, question, timeout, what):
        deadline = time.monotonic() + timeout
        while not question(self):
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"{what}: not within {timeout} s; notified {self.notified:#x}, "
                                     f"active {self.active:#x}")
            self.wait(max(1, int(min(left, 0.2) * 1000)))


class HostSession(Client):
    """A session; every kick is everybody's, as a doorbell does not say who rang."""

    def __init__(self, library, control, name, vector=0):
        super().__init__(library)
        self.vector = vector
        self.mapping = ctypes.c_void_p()
        options = Options(struct_size=ctypes.sizeof(Options), control=os.fsencode(control), share=name.encode())
        self._check(library.gm_share_attach(ctypes.byref(options), ctypes.byref(self.handle)))
        try:
            facts = Facts(struct_size=ctypes.sizeof(Facts))
            self._check(library.gm_share_get_facts(self.handle, ctypes.byref(facts)))
            self._check(library.gm_share_map(self.handle, ctypes.byref(self.mapping)))
        except Refused:
            self.close()
            raise
        self.idx, self.bytes = facts.slot, facts.size_bytes
        self._refresh()

    def close(self):
        self.library.gm_share_unmap(self.mapping)
        self.library.gm_share_close(self.handle)
        self.mapping, self.handle = ctypes.c_void_p(), ctypes.c_void_p()

    def _data(self):
        return self.library.gm_share_data(self.mapping)

    def _refresh(self):
        ids, count = (ctypes.c_uint32 * 16)(), ctypes.c_size_t()
        self._check(self.library.gm_share_peers(self.handle, ids, 16, ctypes.byref(count)))
        self.active = 1 << self.idx | sum(1 << slot for slot in ids[:count.value])

    def poke(self, bits):
        for slot in range(16):
            if bits >> slot & 1:
                self._check(self.library.gm_share_ring(self.handle, slot, self.vector))

    def wait(self, timeout_ms):
        """Whether somebody rang, came or went in time."""
        events = ctypes.c_uint32()
        self._check(self.library.gm_share_wait(self.handle, None, 0, PRESENCE, timeout_ms, ctypes.byref(events), None,
                                               0, None))
        self._refresh()
        if events.value & KICKED:
            self.notified |= POKE_ALL
        return events.value != 0


class HostShm(Client):
    """A client of the region `name`, which is made when it is not there."""

    def __init__(self, library, control, name, size_pages=16):
        super().__init__(library)
        self._check(library.gm_host_shm_create(0, ctypes.byref(self.handle)))
        try:
            self._check(library.gm_host_shm_attach(self.handle, os.fsencode(control), name.encode(), size_pages))
        except Refused:
            self.close()
            raise
        self.idx = library.gm_host_shm_idx(self.handle)
        self.pages = library.gm_host_shm_size(self.handle)
        self.bytes = self.pages * PAGE_BYTES
        self.refresh()

    def close(self):
        self.library.gm_host_shm_destroy(self.handle)
        self.handle = ctypes.c_void_p()

    def _take(self, status):
        self.notified |= status & 0xFFFF
        self.active = status >> 16

    def _data(self):
        return self.library.gm_host_shm_data(self.handle)

    def poke(self, bits):
        self._check(self.library.gm_host_shm_poke(self.handle, bits))

    def refresh(self):
        status = ctypes.c_uint32()
        self._check(self.library.gm_host_shm_status(self.handle, ctypes.byref(status)))
        self._take(status.value)

    def wait(self, timeout_ms):
        """Whether the status has changed in time; `notified` gathers who poked, `active` is who is there."""
        status = ctypes.c_uint32()
        number = self.library.gm_host_shm_wait_status(self.handle, timeout_ms, ctypes.byref(status))
        if number == ETIMEDOUT:
            return False
        self._check(number)
        self._take(status.value)
        return True


def ping(shm, rounds, offset=0, timeout=30):
    """Serves; a round counts when the number and a kick have come. The peer's bit."""
    shm.set_word(offset + PING_NUMBER, 0)
    shm.set_word(offset + PING_PLACE, shm.idx + 1)
    shm.wait_until(lambda s: s.word(offset + PONG_PLACE), timeout, "pong is there")
    peer = 1 << (shm.word(offset + PONG_PLACE) - 1)
    for number in range(1, rounds + 1):
        shm.notified &= ~peer
        shm.set_word(offset + PING_NUMBER, number)
        shm.poke(peer)
        deadline = time.monotonic() + timeout
        while not (shm.word(offset + PONG_NUMBER) == number and shm.notified & peer):
            if time.monotonic() > deadline:
                raise AssertionError(f"ping {number} is not answered within {timeout} s")
            if not shm.wait(AGAIN_MS):
                shm.poke(peer)
    shm.set_word(offset + PING_PLACE, 0)
    return peer


def pong(shm, rounds, offset=0, timeout=30):
    """Answers each ping. The peer's bit."""
    shm.set_word(offset + PONG_NUMBER, 0)
    shm.set_word(offset + PONG_PLACE, shm.idx + 1)
    shm.wait_until(lambda s: s.word(offset + PING_PLACE), timeout, "ping is there")
    peer = 1 << (shm.word(offset + PING_PLACE) - 1)
    for number in range(1, rounds + 1):
        deadline = time.monotonic() + timeout
        while not (shm.word(offset + PING_NUMBER) == number and shm.notified & peer):
            if time.monotonic() > deadline:
                raise AssertionError(f"ping {number} does not come within {timeout} s")
            if not shm.wait(AGAIN_MS) and number > 1:
                shm.poke(peer)  # it may be the answer that got lost
        shm.notified &= ~peer
        shm.set_word(offset + PONG_NUMBER, number)
        shm.poke(peer)
    shm.set_word(offset + PONG_PLACE, 0)
    return peer
