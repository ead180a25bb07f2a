# SPDX-License-Identifier: Apache-2.0
"""Who has rung whom in the chaos test: a file that all processes of the test map.

A receiver opens its slot when it holds it for sure, and closes it before it leaves. Between the two each sender counts
a ring before it and after it, under the slot's lock, so that at the end: done <= received <= begun. They differ by
senders that were killed in between; the lock of who is killed is free by itself (fcntl).
"""

import contextlib
import fcntl
import mmap
import os
import struct

SLOTS = 64
_RECORD = struct.Struct("<4Q")  # owner, begun, done, rings of all tenancies
_STOP_AT = SLOTS * _RECORD.size
_BYTES = 4096
NOBODY = 0


class Ledger:
    """One in a process: fcntl forgets the locks of a process when it closes any descriptor of the file."""

    def __init__(self, path):
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(self.fd, _BYTES)
        self.map = mmap.mmap(self.fd, _BYTES)

    @contextlib.contextmanager
    def locked(self, slot):
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, slot)
        try:
            yield
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, slot)

    def _get(self, slot):
        return _RECORD.unpack_from(self.map, slot * _RECORD.size)

    def _set(self, slot, field, value):
        struct.pack_into("<Q", self.map, slot * _RECORD.size + 8 * field, value)

    def owner(self, slot):
        return self._get(slot)[0]

    def open(self, slot, owner, drain):
        """`drain` takes what earlier times have left in the doorbells. False when somebody has it open."""
        with self.locked(slot):
            if self.owner(slot) != NOBODY:
                return False
            drain()
            self._set(slot, 1, 0)
            self._set(slot, 2, 0)
            self._set(slot, 0, owner)
        return True

    def ring(self, slot, ring):
        """Rings when somebody has the slot open."""
        with self.locked(slot):
            owner, begun, done, total = self._get(slot)
            if owner == NOBODY:
                return False
            self._set(slot, 1, begun + 1)
            ring()
            self._set(slot, 2, done + 1)
            self._set(slot, 3, total + 1)
        return True

    def close(self, slot, drain):
        """The end of a tenancy: (done, received, begun). `drain` gives how many rings were taken in all of it."""
        with self.locked(slot):
            received = drain()
            _, begun, done, _ = self._get(slot)
            self._set(slot, 0, NOBODY)
        return done, received, begun

    def bury(self, owner):
        """What a killed process held."""
        for slot in range(SLOTS):
            with self.locked(slot):
                if self.owner(slot) == owner:
                    self._set(slot, 0, NOBODY)

    def open_slots(self):
        return [slot for slot in range(SLOTS) if self.owner(slot) != NOBODY]

    def count_rings(self):
        return sum(self._get(slot)[3] for slot in range(SLOTS))

    @property
    def is_stopped(self):
        return self.map[_STOP_AT] != 0

    def stop(self):
        self.map[_STOP_AT] = 1
