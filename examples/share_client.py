# SPDX-License-Identifier: Apache-2.0
"""The host program of share_client.c in Python, through ctypes: the two can ring one another.

    GUESTMEM_SHARE_LIBRARY=build/dev/lib/libguestmem-share.so.1 \\
        python3 examples/share_client.py /run/guestmem/share.control mailbox 1 0

The third word is the own slot, the fourth the peer's. When the share does not exist it is made.
"""

import ctypes
import os
import select
import sys

TEXT_BYTES = 256
SHARE_BYTES = 65536
PATIENCE_SECONDS = 30

# Names and numbers of guestmem/share.h.
CREATE = 1 << 0
WANT_SLOT = 1 << 5
ABI_MAJOR = 1


class Options(ctypes.Structure):
    _fields_ = [("struct_size", ctypes.c_size_t), ("control", ctypes.c_char_p), ("share", ctypes.c_char_p),
                ("size_bytes", ctypes.c_uint64), ("vectors", ctypes.c_uint32), ("slots", ctypes.c_uint32),
                ("slot", ctypes.c_uint32), ("flags", ctypes.c_uint32), ("timeout_ms", ctypes.c_uint32),
                ("reserved", ctypes.c_uint32)]


class Kick(ctypes.Structure):
    _fields_ = [("vector", ctypes.c_uint32), ("reserved", ctypes.c_uint32), ("count", ctypes.c_uint64)]


def load_library():
    library = ctypes.CDLL(os.environ.get("GUESTMEM_SHARE_LIBRARY", "libguestmem-share.so.1"))
    library.gm_share_abi_version.restype = ctypes.c_uint32
    library.gm_share_last_error.restype = ctypes.c_char_p
    library.gm_share_data.restype = ctypes.c_void_p
    library.gm_share_size.restype = ctypes.c_uint64
    # Without these ctypes takes an integer for an int, and cuts pointers off.
    library.gm_share_attach.argtypes = [ctypes.POINTER(Options), ctypes.POINTER(ctypes.c_void_p)]
    library.gm_share_map.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_void_p)]
    library.gm_share_wait.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_uint32, ctypes.c_int,
                                      ctypes.POINTER(ctypes.c_uint32), ctypes.POINTER(Kick), ctypes.c_size_t,
                                      ctypes.POINTER(ctypes.c_size_t)]
    library.gm_share_wait_ready.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_int, ctypes.c_uint64,
                                            ctypes.c_int]
    library.gm_share_ring.argtypes = [ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint32]
    library.gm_share_refresh.argtypes = [ctypes.c_void_p, ctypes.POINTER(ctypes.c_uint32)]
    for name in ("close", "unmap", "data", "size", "any_fd"):
        getattr(library, f"gm_share_{name}").argtypes = [ctypes.c_void_p]
    if library.gm_share_abi_version() >> 16 != ABI_MAJOR:
        raise OSError("another libguestmem-share than this program was written for")
    return library


class Session:
    """A place in a share; the memory is `memory`, a view that is valid while the session is open."""

    def __init__(self, library, control, share, slot):
        self.library = library
        self.handle = ctypes.c_void_p()
        self.mapping = ctypes.c_void_p()
        options = Options(struct_size=ctypes.sizeof(Options), control=os.fsencode(control), share=share.encode(),
                          size_bytes=SHARE_BYTES, slot=slot, flags=CREATE | WANT_SLOT)
        self.check(library.gm_share_attach(ctypes.byref(options), ctypes.byref(self.handle)), "attach")
        self.check(library.gm_share_map(self.handle, ctypes.byref(self.mapping)), "map")
        size = library.gm_share_size(self.mapping)
        self.memory = (ctypes.c_char * size).from_address(library.gm_share_data(self.mapping))

    def __enter__(self):
        return self

    def __exit__(self, *_):
        del self.memory
        self.library.gm_share_unmap(self.mapping)
        self.library.gm_share_close(self.handle)

    def check(self, status, what):
        if status != 0:
            raise OSError(f"{what}: {self.library.gm_share_last_error().decode(errors='replace')}")

    def write_text(self, slot, text):
        data = text.encode()[:TEXT_BYTES - 1] + b"\0"
        self.memory[slot * TEXT_BYTES:slot * TEXT_BYTES + len(data)] = data

    def read_text(self, slot):
        return self.memory[slot * TEXT_BYTES:(slot + 1) * TEXT_BYTES].split(b"\0")[0].decode(errors="replace")

    def ring(self, peer):
        self.check(self.library.gm_share_wait_ready(self.handle, peer, 0, 0, PATIENCE_SECONDS * 1000), "wait")
        self.check(self.library.gm_share_ring(self.handle, peer, 0), "ring")

    def wait_for_kick(self):
        """The vector that was rung and how often. The descriptor could be one of many in a selector."""
        events, kick, count = ctypes.c_uint32(), Kick(), ctypes.c_size_t()
        while select.select([self.library.gm_share_any_fd(self.handle)], [], [], PATIENCE_SECONDS)[0]:
            self.check(self.library.gm_share_wait(self.handle, None, 0, 0, 0, ctypes.byref(events), ctypes.byref(kick),
                                                  1, ctypes.byref(count)), "wait")
            if count.value == 1:
                return kick.vector, kick.count
            # The other reason to wake is a change of who is there.
            self.check(self.library.gm_share_refresh(self.handle, ctypes.byref(events)), "refresh")
        raise TimeoutError("nobody rang")


def main(words):
    if len(words) != 4:
        print("usage: share_client.py CONTROL SHARE SLOT PEER", file=sys.stderr)
        return 2
    control, share, slot, peer = words[0], words[1], int(words[2]), int(words[3])
    try:
        with Session(load_library(), control, share, slot) as session:
            session.write_text(slot, f"greetings from Python on slot {slot}")
            session.ring(peer)
            session.wait_for_kick()
            print(f"slot {peer}: {session.read_text(peer)}")
    except OSError as problem:
        print(problem, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
