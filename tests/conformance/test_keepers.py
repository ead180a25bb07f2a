# SPDX-License-Identifier: Apache-2.0
"""Who keeps a service's descriptors: a keeper that is killed, a service manager, and a journal that is damaged."""

import errno
import os
import signal
import socket
import struct
import time

from control_peer import ControlError, ControlPeer
from ivshmem_peer import Peer, connect
from kept_service import KeptCase, is_running, journal_of, keepers_of, picture_of
from service import NOBODY, is_socket, main, need_root, program, run_as, seeded_random, share_config, wait_until
from service_manager_peer import ServiceManager

PATTERN = b"these bytes outlive the process"
# Where the journal counts the records that were used once (guestmem/share/journal.cpp).
COUNT_CONNECTIONS_USED_AT = 20
MAX_JOURNAL_CONNECTIONS = 16_384


class KeeperKilled(KeptCase):
    def test_the_service_starts_another_and_a_kill_after_that_loses_nothing(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one, session = self.join(), self.session(self.control())
        one.map()[:len(PATTERN)] = PATTERN
        picture = picture_of(one)
        for _ in range(3):
            before = self.keeper()
            os.kill(before, signal.SIGKILL)
            self.assertTrue(service.wait_for_lines("holds everything", 1, 20), service.log())
            self.assertNotEqual(self.keeper(), before)
            service = self.follow(service, config)
            self.assert_stays(one)
            self.assertEqual(one.map()[:len(PATTERN)], PATTERN)
        while session.hears_bell(0):
            pass
        newcomer = self.join()
        self.assertTrue(session.hears_bell())
        self.assertEqual(picture_of(newcomer), picture)
        newcomer.kick(session.slot, 1)
        self.assertEqual(session.peer.wait(1), 1)
        newcomer.close()
        self.finish_all(service)

    def test_sigterm_to_the_keeper_is_the_same(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        before = self.keeper()
        os.kill(before, signal.SIGTERM)
        self.assertTrue(service.wait_for_lines("holds everything", 1, 20), service.log())
        self.assertTrue(wait_until(lambda: not is_running(before), 10))
        service = self.follow(service, config)
        self.assert_stays(one)
        self.finish_all(service)

    def test_both_killed_at_once_the_next_starts_anew(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        service.process.send_signal(signal.SIGSTOP)
        os.kill(self.keeper(), signal.SIGKILL)
        service.kill()
        self.assertEqual(one.read_until_closed(), [])
        service = self.start(config)
        self.assertEqual(self.join().id, 0)
        self.finish_all(service)

    def test_while_a_keeper_is_stopped_the_service_answers_and_after_it_everything_is_kept(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        control = self.control()
        keeper = self.keeper()
        os.kill(keeper, signal.SIGSTOP)
        try:
            # More than a socket's queue takes: the keeper is behind from then on.
            for _ in range(320):
                self.join(timeout=30.0).close()
            began = time.monotonic()
            for _ in range(20):
                control.call("share.list")
            two = self.join(timeout=30.0)
            self.assertLess(time.monotonic() - began, 20.0, "it waits for the keeper")
            two.kick(one.id, 0)
            self.assertEqual(one.wait(0), 1)
        finally:
            os.kill(keeper, signal.SIGCONT)
        # An upgrade is refused until the keeper has everything.
        self.assertTrue(wait_until(lambda: self.retires(), 30.0))
        self.assertEqual(service.process.wait(30), 0)
        service = self.start(config)
        self.assert_stays(one)
        self.assert_stays(two)
        two.kick(one.id, 0)
        self.assertEqual(one.wait(0), 1)
        self.finish_all(service)

    def retires(self):
        with ControlPeer(self.path("control"), timeout=30.0) as control:
            try:
                control.call("share.retire")
            except ControlError:
                return False
            return True

    def test_a_socket_whose_file_is_gone_is_made_anew(self):
        config = self.write_config(share_config(4, 2))
        service = self.start(config)
        one = self.join()
        self.kill(service)
        os.unlink(self.path("sock"))
        service = self.start(config)
        self.assertEqual(len(service.lines("its file is gone")), 1, service.log())
        self.assert_stays(one)
        self.assertEqual(self.join().id, 1)
        self.finish_all(service)


class Manager(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(4, 2))

    def manage(self, *words, listeners=(), **options):
        manager = ServiceManager([program(), "share", "serve", "--config", self.config, *words],
                                 listeners=listeners, environment=os.environ, **options)
        self.addCleanup(manager.close)
        self.addCleanup(self.end_life, manager)
        return manager

    def end_life(self, manager):
        if manager.pid is not None and is_running(manager.pid):
            manager.kill()
            manager.wait()

    def live(self, manager):
        pid = manager.start()
        self.assertTrue(manager.is_ready.wait(20), "not ready")
        return pid

    def check_lives(self, manager, path):
        self.live(manager)
        one = self.join(path)
        one.map()[:len(PATTERN)] = PATTERN
        two = self.join(path)
        picture = picture_of(one)
        for _ in range(3):
            self.settle()
            manager.kill()
            self.assertEqual(manager.wait(), -signal.SIGKILL)
            self.assertGreater(len(manager.names()), 8)
            one.kick(two.id, 1)
            self.assertEqual(two.wait(1), 1)
            self.live(manager)
            self.assert_stays(one)
            newcomer = self.join(path)
            self.assertEqual(picture_of(newcomer), picture)
            self.assertEqual(newcomer.map()[:len(PATTERN)], PATTERN)
            newcomer.close()
        self.assertEqual(keepers_of(self.directory), [])
        return one, two

    def check_sigterm(self, manager, one):
        """Whether it is a restart is the manager's knowledge: everything stays in the store."""
        self.settle()
        manager.kill(signal.SIGTERM)
        self.assertEqual(manager.wait(), 0)
        self.assertGreater(len(manager.names()), 8)
        self.assert_stays(one)
        self.live(manager)
        self.assert_stays(one)

    def test_the_store_keeps_all_when_the_manager_offers_it(self):
        manager = self.manage()
        self.check_sigterm(manager, self.check_lives(manager, "sock")[0])

    def test_the_word_manager_is_for_one_that_does_not_say_that_it_stores(self):
        manager = self.manage("--keeper", "manager", tells_store=False)
        self.check_sigterm(manager, self.check_lives(manager, "sock")[0])

    def test_a_manager_that_does_not_say_so_is_none_without_the_word(self):
        manager = self.manage(tells_store=False)
        self.live(manager)
        one = self.join()
        self.assertEqual(manager.names(), [])
        manager.kill(signal.SIGTERM)
        self.assertEqual(manager.wait(), 0)
        self.assertEqual(one.read_until_closed(), [])
        self.assertFalse(os.path.lexists(self.path("sock")))
        self.assertFalse(os.path.lexists(self.path("control")))

    def test_activated_sockets_are_served_and_their_files_are_left(self):
        manager = self.manage("--keeper", "manager", listeners=[("door", self.path("sock"))])
        early = connect(self.path("sock"))
        self.live(manager)
        with Peer(sock=early, slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)
        self.settle()
        manager.kill()
        self.assertEqual(manager.wait(), -signal.SIGKILL)
        self.check_lives(manager, "sock")
        manager.kill(signal.SIGTERM)
        self.assertEqual(manager.wait(), 0)
        self.assertTrue(is_socket(self.path("sock")), "the manager's, not ours")

    def test_activated_sockets_without_a_store_are_left_when_the_service_ends(self):
        manager = self.manage(listeners=[("door", self.path("sock"))], tells_store=False)
        self.live(manager)
        self.assertEqual(self.join().id, 0)
        manager.kill(signal.SIGTERM)
        self.assertEqual(manager.wait(), 0)
        self.assertTrue(is_socket(self.path("sock")), "the manager's, not ours")
        self.assertFalse(os.path.lexists(self.path("control")), "ours")

    def test_a_share_that_the_store_has_no_room_for_is_refused_at_the_start(self):
        manager = self.manage(store_max=6)
        manager.start()
        self.assertEqual(manager.wait(), 1)
        self.assertLessEqual(len(manager.names()), 6)

    def test_a_store_that_is_full_is_a_reason_to_refuse_a_newcomer(self):
        # Journal, two listeners, memory, presence, four sender pages, eight doorbells; and one client.
        manager = self.manage(store_max=18)
        self.live(manager)
        one = self.join()
        self.assertEqual(one.id, 0)
        with connect(self.path("sock")) as sock:
            sock.settimeout(20)
            self.assertEqual(struct.unpack("<q", sock.recv(8))[0], -errno.ENOSPC)
        self.assertLessEqual(len(manager.names()), 18)
        self.settle()
        manager.kill()
        manager.wait()
        self.live(manager)
        self.assert_stays(one)


@need_root
class Journal(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(4, 2))

    def test_garbage_is_said_and_the_next_starts_anew(self):
        service = self.start(self.config)
        one = self.join()
        self.kill(service)
        with journal_of(self.keeper()) as journal:
            journal.write(b"\xff" * 4096)
        service = self.start(self.config)
        self.assertEqual(len(service.lines("error: nothing is taken over")), 1, service.log())
        self.assertEqual(one.read_until_closed(), [], "who is not known any more is closed")
        self.assertEqual(self.join().id, 0)
        self.finish_all(service)

    def test_random_damage_never_ends_the_service(self):
        chance = seeded_random("damaged journals")
        service = self.start(self.config)
        for _ in range(25):
            held = [self.join(), self.session(self.control())]
            self.kill(service)
            with journal_of(self.keeper()) as journal:
                size = os.fstat(journal.fileno()).st_size
                # The numbers at the front, the first share, or its connections far behind.
                for _ in range(chance.choice([1, 1, 4, 40])):
                    at = chance.choice([chance.randrange(24), chance.randrange(24, 240),
                                        chance.randrange(size - 3_200_000 if size > 3_200_000 else 0, size),
                                        110_592 + chance.randrange(600)])
                    os.pwrite(journal.fileno(), chance.randbytes(chance.choice([1, 4, 8])), at)
            service = self.start(self.config)
            for one in held:
                one.close()
            with Peer(self.path("sock"), slots=4, vectors=2) as peer:
                self.assertIn(peer.id, range(4))
        self.finish_all(service)

    def test_a_full_journal_serves_on_and_says_who_would_not_survive(self):
        service = self.start(self.config)
        one = self.join()
        with journal_of(self.keeper()) as journal:
            os.pwrite(journal.fileno(), struct.pack("<I", MAX_JOURNAL_CONNECTIONS), COUNT_CONNECTIONS_USED_AT)
        two = self.join()
        self.assertEqual(two.id, 1)
        self.assertEqual(len(service.lines("journal is full")), 1, service.log())
        two.kick(0, 1)
        self.assertEqual(one.wait(1), 1)
        service = self.follow(service, self.config)
        self.assert_stays(one)
        self.assertEqual(two.read_until_closed(), [])
        self.assertEqual(self.join().id, 1)
        self.finish_all(service)

    def test_another_user_cannot_speak_to_the_keeper(self):
        self.open_to_everybody()
        service = self.start(self.config)

        def attack():
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                try:
                    sock.connect(self.path("control.keeper"))
                    return "connected"
                except PermissionError:
                    return "refused"

        self.assertEqual(run_as(NOBODY, attack), "refused")
        self.finish_all(service)

    def test_who_comes_to_the_keeper_beside_the_service_takes_nothing(self):
        service = self.start(self.config)
        one = self.join()
        for garbage in (b"", b"x", bytes(64), os.urandom(200), b"\xff" * 4000):
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
                sock.settimeout(10)
                sock.connect(self.path("control.keeper"))
                try:
                    sock.send(garbage)
                    _, ancillary, _, _ = sock.recvmsg(4096, socket.CMSG_SPACE(1024))
                    self.assertEqual(ancillary, [])
                except (BrokenPipeError, ConnectionResetError):
                    pass
        service = self.follow(service, self.config)
        self.assert_stays(one)
        self.finish_all(service)


if __name__ == "__main__":
    main()
