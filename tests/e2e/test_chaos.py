# SPDX-License-Identifier: Apache-2.0
"""64 peers that come, ring, leave and are killed, while the service is killed, upgraded and reloaded: at random.

Its keeper is killed, too, but not at the same time.

Peers are two QEMU guests, one host peer and two sessions of this test, and those of chaos_worker.py in processes of
their own. GUESTMEM_CHAOS_SECONDS is how long (20), GUESTMEM_TEST_SEED repeats the choices of a run.
"""

import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import chaos_ledger
import chaos_worker
import e2e_case
import guest_mailbox as mailbox
import qemu
from chaos_worker import FIRST_OWNED_SLOT, PATTERN, PATTERN_AT, VECTORS
from processes import Process, wait_until

# Through the path that e2e_case has set.
from control_peer import ControlPeer
from ivshmem_peer import Peer, identity_of, select_readable
from kept_service import Session, is_running, keepers_of

WORKERS = 6
PEERS_OF_A_WORKER = 10
PERMANENT_SLOT = 0
GUEST_SLOTS = {"guest-one": 14, "guest-two": 15}
FICKLE_SLOTS = range(50, 50 + WORKERS)
OWNER_OF_THE_TEST = 1000
READY_TIMEOUT = 60
KICK_TIMEOUT = 60
# An allocator may keep some pages of a busy time; what leaks by each of thousands of joins is far more.
MAX_GROWTH_BYTES = 8 << 20

KEEPER_GONE = re.compile(r"the keeper \(pid \d+\) (is gone; another one|does not hold .* has ended the connection)")

# What the clients of the door "fickle" may: the file of a reload.
RIGHTS = ['{ allow = "*" }', '{ allow = "chaos", may = ["attach"] }', '{ deny = "chaos" }']


def configuration(folder, rights):
    def door(name, *slots, rules=""):
        return (f'[[vm]]\nname = "{name}"\n{rules}[[vm.attach]]\nshare = "chaos"\nslots = {list(slots)}\n'
                f'socket = "{folder}/{name}.sock"\n')

    text = (f'[control]\npath = "{folder}/control.sock"\n[[share]]\nname = "chaos"\nsize = "4M"\n'
            f'vectors = {VECTORS}\nslots = {chaos_ledger.SLOTS}\nsocket = "{folder}/share.sock"\n')
    text += door("permanent", PERMANENT_SLOT)
    for name, slot in GUEST_SLOTS.items():
        text += door(name, slot)
    for number in range(1, WORKERS + 1):
        text += door(f"owned-{number}", FIRST_OWNED_SLOT + number)
    return text + door("fickle", *FICKLE_SLOTS, rules=f"rules = [{rights}]\n")


class Service(Process):
    def __init__(self, program, folder, *words):
        super().__init__("service", [program, "share", "serve", "--config", folder / "guestmem.toml", *words,
                                     "--keeper"], death_signal=signal.SIGTERM)
        self.wait_for(r"info: ready: ", READY_TIMEOUT)

    def resident_bytes(self):
        with open(f"/proc/{self.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def complaints(self):
        """But for what is said of a keeper that was killed."""
        return [line.text for line in self.lines if ": error:" in line.text and not KEEPER_GONE.search(line.text)]


class ChaosTest(e2e_case.E2eCase):
    def setUp(self):
        super().setUp()
        seed = int(os.environ.get("GUESTMEM_TEST_SEED", "0")) or time.time_ns() % 2**32
        print(f"GUESTMEM_TEST_SEED={seed}", flush=True)
        self.chance = random.Random(seed)
        self.seconds = float(os.environ.get("GUESTMEM_CHAOS_SECONDS", "20"))
        self.addCleanup(self.end_keepers)
        # With the address sanitizer freed memory stays resident, which would hide what grows.
        os.environ["ASAN_OPTIONS"] = ":".join(filter(None, [os.environ.get("ASAN_OPTIONS"), "quarantine_size_mb=1"]))
        self.counts = {}
        self.complaints = []
        self.sequence = 0
        self.workers = {}
        self.guests = {}

    def end_keepers(self):
        for pid in keepers_of(str(self.folder)):
            os.kill(pid, signal.SIGKILL)

    def count(self, what, amount=1):
        self.counts[what] = self.counts.get(what, 0) + amount

    # -- the parts ---------------------------------------------------------------------------

    def write_rights(self, rights):
        path = self.folder / "guestmem.toml.next"
        path.write_text(configuration(self.folder, rights))
        path.rename(self.folder / "guestmem.toml")

    def descriptor_counts(self):
        keeper = keepers_of(str(self.folder))
        return [len(os.listdir(f"/proc/{pid}/fd")) for pid in [self.service.pid, *keeper]]

    def start_worker(self, number):
        self.workers[number] = Process(
            f"worker-{number}", [sys.executable, Path(chaos_worker.__file__), self.folder, number,
                                 self.chance.getrandbits(32), PEERS_OF_A_WORKER])

    def start_guest(self, name):
        self.records[name].clear()
        self.guests[name] = qemu.Guest(name, self.image, "counter", self.folder / f"{name}.sock", VECTORS)

    def wait_guest(self, name):
        self.guests[name].wait_for(f"^ready: slot {GUEST_SLOTS[name]}, {VECTORS} vectors,", e2e_case.BOOT_TIMEOUT)

    def take_own_rings(self):
        for fd in self.permanent.eventfds[PERMANENT_SLOT]:
            if select_readable(fd, 0):
                self.received += struct.unpack("=Q", os.read(fd, 8))[0]
        return self.received

    def start_everybody(self):
        self.permanent = Peer(self.folder / "permanent.sock", vectors=VECTORS, slots=chaos_ledger.SLOTS, timeout=30)
        self.addCleanup(self.permanent.close)
        self.memory = self.permanent.map()
        self.memory[PATTERN_AT:PATTERN_AT + len(PATTERN)] = PATTERN
        self.records = {name: self.record(self.permanent, slot) for name, slot in GUEST_SLOTS.items()}
        with ControlPeer(self.folder / "control.sock", timeout=30) as control:
            self.session = Session(control, "chaos").join(30)
            self.addCleanup(self.session.close)
            self.dynamic = Session(control, "dynamic", create=True, size=8192, slots=4).join(30)
        self.addCleanup(self.dynamic.close)
        self.dynamic.peer.map()[:len(PATTERN)] = PATTERN
        self.tenancies = {slot: self.session.tenancy(slot) for slot in (PERMANENT_SLOT, self.session.slot)}
        for name in GUEST_SLOTS:
            self.start_guest(name)
        for name in GUEST_SLOTS:
            self.wait_guest(name)
        self.tenancies[GUEST_SLOTS["guest-one"]] = self.session.tenancy(GUEST_SLOTS["guest-one"])
        self.received = 0
        self.assertTrue(self.ledger.open(PERMANENT_SLOT, OWNER_OF_THE_TEST, self.take_own_rings))
        self.received = 0
        for number in range(1, WORKERS + 1):
            self.start_worker(number)

    # -- what happens ------------------------------------------------------------------------

    def kill_service(self):
        self.service.kill()
        self.complaints += self.service.complaints()
        time.sleep(self.chance.random() / 5)
        self.service = Service(self.program, self.folder)

    def upgrade_service(self):
        before = self.service
        self.service = Service(self.program, self.folder, "--upgrade")
        self.assertEqual(before.wait(READY_TIMEOUT), 0, before.tail())
        self.complaints += before.complaints()

    def reload_by_signal(self):
        self.write_rights(self.chance.choice(RIGHTS))
        self.service.send_signal(signal.SIGHUP)

    def reload_by_tool(self, rights=None):
        self.write_rights(rights or self.chance.choice(RIGHTS))
        command = [self.program, "share", "reload", "--control", self.folder / "control.sock"]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True,
                              timeout=READY_TIMEOUT, check=False)
        self.assertEqual(done.returncode, 0, done.stderr)

    def kill_worker(self):
        number = self.chance.choice(list(self.workers))
        self.workers[number].kill()
        self.collect(self.workers[number])
        self.ledger.bury(number)
        self.start_worker(number)

    def kill_keeper(self):
        """An answer that names the other keeper comes after that has got everything."""
        keeper, = keepers_of(str(self.folder))
        os.kill(keeper, signal.SIGKILL)

        def is_replaced():
            with ControlPeer(self.folder / "control.sock", timeout=30) as control:
                return str(keeper) not in control.call("share.list")["service"]["keeper"]

        wait_until(is_replaced, READY_TIMEOUT, "another keeper takes the place of the one that was killed")

    def kill_guest(self):
        """A QEMU whose handshake is cut off would spin: it is left alone until it has joined."""
        self.guests["guest-two"].kill()
        self.start_guest("guest-two")
        self.wait_guest("guest-two")

    # -- what must be ------------------------------------------------------------------------

    def check(self):
        self.assertEqual(self.memory[PATTERN_AT:PATTERN_AT + len(PATTERN)], PATTERN, "the memory was not kept")
        self.assertEqual(self.dynamic.peer.map()[:len(PATTERN)], PATTERN, "the memory of 'dynamic' was not kept")
        for peer in (self.permanent, self.session.peer, self.dynamic.peer):
            self.assertTrue(peer.is_quiet(0), f"slot {peer.id} was closed, or told something")
        seen = {slot: self.session.tenancy(slot) for slot in self.tenancies}
        self.assertEqual(seen, self.tenancies, "who has stayed is shown to have left")
        for name in GUEST_SLOTS:
            self.kick_guest(name)
        for slot in self.ledger.open_slots():
            self.ledger.ring(slot, lambda: self.permanent.kick(slot, self.chance.randrange(VECTORS)))
        self.take_own_rings()
        for number, worker in self.workers.items():
            self.assertTrue(worker.is_running(), f"worker {number} has ended:\n{worker.tail()}")

    def kick_guest(self, name):
        """The guest writes back which number it has found at its interrupt."""
        record, vector = self.records[name], self.chance.randrange(VECTORS)
        self.sequence += 1
        record.send(vector, self.sequence)
        self.permanent.kick(GUEST_SLOTS[name], vector)
        wait_until(lambda: record.seen(vector) == self.sequence, KICK_TIMEOUT,
                   lambda: f"{name}: kick {self.sequence} of vector {vector}, last seen {record.seen(vector)}")
        self.count("kicks of guests")

    def collect(self, worker):
        """What a worker has said; of one that was killed, what it said before."""
        for line in worker.lines:
            if not line.text.startswith("{"):
                self.fail(f"{worker.name}: {worker.tail()}")
            said = json.loads(line.text)
            self.assertNotIn("failure", said)
            for what in said.keys() - {"started", "ended"}:
                self.count(what, said[what])

    def end_everybody(self):
        self.ledger.stop()
        for number, worker in self.workers.items():
            status = worker.wait(120)
            self.collect(worker)
            self.assertEqual(status, 0, f"worker {number}:\n{worker.tail()}")
        done, received, begun = self.ledger.close(PERMANENT_SLOT, self.take_own_rings)
        self.assertTrue(done <= received <= begun, f"rung {done} to {begun} times, heard {received}")
        for name, guest in self.guests.items():
            self.records[name].command(mailbox.STOP)
            self.permanent.kick(GUEST_SLOTS[name], 0)
            self.assert_clean_end(guest)
        self.assertEqual(self.memory[PATTERN_AT:PATTERN_AT + len(PATTERN)], PATTERN, "the memory was not kept")
        for record in self.records.values():
            record.release()
        identity = identity_of(self.permanent.memory)
        self.assertEqual(identity, identity_of(self.session.peer.memory))
        for one in (self.session, self.dynamic, self.permanent):
            one.close()

    def test_nothing_is_lost(self):
        self.ledger = chaos_ledger.Ledger(self.folder / "ledger")
        self.write_rights(RIGHTS[0])
        self.service = Service(self.program, self.folder)
        self.kill_service()
        descriptors, resident = self.descriptor_counts(), self.service.resident_bytes()
        self.start_everybody()
        events = [self.kill_service, self.upgrade_service, self.reload_by_signal, self.reload_by_tool,
                  self.kill_worker, self.kill_keeper]
        script = [*events, self.kill_guest]
        self.chance.shuffle(script)
        deadline = time.monotonic() + self.seconds
        while script or time.monotonic() < deadline:
            event = script.pop() if script else self.chance.choice(events)
            event()
            self.count(event.__name__)
            self.check()
            time.sleep(self.chance.random() / 2)
        self.end_everybody()
        self.reload_by_tool(RIGHTS[0])
        wait_until(lambda: self.descriptor_counts() == descriptors, 30,
                   lambda: f"descriptors of service and keeper: {self.descriptor_counts()}, before {descriptors}")
        growth = self.service.resident_bytes() - resident
        print(f"{self.counts}, service grew by {growth} bytes", flush=True)
        self.assertLess(growth, MAX_GROWTH_BYTES)
        for what in ("joins", "heard", "rings"):
            self.assertGreater(self.counts.get(what, 0), 0, what)
        keepers = keepers_of(str(self.folder))
        self.assertEqual(self.service.stop(), 0, self.service.tail())
        self.assertEqual(self.complaints + self.service.complaints(), [])
        wait_until(lambda: not any(map(is_running, keepers)), 20, "the keeper ends with the service")
        self.assertEqual([path.name for path in self.folder.iterdir() if path.is_socket()], [])


if __name__ == "__main__":
    e2e_case.main()
