# SPDX-License-Identifier: Apache-2.0
"""The host's side of the mailbox (guests/lib/mailbox.hpp)."""

MESSAGE_BYTES = 0x800
RECORDS_OFFSET = 0x800
RECORD_BYTES = 128
READY, COMMAND, FIRST_VECTOR = 0, 8, 16
VECTOR_STRIDE, SENT, SEEN, INTERRUPTS = 24, 0, 8, 16
GO_ON, STOP = 0, 1


class Record:
    """What the host and the guest in one slot tell each other. Numbers are read and written whole."""

    def __init__(self, memory, slot):
        self._numbers = memoryview(memory).cast("Q")
        self._base = RECORDS_OFFSET + slot * RECORD_BYTES

    def _get(self, offset):
        return self._numbers[(self._base + offset) // 8]

    def _set(self, offset, value):
        self._numbers[(self._base + offset) // 8] = value

    def release(self):
        """Lets go of the memory, which cannot be unmapped before."""
        self._numbers.release()

    @property
    def ready(self):
        return self._get(READY)

    def clear(self):
        """Before a guest starts: nothing is left of the one before it."""
        for offset in range(0, RECORD_BYTES, 8):
            self._set(offset, 0)

    def command(self, value):
        self._set(COMMAND, value)

    def send(self, vector, sequence):
        self._set(FIRST_VECTOR + vector * VECTOR_STRIDE + SENT, sequence)

    def seen(self, vector):
        return self._get(FIRST_VECTOR + vector * VECTOR_STRIDE + SEEN)

    def interrupts(self, vector):
        return self._get(FIRST_VECTOR + vector * VECTOR_STRIDE + INTERRUPTS)


def set_message(memory, text):
    data = text.encode()[:MESSAGE_BYTES - 1]
    memory[0:len(data) + 1] = data + b"\0"


def message(memory):
    return memory[0:MESSAGE_BYTES].split(b"\0", 1)[0].decode("utf-8", "replace")
