# SPDX-License-Identifier: Apache-2.0
"""The ivshmem protocol with classic ids: presence by notices."""

import struct
import time

import ivshmem_peer
from ivshmem_peer import Closed, Peer, Refused
from service import ConformanceCase, main


def packed(*values):
    return b"".join(struct.pack("<q", value) for value in values)


class Classic(ConformanceCase):

    def classic(self, slots=8, vectors=2, **options):
        return self.serve_quick(slots=slots, vectors=vectors, extra=["--ids", "classic"],
                                **options)

    def join(self, vectors=2, **options):
        peer = Peer(self.path("sock"), vectors=vectors, ids="classic", **options)
        self.addCleanup(peer.close)
        return peer

    def raw_since(self, peer, mark):
        return b"".join(message.raw for message in peer.messages[mark:])

    def fds_since(self, peer, mark):
        return [message.fd is not None for message in peer.messages[mark:]]

    def test_a_newcomer_hears_of_the_present_then_of_itself(self):
        self.classic(vectors=2)
        first = self.join()
        self.assertEqual(self.raw_since(first, 0), packed(0, 0, -1, 0, 0))
        second = self.join()
        self.assertEqual(self.raw_since(second, 0), packed(0, 1, -1, 0, 0, 1, 1))
        third = self.join()
        self.assertEqual(self.raw_since(third, 0), packed(0, 2, -1, 0, 0, 1, 1, 2, 2))
        self.assertEqual(self.fds_since(third, 0), [False, False] + [True] * 7)

    def test_arrivals_and_departures_are_announced_byte_for_byte(self):
        self.classic(vectors=3)
        watcher = self.join(vectors=3)
        mark = len(watcher.messages)
        guest = self.join(vectors=3)
        for _ in range(3):
            watcher.next_message()
        self.assertEqual(self.raw_since(watcher, mark), packed(1, 1, 1))
        self.assertEqual(self.fds_since(watcher, mark), [True] * 3)
        own = [message.identity for message in guest.messages[-3:]]
        self.assertEqual([message.identity for message in watcher.messages[mark:]], own)
        mark = len(watcher.messages)
        guest.close()
        watcher.next_message()
        self.assertEqual(self.raw_since(watcher, mark), packed(1))
        self.assertEqual(self.fds_since(watcher, mark), [False])
        self.assertTrue(watcher.is_quiet(0.2), "one departure is one message")

    def test_ids_follow_the_order_of_arrival_and_are_never_reused(self):
        self.classic(slots=4)
        seen = []
        keeper = self.join()
        seen.append(keeper.id)
        for _ in range(10):
            with Peer(self.path("sock"), vectors=2, ids="classic") as peer:
                seen.append(peer.id)
        self.assertEqual(seen, list(range(11)))
        keeper.close()
        self.assertEqual(self.join().id, 11, "also when nobody is left")

    def test_kicks_reach_in_both_directions(self):
        self.classic()
        first = self.join()
        second = self.join()
        first.next_message()
        first.next_message()
        first.kick(1, 1)
        self.assertEqual(second.wait(1), 1)
        second.kick(0, 0)
        self.assertEqual(first.wait(0), 1)
        self.assertIsNone(first.wait(1, 0.05))

    def test_every_arrival_has_eventfds_of_its_own(self):
        self.classic()
        keeper = self.join()
        identities = []
        for _ in range(3):
            with Peer(self.path("sock"), vectors=2, ids="classic") as peer:
                identities += [ivshmem_peer.identity_of(fd) for fd in peer.eventfds[peer.id]]
                while len(keeper.eventfds.get(peer.id, [])) < 2:
                    keeper.next_message()
        self.assertEqual(len(set(identities)), 6)

    def test_the_memory_is_the_same_for_all(self):
        self.classic()
        first, second = self.join(), self.join()
        self.assertEqual(ivshmem_peer.identity_of(first.memory),
                         ivshmem_peer.identity_of(second.memory))
        first.map()[0] = 42
        self.assertEqual(second.map()[0], 42)

    def test_a_slow_reader_gets_the_eventfds_of_those_who_have_left_meanwhile(self):
        self.classic(slots=4, vectors=4)
        slow = self.join(vectors=4)
        mark = len(slow.messages)
        expected = []
        for _ in range(40):
            with Peer(self.path("sock"), vectors=4, ids="classic") as visitor:
                own = [message.identity for message in visitor.messages[-4:]]
                expected += [(visitor.id, identity) for identity in own] + [(visitor.id, None)]
        while len(slow.messages) - mark < len(expected):
            slow.next_message()
        heard = [(message.value, message.identity) for message in slow.messages[mark:]]
        self.assertEqual(heard, expected)

    def test_a_client_that_does_not_read_is_cut_and_the_others_get_everything(self):
        self.need_descriptors(10_000)
        service = self.classic(slots=8, vectors=32)
        good = self.join(vectors=32, record=False, keep_others=False, timeout=15.0)
        mute = self.join(vectors=32, record=False, keep_others=False)
        self._read_all(good)
        before = service.resident_bytes()
        visitors, deadline = [], time.monotonic() + 25
        # The bound on the mute one's queue is the service's own. That it exists shows when
        # the departure of the mute one is announced.
        while mute.id not in good.decoder.gone and time.monotonic() < deadline:
            with Peer(self.path("sock"), vectors=32, ids="classic", record=False) as visitor:
                visitors.append(visitor.id)
            self._read_all(good)
        self.assertIn(mute.id, good.decoder.gone,
                      f"not cut after {len(visitors)} arrivals of 32 vectors")
        self.assertLess(service.resident_bytes() - before, 32 << 20)
        print(f"cut after {len(visitors)} arrivals of 32 vectors ", end="", flush=True)
        while good.decoder.gone[-1] != visitors[-1]:
            good.next_message()
        last = self.join(vectors=32, record=False, keep_others=False)
        self.assertNotIn(mute.id, last.eventfds)
        while len(good.eventfds.get(last.id, [])) < 32:
            good.next_message()
        heard = [peer for peer in good.decoder.order if peer not in (good.id, mute.id, last.id)]
        self.assertEqual(heard, visitors, "every arrival, once, in order")
        gone = [peer for peer in good.decoder.gone if peer != mute.id]
        self.assertEqual(gone, visitors, "every departure, once, in order")
        # What the mute one can still read is a correct beginning of the stream, then the end.
        with self.assertRaises(Closed):
            while True:
                mute.next_message(5)

    def test_a_client_that_does_not_read_does_not_use_up_the_descriptors_of_the_service(self):
        """What waits for a mute client keeps the eventfds of those who have left alive."""
        service = self.classic(slots=8, vectors=32, nofile=512)
        mute = self.join(vectors=32, record=False, keep_others=False)
        for number in range(100):
            try:
                with Peer(self.path("sock"), vectors=32, ids="classic", record=False) as visitor:
                    self.assertEqual(visitor.id, number + 1)
            except Refused as refusal:
                self.fail(f"visitor {number}: {refusal}, the service holds "
                          f"{service.descriptor_count()} descriptors")
        with self.assertRaises(Closed):
            while True:
                mute.next_message(5)

    def _read_all(self, peer):
        while ivshmem_peer.select_readable(peer.sock, 0):
            peer.next_message()


if __name__ == "__main__":
    main()
