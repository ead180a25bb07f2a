# SPDX-License-Identifier: Apache-2.0
"""A VM that comes and goes in the same slot: the same id each time, and no kick after "ready" is lost.

Kicks coalesce, so they are not counted one for one: the host writes an increasing sequence number before each
kick, and the guest writes back on each interrupt which number it has found.
"""

import os
import random
import time

import e2e_case
import guest_mailbox as mailbox
import share_service
from processes import wait_until

RESTARTS = 20
VM_SLOT = 1
VECTORS = 2
KICK_TIMEOUT = 20


class RestartTest(e2e_case.E2eCase):
    def setUp(self):
        super().setUp()
        seed = int(os.environ.get("GUESTMEM_TEST_SEED", "0")) or time.time_ns() % 2**32
        print(f"GUESTMEM_TEST_SEED={seed}", flush=True)
        self.random = random.Random(seed)
        self.sequence = 0

    def test_every_kick_after_ready_is_followed_by_an_interrupt(self):
        self.start_service(share_service.Share("mailbox", vectors=VECTORS, slots=4, vms={"host": 0, "guest": VM_SLOT}))
        peer = self.connect_peer("host")
        self.assertEqual(peer.id, 0)
        record = self.record(peer, VM_SLOT)
        starts = set()
        for restart in range(RESTARTS):
            try:
                starts.add(self.run_once(peer, record, restart))
            except AssertionError as error:
                raise AssertionError(f"start {restart + 1} of {RESTARTS}: {error}") from None
        self.assertEqual(len(starts), RESTARTS, "each start of the guest has a number of its own")
        self.assert_service_ends()

    def run_once(self, peer, record, restart):
        record.clear()
        # Nobody is there: these kicks wait for the next holder of the slot, and do not count.
        early = restart % 3
        for _ in range(early):
            peer.kick(VM_SLOT, self.random.randrange(VECTORS))
        guest = self.start_guest(f"restart-{restart}", "counter", "guest")
        guest.wait_for(f"^ready: slot {VM_SLOT}, {VECTORS} vectors,", e2e_case.BOOT_TIMEOUT)
        start = record.ready
        self.assertNotEqual(start, 0)
        kicks = self.kick_one_by_one(peer, record)
        kicks = [a + b for a, b in zip(kicks, self.kick_in_bursts(peer, record))]
        if restart % 4 == 3:
            kicks[0] += self.kick_with_the_tool(record)
        for vector in range(VECTORS):
            self.assertGreaterEqual(record.interrupts(vector), 1)
            self.assertLessEqual(record.interrupts(vector), kicks[vector] + early, "interrupts without kicks")
        if restart % 5 == 4:
            guest.kill()
        else:
            record.command(mailbox.STOP)
            peer.kick(VM_SLOT, 0)
            self.assert_clean_end(guest)
        wait_until(lambda: self.service.count_joined() == 1, 10, "the service has seen the guest leave")
        return start

    def kick(self, peer, record, vector):
        self.sequence += 1
        record.send(vector, self.sequence)
        peer.kick(VM_SLOT, vector)

    def wait_seen(self, record, vector):
        wanted = self.sequence
        wait_until(lambda: record.seen(vector) == wanted, KICK_TIMEOUT,
                   lambda: f"vector {vector}: interrupt for kick {wanted}, last seen {record.seen(vector)}")

    def kick_one_by_one(self, peer, record):
        """The guest is idle before each: the number can only come back by an interrupt of this kick."""
        for vector in range(VECTORS):
            before = record.interrupts(vector)
            for _ in range(5):
                self.kick(peer, record, vector)
                self.wait_seen(record, vector)
            self.assertGreaterEqual(record.interrupts(vector), before + 5)
        return [5] * VECTORS

    def kick_in_bursts(self, peer, record):
        """The last kick of a burst may coalesce with others, but is never lost."""
        kicks = [0] * VECTORS
        for _ in range(5):
            vector = self.random.randrange(VECTORS)
            count = self.random.randint(2, 30)
            for _ in range(count):
                self.kick(peer, record, vector)
                if self.random.random() < 0.3:
                    time.sleep(self.random.random() / 1000)
            kicks[vector] += count
            self.wait_seen(record, vector)
        return kicks

    def kick_with_the_tool(self, record):
        self.sequence += 1
        record.send(0, self.sequence)
        self.service.tool("ring", "mailbox", VM_SLOT, 0)
        self.wait_seen(record, 0)
        return 1


if __name__ == "__main__":
    e2e_case.main()
