# SPDX-License-Identifier: Apache-2.0
"""Who rang: plain ivshmem clients, as QEMU is one, and receivers that hear each of them apart."""

import os

from control_peer import ControlPeer
from ivshmem_peer import identity_of, receive_message, select_readable
from kept_service import KeptCase, Session
from service import main, share_config, wait_until

SLOTS, VECTORS = 16, 2
# docs/protocols/ivshmem.md, "Senders apart".
CALLER, ALL_OVER = 1 << 32, 2 << 32


class Hearer(Session):
    """A session that is told the doorbells of each sender."""

    def __init__(self, control):
        super().__init__(control, "mailbox", hears_senders=True)
        self.callers = {}
        self.values = []

    def read(self, seconds=5.0, until=lambda self: False):
        """Reads what comes until something is so, or nothing comes any more."""
        while not until(self) and select_readable(self.stream, seconds):
            message = receive_message(self.stream, True)
            self.values.append(message.value)
            if message.value == ALL_OVER:
                self.forget(list(self.callers))
            elif message.fd is None:
                self.forget([message.value - CALLER])
            else:
                self.callers.setdefault(message.value - CALLER, []).append(message.fd)
        return self

    def learn(self, peer):
        """Until it knows all doorbells of a peer."""
        self.read(until=lambda self: len(self.callers.get(peer.id, [])) == VECTORS)
        return self

    def forget(self, ids):
        for caller in ids:
            for fd in self.callers.pop(caller, []):
                os.close(fd)

    def heard(self):
        """Of whom there are kicks, with their vectors; they are taken."""
        found = [(caller, vector) for caller, bells in self.callers.items() for vector, fd in enumerate(bells)
                 if select_readable(fd, 0)]
        for caller, vector in found:
            os.read(self.callers[caller][vector], 8)
        return sorted(found)

    def pictures(self):
        return {caller: [identity_of(fd) for fd in bells] for caller, bells in self.callers.items()}

    def close(self):
        self.forget(list(self.callers))
        super().close()


class SendersCase(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(SLOTS, VECTORS))
        self.service = self.start(self.config)

    def plain(self):
        return self.join(slots=SLOTS, vectors=VECTORS)

    def hearer(self):
        hearer = Hearer(self.control())
        self.addCleanup(hearer.close)
        return hearer.join()

    def come_and_go(self, count):
        """So many plain clients, one after the other."""
        for _ in range(count):
            peer = self.plain()
            peer.close()
            self.wait_gone(peer.id)

    def wait_gone(self, slot):
        with ControlPeer(self.path("control")) as control:
            self.assertTrue(wait_until(lambda: slot not in [
                peer["slot"] for peer in control.stat("mailbox")["peers"]]))

    def end(self, *clients):
        for client in clients:
            client.close()
        self.finish_all(self.service)


class Kicks(SendersCase):
    def test_a_kick_comes_by_its_sender_s_own_doorbell_whoever_was_first(self):
        early, other = self.plain(), self.plain()
        hearer = self.hearer()
        late = self.plain()
        hearer.learn(early).learn(other).learn(late)
        for peer in (early, other, late):
            for vector in range(VECTORS):
                peer.kick(hearer.slot, vector)
                self.assertEqual(hearer.heard(), [(peer.id, vector)])
                self.assertEqual(hearer.peer.pending(vector), 0, "its slot's own doorbell is another one")
        self.end(early, other, late, hearer)

    def test_plain_clients_listen_on_their_slot_s_doorbells_for_all(self):
        one, two, hearer = self.plain(), self.plain(), self.hearer()
        three = self.plain()
        self.assertEqual({identity_of(peer.eventfds[two.id][0]) for peer in (one, three, hearer.peer)},
                         {identity_of(two.eventfds[two.id][0])})
        one.kick(three.id, 1)
        self.assertEqual(three.wait(1), 1)
        self.assert_stays(one)
        self.assert_stays(two)
        self.end(one, two, three, hearer)

    def test_who_did_not_ask_hears_of_nobody(self):
        session = self.session(self.control())
        peer = self.plain()
        self.assert_stays(session.peer)
        peer.kick(session.slot, 0)
        self.assertEqual(session.peer.wait(0), 1)
        self.end(session, peer)

    def test_who_counts_in_its_page_has_no_doorbells_of_its_own(self):
        hearer, session = self.hearer(), self.session(self.control())
        self.assertEqual(identity_of(session.peer.eventfds[hearer.slot][0]),
                         identity_of(hearer.peer.eventfds[hearer.slot][0]))
        by_kernel = self.session(self.control(), counts_rings=False)
        hearer.learn(by_kernel.peer)
        by_kernel.peer.kick(hearer.slot, 1)
        self.assertEqual(hearer.heard(), [(by_kernel.slot, 1)])
        self.assertEqual(set(hearer.callers), {by_kernel.slot})
        self.end(hearer, session, by_kernel)


class Slots(SendersCase):
    def test_the_next_sender_in_a_slot_has_other_doorbells(self):
        hearer, first = self.hearer(), self.plain()
        hearer.learn(first)
        before, slot = hearer.pictures(), first.id
        first.kick(hearer.slot, 0)
        first.close()
        self.wait_gone(slot)
        second = self.plain()
        self.assertEqual(second.id, slot)
        hearer.read(until=lambda h: h.values[-1] == CALLER + slot and h.pictures() != before
                    and len(h.callers.get(slot, [])) == VECTORS)
        self.assertNotEqual(hearer.pictures()[slot], before[slot])
        self.assertEqual(hearer.heard(), [], "what the former rang is not the next one's")
        second.kick(hearer.slot, 1)
        self.assertEqual(hearer.heard(), [(slot, 1)])
        self.end(hearer, second)

    def test_the_next_receiver_in_a_slot_hears_nothing_of_what_was_for_the_former(self):
        peer, first = self.plain(), self.hearer()
        slot = first.slot
        peer.kick(slot, 0)
        first.close()
        self.wait_gone(slot)
        self.assertEqual(peer.pending(0, slot), 0)
        peer.kick(slot, 1)
        second = self.hearer()
        self.assertEqual(second.slot, slot)
        second.learn(peer)
        self.assertEqual(second.heard(), [(peer.id, 1)], "it was rung for whoever comes next")
        self.end(peer, second)

    def test_a_plain_client_hears_everybody_in_a_slot_that_was_set_aside(self):
        peers = [self.plain() for _ in range(SLOTS)]
        for peer in peers[:-1]:
            peer.kick(peers[-1].id, 1)
            self.assertGreaterEqual(peers[-1].wait(1), 1)
        for peer in peers[1:]:
            peer.kick(peers[0].id, 0)
            self.assertEqual(peers[0].wait(0), 1)
        self.end(*peers)


class SlowReader(SendersCase):
    def test_senders_that_come_and_go_leave_no_descriptors_behind(self):
        hearer = self.hearer()
        self.come_and_go(60)
        before = self.service.descriptor_count()
        self.come_and_go(60)
        self.assertTrue(wait_until(lambda: self.service.descriptor_count() <= before + 2 * VECTORS),
                        f"{before} and then {self.service.descriptor_count()} descriptors")
        last = self.plain()
        own = [identity_of(fd) for fd in last.eventfds[hearer.slot]]
        hearer.read(until=lambda h: h.pictures().get(last.id) == own)
        self.assertEqual(set(hearer.callers), {last.id})
        hearer.heard()
        last.kick(hearer.slot, 0)
        self.assertEqual(hearer.heard(), [(last.id, 0)])
        self.end(hearer, last)

    def test_a_kick_of_a_sender_that_it_has_not_heard_of_comes_without_a_name(self):
        hearer = self.hearer()
        self.come_and_go(60)
        peer = self.plain()
        peer.kick(hearer.slot, 1)
        peer.close()
        self.wait_gone(peer.id)
        self.assertEqual(hearer.peer.wait(1), 1)
        self.end(hearer)


VM = """
[[vm]]
name = "vm"
socket = "@/vm"
rules = [ {rules} ]
limits = {{ vectors = {vectors} }}
"""


class Rights(KeptCase):
    def serve_vm(self, rules='{ allow = "*" }', vectors=64):
        self.config = self.write_config(share_config(SLOTS, VECTORS) + VM.format(rules=rules, vectors=vectors))
        return self.config

    def test_who_has_its_right_again_hears_who_came_and_went_meanwhile(self):
        service = self.start(self.serve_vm())
        hearer, early = Hearer(self.control("vm")), self.join(slots=SLOTS, vectors=VECTORS)
        self.addCleanup(hearer.close)
        hearer.join().learn(early)
        self.serve_vm('{ deny = "*" }')
        self.control().call("share.reload")
        late, slot = self.join(slots=SLOTS, vectors=VECTORS), early.id
        early.close()
        late.kick(hearer.slot, 1)
        self.assertTrue(wait_until(lambda: slot not in [
            peer["slot"] for peer in self.control().stat("mailbox")["peers"]]))
        self.serve_vm()
        self.control().call("share.reload")
        hearer.learn(late)
        self.assertEqual(set(hearer.callers), {late.id})
        self.assertEqual(hearer.heard(), [(late.id, 1)])
        hearer.close()
        late.close()
        self.finish_all(service)

    def test_doorbells_of_pairs_count_and_without_room_kicks_have_no_sender(self):
        for extra, is_told in ((0, False), (2 * VECTORS, True)):
            with self.subTest(extra=extra):
                service = self.start(self.serve_vm(vectors=SLOTS * VECTORS + extra))
                hearer = Session(self.control("vm"), "made", create=True, size=4096, slots=SLOTS, vectors=VECTORS,
                                 hears_senders=True).join()
                senders = [Session(self.control("vm"), "made", counts_rings=False).join() for _ in range(4)]
                own = identity_of(hearer.peer.eventfds[hearer.slot][1])
                apart = [identity_of(sender.peer.eventfds[hearer.slot][1]) != own for sender in senders]
                # The first takes what there is: for the receiver that is there, and a slot that is set aside.
                self.assertEqual(apart, [is_told, False, False, False])
                senders[-1].peer.kick(hearer.slot, 1)
                self.assertEqual(hearer.peer.wait(1), 1)
                for session in (hearer, *senders):
                    session.close()
                self.finish_all(service)


class TakeOver(SendersCase):
    def test_a_killed_service_loses_no_sender_and_no_kick(self):
        early, hearer = self.plain(), self.hearer()
        late = self.plain()
        hearer.learn(early).learn(late)
        before = hearer.pictures()
        self.kill(self.service)
        early.kick(hearer.slot, 0)
        late.kick(hearer.slot, 1)
        self.assertEqual(hearer.heard(), [(early.id, 0), (late.id, 1)], "nobody is needed for a kick")
        late.kick(hearer.slot, 0)
        self.service = self.start(self.config)
        hearer.read(until=lambda h: ALL_OVER in h.values).learn(early).learn(late)
        self.assertEqual(hearer.pictures(), before)
        self.assertEqual(hearer.heard(), [(late.id, 0)], "rung while nobody served")
        second, newcomer = self.hearer(), self.plain()
        for one in (hearer, second):
            for peer in (early, late, newcomer):
                one.learn(peer)
                peer.kick(one.slot, 1)
                self.assertEqual(one.heard(), [(peer.id, 1)])
        self.end(early, late, newcomer, hearer, second)

    def test_a_receiver_that_does_not_read_is_taken_over_again_and_again(self):
        hearer, peers = self.hearer(), [self.plain() for _ in range(2)]
        # Each instance tells it less than a handshake, and one ends in the midst of that: the socket is full.
        for _ in range(5):
            self.service = self.follow(self.service, self.config)
        hearer.read(until=lambda h: ALL_OVER in h.values)
        for peer in peers:
            hearer.learn(peer)
        for peer in peers:
            peer.kick(hearer.slot, 1)
            self.assertEqual(hearer.heard(), [(peer.id, 1)])
        last = self.plain()
        hearer.learn(last)
        self.assertTrue(all(value >= CALLER for value in hearer.values), "a part of the handshake came again")
        self.assertEqual(set(hearer.callers), {peer.id for peer in (*peers, last)})
        self.end(*peers, last, hearer)

    def test_bridged_slots_are_bridged_again(self):
        peers = [self.plain() for _ in range(SLOTS)]
        self.kill(self.service)
        peers[0].kick(peers[-1].id, 1)
        self.service = self.start(self.config)
        self.assertEqual(peers[-1].wait(1), 1)
        peers[0].kick(peers[-1].id, 0)
        self.assertEqual(peers[-1].wait(0), 1)
        self.end(*peers)

    def test_who_left_meanwhile_is_over(self):
        hearer, peer = self.hearer(), self.plain()
        hearer.learn(peer)
        slot = peer.id
        self.kill(self.service)
        peer.close()
        self.service = self.start(self.config)
        hearer.read(until=lambda h: ALL_OVER in h.values)
        self.assertEqual(hearer.callers, {})
        self.wait_gone(slot)
        self.end(hearer)


if __name__ == "__main__":
    main()
