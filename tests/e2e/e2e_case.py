# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end tests have in common: the environment, a service, guests, and nothing left behind.

A test file ends with `e2e_case.main()`: it prints "SKIPPED: why" and exits with 77 where guests cannot run.
"""

import os
import platform
import shutil
import sys
import unittest
from pathlib import Path

import guest_image
import processes
import qemu
import share_service
from guest_mailbox import Record

# The ivshmem client is the strict one of the conformance tests. What both folders import needs a name of its own.
sys.path.append(str(Path(__file__).resolve().parents[1] / "conformance"))

from ivshmem_peer import Peer  # noqa: E402  (found through the path above)

BOOT_TIMEOUT = 120
JOIN_TIMEOUT = 20
SKIPPED = 77


def environment(name):
    value = os.environ.get(name)
    if not value:
        sys.exit(f"{Path(sys.argv[0]).name}: the environment variable {name} is not set; run the tests by ./dev test")
    return value


def reason_to_skip():
    if platform.machine() != "x86_64":
        return f"the guests are x86-64 machines, this host is {platform.machine()}"
    if not shutil.which(qemu.PROGRAM):
        return f"{qemu.PROGRAM} is not installed"
    return None


def main():
    environment("GUESTMEM")
    reason = reason_to_skip()
    if reason:
        print(f"SKIPPED: {reason}")
        sys.exit(SKIPPED)
    processes.exit_on_signals()
    try:
        unittest.main(verbosity=2)
    finally:
        processes.ignore_signals()
        processes.stop_all()


class E2eCase(unittest.TestCase):
    def setUp(self):
        self.program = environment("GUESTMEM")
        self.build = Path(environment("GUESTMEM_BUILD"))
        self.source = Path(environment("GUESTMEM_SOURCE"))
        with processes.undisturbed():
            self.folder = share_service.make_folder("guestmem-e2e-")
            self.addCleanup(share_service.remove_folder, self.folder)
        self.addCleanup(processes.stop_all)
        self.image = guest_image.prepare(self.build, self.source, lambda text: print(text, flush=True))

    def start_service(self, share):
        self.service = share_service.Service(self.program, self.folder, share)
        self.service.wait_ready()
        return self.service

    def start_guest(self, name, agent, vm=None, **options):
        vectors = self.service.share.vectors
        return qemu.Guest(name, self.image, agent, self.service.socket(vm), vectors, **options)

    def connect_peer(self, vm=None):
        """A host program that has joined, by the slot of a VM or as anybody; what the server says is checked."""
        share = self.service.share
        peer = Peer(self.service.socket(vm), vectors=share.vectors, slots=share.slots, ids=share.ids,
                    timeout=JOIN_TIMEOUT)
        self.addCleanup(peer.close)
        return peer

    def record(self, peer, slot):
        record = Record(peer.map(), slot)
        self.addCleanup(record.release)
        return record

    def assert_clean_end(self, guest, timeout=60):
        """The guest has powered off by itself and its agent was content."""
        self.assertEqual(guest.wait(timeout), 0, guest.tail())
        guest.wait_for("^agent ended with status 0$", 0)

    def assert_service_ends(self):
        self.assertEqual(self.service.stop(), 0, self.service.tail())
