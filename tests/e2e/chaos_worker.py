# SPDX-License-Identifier: Apache-2.0
"""Some peers of the chaos test in one process: they attach, ring, leave, and are killed with it.

usage: chaos_worker.py FOLDER NUMBER SEED PEERS   (it prints lines of JSON; the last one counts what it did)

What may happen to a peer: a connection or a handshake that a kill of the service interrupts is closed, and tried
again. A peer is sure of its place when a call, made after its handshake, was answered: the instance that answers has
sent its last message, or has taken it over. From then on nothing may happen to it.
"""

import errno
import json
import os
import random
import signal
import struct
import sys
import time
from pathlib import Path

import chaos_ledger

sys.path.append(str(Path(__file__).resolve().parents[1] / "conformance"))

from control_peer import ControlBroken, ControlError, ControlPeer  # noqa: E402  (found through the path above)
from ivshmem_peer import Closed, Peer, Refused, identity_of, select_readable  # noqa: E402
from kept_service import Session  # noqa: E402

VECTORS = 2
TIMEOUT = 30
PATTERN_AT = 1 << 20
PATTERN = b"kept while anybody is in" * 100
# Of the worker NUMBER: its first peer has this slot by a door of its own, its second has rights that come and go.
FIRST_OWNED_SLOT = 40


class Place:
    """A place that a peer has, or wants to have."""

    def __init__(self, worker, kind):
        self.worker = worker
        self.kind = kind  # "owned", "fickle", "session", "common"
        self.peer = None
        self.session = None
        self.received = 0
        self.tenancy = None

    def is_in(self):
        return self.peer is not None

    def attach(self):
        worker = self.worker
        try:
            self.connect()
            worker.ask_the_service()
        except (Refused, ControlError) as refusal:
            self.drop()
            self.judge(refusal)
            return
        except (Closed, ControlBroken, ConnectionResetError, BrokenPipeError):
            # Killed in the midst of it.
            self.drop()
            worker.count("interrupted")
            return
        if select_readable(self.peer.sock, 0):
            self.drop()
            worker.count("interrupted")
            return
        self.check_place()
        self.open()
        worker.count("joins")

    def open(self):
        """Where the holder before was killed, the test has to say so first."""
        deadline = time.monotonic() + TIMEOUT
        while not self.worker.ledger.open(self.peer.id, self.worker.number, self.drain):
            if time.monotonic() > deadline:
                raise AssertionError(f"slot {self.peer.id} is held twice")
            time.sleep(0.01)
        self.received = 0

    def connect(self):
        worker = self.worker
        if self.kind == "session":
            self.session = Session(worker.control(), "chaos")
            self.session.join(TIMEOUT)
            self.peer = self.session.peer
            return
        path = worker.folder / {"owned": f"owned-{worker.number}.sock", "fickle": "fickle.sock"}.get(
            self.kind, "share.sock")
        slots = None if self.kind == "fickle" else chaos_ledger.SLOTS
        peer = Peer(path, vectors=VECTORS, slots=slots, timeout=TIMEOUT, record=False, handshake=False)
        self.peer = peer
        peer.handshake()

    def judge(self, refusal):
        """Which refusals can be: no slot is free, the own one is not free again yet, rights that were taken away."""
        if isinstance(refusal, ControlError):
            is_fair = refusal.code == "exhausted"
        else:
            is_fair = refusal.errno in (errno.ENOSPC, errno.EBUSY) or (
                self.kind == "fickle" and refusal.errno == errno.EACCES)
        if not is_fair:
            self.worker.fail(f"{self.kind}: refused: {refusal}")
        self.worker.count("refused")

    def check_place(self):
        worker, peer = self.worker, self.peer
        if self.kind == "owned" and peer.id != FIRST_OWNED_SLOT + worker.number:
            worker.fail(f"the VM of slot {FIRST_OWNED_SLOT + worker.number} has got {peer.id}")
        worker.check_same("memory", identity_of(peer.memory))
        for slot in {peer.id, max(peer.eventfds)}:
            worker.check_same(f"doorbells of {slot}", [identity_of(fd) for fd in peer.eventfds[slot]])
        if peer.map()[PATTERN_AT:PATTERN_AT + len(PATTERN)] != PATTERN:
            worker.fail("the pattern is not in the memory")
        if self.session is not None:
            self.tenancy = self.session.tenancy(peer.id)
            if self.tenancy % 2 == 0:
                worker.fail(f"the presence pages do not show slot {peer.id}, which is held")

    def drain(self):
        """Takes the rings that wait; how many there were since the place was taken."""
        for fd in self.peer.eventfds[self.peer.id]:
            if select_readable(fd, 0):
                self.received += struct.unpack("=Q", os.read(fd, 8))[0]
        return self.received

    def look(self):
        """Nothing may have happened to who is in."""
        self.drain()
        if select_readable(self.peer.sock, 0):
            self.worker.fail(f"{self.kind}: slot {self.peer.id} was closed, or told something")
            self.worker.ledger.close(self.peer.id, self.drain)
            self.drop()
            return
        if self.session is not None and self.session.tenancy(self.peer.id) != self.tenancy:
            self.worker.fail(f"the tenancy of slot {self.peer.id}, which is held, has changed")

    def ring(self, chance):
        slot = chance.choice(self.worker.ledger.open_slots() or [self.peer.id])
        bells = self.peer.eventfds.get(slot)
        # Who may not notify has no doorbell but its own.
        if bells is None:
            return
        bell = chance.choice(bells)
        if self.worker.ledger.ring(slot, lambda: os.write(bell, struct.pack("=Q", 1))):
            self.worker.count("rings")

    def leave(self):
        slot = self.peer.id
        done, received, begun = self.worker.ledger.close(slot, self.drain)
        if not done <= received <= begun:
            self.worker.fail(f"{self.kind}: slot {slot} was rung {done} to {begun} times, and has heard {received}")
        self.worker.count("heard", received)
        self.drop()

    def drop(self):
        if self.session is not None:
            self.session.close()
        elif self.peer is not None:
            self.peer.close()
        self.peer = self.session = None


class Worker:
    def __init__(self, folder, number, seed, count_peers):
        self.folder, self.number = folder, number
        self.chance = random.Random(seed)
        self.ledger = chaos_ledger.Ledger(folder / "ledger")
        self.counts = {}
        self.known = {}
        self._control = None
        kinds = ["owned", "fickle", "session", "session"]
        self.places = [Place(self, kinds[index] if index < len(kinds) else "common") for index in range(count_peers)]

    def count(self, what, amount=1):
        self.counts[what] = self.counts.get(what, 0) + amount

    def fail(self, what):
        print(json.dumps({"failure": f"worker {self.number}: {what}"}), flush=True)
        self.count("failures")

    def check_same(self, what, value):
        if self.known.setdefault(what, value) != value:
            self.fail(f"{what}: {value}, and before {self.known[what]}")

    def control(self):
        """A connection on which nothing waits for an answer."""
        if self._control is not None and select_readable(self._control.sock, 0):
            self.hang_up()
        if self._control is None:
            self._control = ControlPeer(self.folder / "control.sock", timeout=TIMEOUT)
        return self._control

    def hang_up(self):
        if self._control is not None:
            self._control.close()
        self._control = None

    def ask_the_service(self):
        """Returns once an instance has answered."""
        deadline = time.monotonic() + TIMEOUT
        while True:
            try:
                return self.control().call("share.list")
            except (ControlBroken, ConnectionResetError, BrokenPipeError):
                self.hang_up()
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.01)

    def run(self):
        print(json.dumps({"started": self.number}), flush=True)
        while not self.ledger.is_stopped:
            place = self.chance.choice(self.places)
            if not place.is_in():
                try:
                    place.attach()
                except ControlBroken:
                    self.fail("no instance answers")
                if not place.is_in():
                    self.hang_up_sometimes()
                continue
            place.look()
            if not place.is_in():
                continue
            for _ in range(self.chance.randrange(20)):
                place.ring(self.chance)
            if self.chance.random() < 0.15:
                place.leave()
            time.sleep(self.chance.random() / 200)
        for place in self.places:
            if place.is_in():
                place.look()
            if place.is_in():
                place.leave()
        self.hang_up()
        print(json.dumps({"ended": self.number, **self.counts}), flush=True)

    def hang_up_sometimes(self):
        self.hang_up()
        time.sleep(self.chance.random() / 50)


def main():
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder, number, seed, peers = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
    worker = Worker(folder, number, seed, peers)
    worker.run()
    return 1 if worker.counts.get("failures") else 0


if __name__ == "__main__":
    sys.exit(main())
