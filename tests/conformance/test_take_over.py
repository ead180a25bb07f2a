# SPDX-License-Identifier: Apache-2.0
"""A service whose process is killed, upgraded or retired: its clients notice nothing."""

import errno
import os
import signal
import struct
import threading
import time

import ivshmem_peer
from ivshmem_peer import Closed, Peer, connect, receive_message, select_readable
from kept_service import KeptCase, keepers_of, picture_of
from service import NOBODY, is_socket, main, need_root, seeded_random, share_config, wait_until

PATTERN = b"these bytes outlive the process"


class Killed(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(4, 2))

    def test_peers_memory_doorbells_and_kicks_survive(self):
        first = self.start(self.config)
        one, two = self.join(), self.join()
        one.map()[100:100 + len(PATTERN)] = PATTERN
        self.kill(first)
        one.kick(1, 1)
        self.assertEqual(two.wait(1), 1, "peers ring one another while no service is there")
        two.kick(3, 0, 5)
        second = self.start(self.config)
        self.assert_stays(one)
        self.assert_stays(two)
        three = self.join()
        self.assertEqual(three.id, 2)
        self.assertEqual(picture_of(three), picture_of(one))
        self.assertEqual(three.map()[100:100 + len(PATTERN)], PATTERN)
        four = self.join()
        self.assertEqual((four.id, four.wait(0)), (3, 5), "the kick waited for the slot's holder")
        for receiver in (one, two, three):
            four.kick(receiver.id, 1)
            self.assertEqual(receiver.wait(1), 1)
        peers = self.control().stat("mailbox")["peers"]
        self.assertEqual([(peer["slot"], peer["state"], peer["pid"]) for peer in peers],
                         [(slot, "joined", os.getpid()) for slot in range(4)])
        for peer in (one, two, three, four):
            peer.close()
        self.finish_all(second)

    def test_five_times_in_a_row_the_slots_stay(self):
        service = self.start(self.config)
        peers = [self.join() for _ in range(3)]
        picture = picture_of(peers[0])
        for generation in range(2, 7):
            peers.pop(0).close()
            service = self.follow(service, self.config)
            peers.append(self.join())
            self.assertEqual(sorted(peer.id for peer in peers), [0, 1, 2], "the slot of who left is given again")
            self.assertEqual(picture_of(peers[-1]), picture)
            self.assertEqual(self.control().call("share.list")["service"]["generation"], generation)
        self.finish_all(service)

    def test_who_leaves_while_no_service_is_there_is_missed_by_the_next(self):
        first = self.start(self.config)
        watcher, one = self.session(self.control(), slot=3), self.join()
        self.assertEqual(watcher.present(), [0, 3])
        tenancies = [watcher.tenancy(slot) for slot in range(4)]
        self.kill(first)
        one.kick(0, 0)
        one.close()
        while watcher.hears_bell(0):
            pass
        second = self.start(self.config)
        self.assertTrue(wait_until(lambda: watcher.present() == [3], 10), "the departure is shown")
        self.assertTrue(watcher.hears_bell(), "and rung")
        self.assertEqual(watcher.tenancy(3), tenancies[3], "who stayed has stayed")
        heir = self.join()
        self.assertEqual((heir.id, heir.pending(0)), (0, 0), "kicks for the one who left are stale")
        self.assertEqual(watcher.tenancy(0), tenancies[0] + 2)
        self.finish_all(second)

    def test_sessions_keep_their_pages_their_bell_and_their_counters(self):
        service = self.start(self.config)
        session, other = self.session(self.control(), slot=2), self.session(self.control(), slot=1)
        os.pwrite(session.senders[0], struct.pack("<I", 7), 4)
        service = self.follow(service, self.config)
        while session.hears_bell(0):
            pass
        newcomer = self.join()
        self.assertTrue(session.hears_bell(), "the bell of before is rung by the next instance")
        self.assertEqual(session.present(), [0, 1, 2])
        again = self.session(self.control(), slot=3)
        page_of_two = again.senders[1 + 2]
        self.assertEqual(os.pread(page_of_two, 4, 4), struct.pack("<I", 7))
        self.assertEqual(os.fstat(page_of_two).st_ino, os.fstat(session.senders[0]).st_ino)
        session.peer.kick(1, 1)
        self.assertEqual(other.peer.wait(1), 1)
        newcomer.kick(2, 0)
        self.assertEqual(session.peer.wait(0), 1)
        self.finish_all(service)

    def test_clients_that_wait_to_be_accepted_are_served_by_the_next(self):
        first = self.start(self.config)
        first.process.send_signal(signal.SIGSTOP)
        waiting = [connect(self.path("sock")) for _ in range(3)]
        first.kill()
        second = self.start(self.config)
        for sock in waiting:
            with Peer(sock=sock, slots=4, vectors=2) as peer:
                self.assertIn(peer.id, range(4))
        self.finish_all(second)

    def test_a_handshake_that_a_kill_interrupts_goes_on_or_is_closed(self):
        chance = seeded_random("interrupted handshakes")
        config = self.write_config(share_config(16, 32), "big.toml")
        service = self.start(config)
        witness = self.join(slots=16, vectors=32)
        witness.map()[:len(PATTERN)] = PATTERN
        outcomes = {"went on": 0, "closed": 0}
        for _ in range(12):
            peers = [Peer(self.path("sock"), slots=16, vectors=32, handshake=False, record=False) for _ in range(8)]
            for peer in peers:
                self.addCleanup(peer.close)
                for _ in range(chance.randrange(8)):
                    peer.next_message()
            service.kill()
            service = self.start(config)
            for peer in peers:
                try:
                    peer.handshake()
                    outcomes["went on"] += 1
                except Closed:
                    outcomes["closed"] += 1
            ids = [peer.id for peer in peers if peer.decoder.complete]
            self.assertEqual(len(ids), len(set(ids)), "each has a slot of its own")
            for peer in peers:
                peer.close()
            self.assertTrue(wait_until(lambda: len(self.control().stat("mailbox")["peers"]) == 1, 10))
        print(f"{outcomes} ", end="", flush=True)
        self.assertGreater(outcomes["went on"], 0, "only who was being sent to is closed")
        self.assert_stays(witness)
        self.assertEqual(witness.map()[:len(PATTERN)], PATTERN)
        self.finish_all(service)

    def test_without_a_keeper_the_clients_end_with_it(self):
        service = self.launch(["--config", self.config]).wait_ready()
        peer = self.join()
        self.kill(service)
        self.assertEqual(peer.read_until_closed(), [])
        self.assertEqual(keepers_of(self.directory), [])


class Many(KeptCase):
    def test_1000_slots_of_4_vectors_are_taken_over(self):
        self.need_descriptors(14_000)
        text = share_config(1000, 4, limits="connections_per_uid = 1100")
        text += ('\n[[vm]]\nname = "crowd"\nrules = [{ allow = "mailbox", may = ["attach"] }]\n'
                 f'[[vm.attach]]\nshare = "mailbox"\nslots = {list(range(1, 1000))}\nsocket = "@/crowd"\n')
        config = self.write_config(text)
        service = self.start(config)
        whole = self.join(slots=1000, vectors=4, timeout=60.0, record=False)
        whole.map()[:len(PATTERN)] = PATTERN
        crowd = [self.join("crowd", slots=None, vectors=4, timeout=60.0, record=False) for _ in range(999)]
        self.assertEqual(sorted(peer.id for peer in crowd), list(range(1, 1000)))
        keeper = self.keeper()
        self.kill(service)
        began = time.monotonic()
        service = self.start(config)
        took = time.monotonic() - began
        print(f"{took:.2f} s ", end="", flush=True)
        self.assertLess(took, 15.0)
        self.assertEqual(len(service.lines("1 shares and 1000 of 1000 clients are taken over")), 1, service.log())
        self.assertEqual(self.keeper(), keeper)
        for peer in crowd:
            whole.kick(peer.id, peer.id % 4)
        for peer in crowd:
            self.assertEqual(peer.wait(peer.id % 4), 1)
            self.assertTrue(peer.is_quiet(0))
        self.assertEqual(whole.map()[:len(PATTERN)], PATTERN)
        gone = crowd.pop(500)
        gone.close()
        with Peer(self.path("crowd"), slots=None, vectors=4, timeout=20.0) as heir:
            self.assertEqual(heir.id, gone.id)
        self.finish_all(service)


@need_root
class Plain(KeptCase):
    """As a plain user, for whom the kernel counts descriptors in flight."""

    NOFILE = 1024

    def start_plain(self, config, *words):
        return self.start(config, *words, uid=NOBODY, nofile=self.NOFILE, binary=self.public_program())

    def test_a_service_of_a_plain_user_is_taken_over_and_upgraded(self):
        os.chown(self.directory, NOBODY, NOBODY)
        config = self.write_config(share_config(14, 32, limits="handshake_timeout_ms = 20000"))
        service = self.start_plain(config)
        peers = [self.join(slots=14, vectors=32, timeout=30.0, record=False) for _ in range(6)]
        peers[0].map()[:len(PATTERN)] = PATTERN
        # Those who do not read keep descriptors in flight.
        mute = [connect(self.path("sock")) for _ in range(6)]
        self.addCleanup(lambda: [sock.close() for sock in mute])
        self.kill(service)
        service = self.start_plain(config)
        old, service = service, self.start_plain(config, "--upgrade")
        self.assertEqual(old.wait_exit(), 0, old.log())
        for peer in peers:
            self.assert_stays(peer, 0.02)
        with Peer(self.path("sock"), slots=14, vectors=32, timeout=30.0) as peer:
            # A mute one may be in the midst of a message at the kill: it is closed then, and its slot free.
            self.assertIn(peer.id, range(6, 13))
            self.assertEqual(peer.map()[:len(PATTERN)], PATTERN)
            for other in peers:
                peer.kick(other.id, 31)
                self.assertEqual(other.wait(31), 1)
        self.finish_all(service)


class Upgraded(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(8, 8, limits="connections_per_uid = 1000"))

    def upgrade(self, old):
        service = self.start(self.config, "--upgrade")
        self.assertEqual(old.wait_exit(), 0, old.log())
        return service

    def test_newcomers_that_come_all_the_time_are_all_served(self):
        service = self.start(self.config)
        resident = self.join(slots=8, vectors=8)
        resident.map()[:len(PATTERN)] = PATTERN
        stop, joins, problems = threading.Event(), [], []

        def come_and_go():
            try:
                while not stop.is_set():
                    with Peer(self.path("sock"), slots=8, vectors=8, timeout=20.0, record=False) as peer:
                        joins.append(peer.id)
            except Exception as problem:  # whatever it is, the test's thread has to know
                problems.append(repr(problem))

        threads = [threading.Thread(target=come_and_go) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(6):
                count = len(joins)
                self.assertTrue(wait_until(lambda: len(joins) > count + 3 or problems, 20))
                service = self.upgrade(service)
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        self.assertEqual(problems, [])
        self.assert_stays(resident)
        self.assertEqual(resident.map()[:len(PATTERN)], PATTERN)
        self.assertEqual(self.control().call("share.list")["service"]["generation"], 7)
        self.finish_all(service)

    def test_two_at_once_leave_one_service_and_every_client(self):
        service = self.start(self.config)
        peer = self.join(slots=8, vectors=8)
        for _ in range(3):
            self.settle()
            both = [self.launch(["--config", self.config, "--upgrade", "--keeper"]) for _ in range(2)]
            wait_until(lambda: sum(one.is_alive() for one in both) < 2, 20)
            self.assertTrue(wait_until(lambda: any(one.is_alive() and one.is_ready() for one in both), 20),
                            [one.log() for one in both])
            self.assertEqual(service.wait_exit(), 0, service.log())
            self.assertTrue(wait_until(lambda: sum(one.is_alive() for one in both) == 1, 20))
            service, = (one for one in both if one.is_alive())
            self.assert_stays(peer)
        self.finish_all(service)

    def test_where_nothing_runs_it_is_a_start(self):
        self.finish_all(self.start(self.config, "--upgrade"))

    def test_a_service_without_a_keeper_is_not_upgraded_and_goes_on(self):
        old = self.serve(["--config", self.config])
        peer = self.join(slots=8, vectors=8)
        new = self.launch(["--config", self.config, "--upgrade", "--keeper"])
        self.assertEqual(new.wait_exit(), 1, new.log())
        self.assertRegex(new.log(), "no keeper")
        self.assertTrue(old.is_alive())
        self.assert_stays(peer)

    def test_a_second_instance_that_does_not_ask_is_refused_and_takes_nothing(self):
        service = self.start(self.config)
        peer = self.join(slots=8, vectors=8)
        second = self.launch(["--config", self.config, "--keeper"])
        self.assertEqual(second.wait_exit(20), 1, second.log())
        self.assertIn(str(service.pid), second.log(), "it names who is served")
        self.assert_stays(peer)
        service = self.follow(service, self.config)
        self.assert_stays(peer)
        self.finish_all(service)


class Retired(KeptCase):
    def test_everything_stays_with_the_keeper_until_the_next(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one, two = self.join(), self.join()
        done = self.run_tool("share", "retire", "--control", self.path("control"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(service.wait_exit(), 0, service.log())
        self.assertTrue(is_socket(self.path("sock")))
        self.assert_stays(one)
        one.kick(1, 1)
        self.assertEqual(two.wait(1), 1)
        early = connect(self.path("sock"))
        service = self.start(config)
        self.assert_stays(two)
        with Peer(sock=early, slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 2, "who came in between is served")
        self.finish_all(service)

    def test_without_a_keeper_it_is_refused(self):
        service = self.serve_config(share_config(4, 2))
        peer = self.join()
        done = self.run_tool("share", "retire", "--control", self.path("control"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("keeper", done.stderr)
        self.assertTrue(service.is_alive())
        self.assert_stays(peer)

    @need_root
    def test_another_user_may_not(self):
        self.open_to_everybody()
        config = self.write_config(share_config(4, 2).replace("@/control\"", "@/control\"\nmode = \"0666\""))
        service = self.start(config)
        done = self.run_tool("share", "retire", "--control", self.path("control"), uid=NOBODY,
                             binary=self.public_program())
        self.assertEqual(done.returncode, 1)
        self.assertTrue(service.is_alive())
        self.finish_all(service)


class Classic(KeptCase):
    def test_ids_go_on_and_departures_are_told(self):
        config = self.write_config(share_config(8, 2, ids="classic"))
        service = self.start(config)

        def join():
            return self.join(ids="classic", slots=8)

        one, two, three = join(), join(), join()
        for peer, count in ((one, 4), (two, 2)):
            for _ in range(count):
                peer.next_message()
        self.kill(service)
        two.close()
        one.kick(2, 1)
        self.assertEqual(three.wait(1), 1)
        service = self.start(config)
        for peer in (one, three):
            message = peer.next_message()
            self.assertEqual((message.value, message.fd), (1, None), "two has left")
        four = join()
        self.assertEqual(four.id, 3, "ids are never given again")
        for peer in (one, three):
            for _ in range(2):
                self.assertEqual(peer.next_message().value, 3)
            peer.kick(3, 0)
        self.assertEqual(wait_until(lambda: four.pending(0) == 2), True)
        four.kick(0, 1)
        self.assertEqual(one.wait(1), 1)
        four.close()
        service = self.follow(service, config)
        for peer in (one, three):
            self.assertEqual((peer.next_message().value, peer.decoder.gone), (3, [1, 3]))
            self.assert_stays(peer)
        self.finish_all(service)


    def test_whoever_comes_and_goes_each_peer_knows_exactly_who_is_there(self):
        chance = seeded_random("classic ids and kills")
        config = self.write_config(share_config(8, 1, ids="classic"))
        service = self.start(config)
        peers, count_closed = [], 0
        for _ in range(25):
            for _ in range(chance.randrange(4)):
                if len(peers) < 7 and chance.random() < 0.6:
                    peers.append(self.join(ids="classic", slots=8, vectors=1, record=False))
                elif peers:
                    peers.pop(chance.randrange(len(peers))).close()
            has_read = chance.random() < 0.5
            if has_read:
                self.settle()
                self.read_what_came(peers)
                self.kill(service)
            else:
                service.kill()
            for _ in range(chance.randrange(3)):
                if peers:
                    peers.pop(chance.randrange(len(peers))).close()
            service = self.start(config)
            peers.append(self.join(ids="classic", slots=8, vectors=1, record=False))
            self.settle()
            closed = self.read_what_came(peers)
            self.assertFalse(has_read and closed, f"{len(closed)} had been told all, and were closed")
            count_closed += len(closed)
            for peer in closed:
                peers.remove(peer)
            ids = {peer.id for peer in peers}
            for peer in peers:
                self.assertTrue(wait_until(lambda: self.read_what_came([peer]) or self.known(peer) == ids, 10),
                                f"{peer.id} knows {self.known(peer)}, there are {ids}")
        print(f"{count_closed} were closed ", end="", flush=True)
        for peer in peers:
            peer.close()
        self.finish_all(service)

    def known(self, peer):
        return set(peer.eventfds) - set(peer.decoder.gone)

    def read_what_came(self, peers):
        """The strict decoder of each looks at it; those that were closed."""
        closed = []
        for peer in peers:
            try:
                while select_readable(peer.sock, 0):
                    peer.next_message()
            except Closed:
                closed.append(peer)
        return closed


class Dynamic(KeptCase):
    def test_a_share_that_a_client_made_lives_until_its_last_peer(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.session(self.control(), "made", create=True, size=8192, vectors=3, slots=5)
        self.assertTrue(one.reply["created"])
        one.peer.map()[:len(PATTERN)] = PATTERN
        service = self.follow(service, config)
        self.assert_stays(one.peer)
        two = self.session(self.control(), "made", create=True, size=4096)
        self.assertEqual((two.reply["created"], two.reply["size"], two.vectors, two.slots), (False, 8192, 3, 5))
        self.assertEqual(two.peer.map()[:len(PATTERN)], PATTERN)
        one.peer.kick(two.slot, 2)
        self.assertEqual(two.peer.wait(2), 1)
        one.close()
        self.kill(service)
        two.close()
        service = self.start(config)

        def names():
            return [share["name"] for share in self.control().call("share.list")["shares"]]

        self.assertTrue(wait_until(lambda: names() == ["mailbox"], 10), names())
        again = self.session(self.control(), "made", create=True, size=4096)
        self.assertTrue(again.reply["created"])
        self.assertEqual(bytes(again.peer.map()[:4096]), bytes(4096))
        again.close()
        self.finish_all(service)

    def test_a_share_that_the_file_has_no_more_goes_with_its_last_peer(self):
        both = share_config(4, 2) + ('\n[[share]]\nname = "extra"\nsize = "4K"\nvectors = 1\nslots = 2\n'
                                     'socket = "@/extra"\n')
        service = self.start(self.write_config(both))
        extra = self.join("extra", slots=2, vectors=1)
        self.kill(service)
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        self.assert_stays(extra)
        self.assertFalse(os.path.lexists(self.path("extra")), "its door is closed")
        stages = {share["name"]: share["stage"] for share in self.control().call("share.list")["shares"]}
        self.assertEqual(stages, {"mailbox": "ready", "extra": "retired"})
        service = self.follow(service, config)
        self.assert_stays(extra)
        extra.close()
        self.assertTrue(wait_until(lambda: len(self.control().call("share.list")["shares"]) == 1, 10))
        self.finish_all(service)

    def test_memory_that_nobody_holds_is_cleared_before_the_next_comes(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        one.map()[:len(PATTERN)] = PATTERN
        self.kill(service)
        one.close()
        service = self.start(config)
        self.assertEqual(bytes(self.join().map()[:len(PATTERN)]), bytes(len(PATTERN)))
        self.finish_all(service)


class Clearing(KeptCase):
    SIZE = 64 << 20

    def test_a_kill_in_the_midst_of_clearing_shows_nobody_what_was_there(self):
        chance = seeded_random("kills while memory is cleared")
        config = self.write_config(share_config(4, 2, size="64M"))
        service = self.start(config)
        places = [chance.randrange(self.SIZE - 100) for _ in range(50)]
        for _ in range(6):
            with Peer(self.path("sock"), slots=4, vectors=2, timeout=30.0) as peer:
                for at in places:
                    self.assertEqual(peer.map()[at:at + len(PATTERN)], bytes(len(PATTERN)))
                for at in places:
                    peer.map()[at:at + len(PATTERN)] = PATTERN
            time.sleep(chance.random() / 30)
            service.kill()
            service = self.start(config)
        self.finish_all(service)


class Counted(KeptCase):
    def test_connections_of_before_count_against_the_limit_of_their_user(self):
        config = self.write_config(share_config(8, 1, limits="connections_per_uid = 3"))
        service = self.start(config)
        peers = [self.join(slots=8, vectors=1) for _ in range(3)]
        service = self.follow(service, config)
        sock = connect(self.path("sock"))
        self.addCleanup(sock.close)
        self.assertEqual(ivshmem_peer.read_refusal(sock), errno.EUSERS)
        peers.pop().close()

        def can_come():
            try:
                Peer(self.path("sock"), slots=8, vectors=1).close()
                return True
            except ivshmem_peer.Refused:
                return False

        self.assertTrue(wait_until(can_come, 10))
        self.finish_all(service)


class End(KeptCase):
    def test_sigterm_ends_service_clients_and_keeper(self):
        service = self.start(self.write_config(share_config(4, 2)))
        one, two = self.join(), self.session(self.control())
        self.finish_all(service)
        self.assertEqual(one.read_until_closed(), [])
        self.assertEqual(two.peer.read_until_closed(), [])

    def test_sigterm_after_a_take_over_is_the_same(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        service = self.follow(service, config)
        self.finish_all(service)
        self.assertEqual(one.read_until_closed(), [])

    def test_descriptors_of_service_and_keeper_are_as_many_as_before(self):
        config = self.write_config(share_config(4, 2))
        service = self.follow(self.start(config), config)
        keeper = self.keeper()

        def counts():
            return service.descriptor_count(), len(os.listdir(f"/proc/{keeper}/fd"))

        before = counts()
        for _ in range(3):
            for _ in range(20):
                peers = [self.join(record=False), self.session(self.control())]
                for peer in peers:
                    peer.close()
            half = ivshmem_peer.connect(self.path("sock"))
            self.assertTrue(select_readable(half, 5))
            receive_message(half)
            service = self.follow(service, config)
            half.close()
            self.assertTrue(wait_until(lambda: counts() == before, 10), f"{counts()}, before {before}")
        self.finish_all(service)


if __name__ == "__main__":
    main()
