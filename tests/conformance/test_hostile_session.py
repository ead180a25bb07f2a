# SPDX-License-Identifier: Apache-2.0
"""Clients with sessions and at the sockets of VMs that mean harm, also while the service is killed."""

import array
import errno
import fcntl
import json
import os
import socket
import struct
import threading
import time

import ivshmem_peer
from control_peer import ControlBroken, ControlError, ControlPeer
from ivshmem_peer import ProtocolError, connect
from kept_service import PRESENCE_BYTES, SENDER_BYTES, KeptCase, Session, mapping_fails, seals_of
from service import NOBODY, main, need_root, run_as, seeded_random, wait_until

FULL = 0xfffffffffffffffe
F_ADD_SEALS = 1033
ALL_SEALS = (0x1, 0x2, 0x4, 0x8, 0x10)  # seal, shrink, grow, write, future write

CONFIG = """
[control]
path = "@/control"

[limits]
connections_per_uid = 4096
handshake_timeout_ms = 2000
shares = 64

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 8
socket = "@/sock"

[[vm]]
name = "evil"
socket = "@/evil"
rules = [{ allow = "mailbox" }, { allow = "made-*" }]
limits = { shares = 4, bytes = "1M", peers = 6, vectors = 64, queued_messages = 16 }
[[vm.attach]]
share = "mailbox"
slots = [1, 2]
socket = "@/evil.sock"

[[vm]]
name = "good"
socket = "@/good"
[[vm.attach]]
share = "mailbox"
slot = 6
socket = "@/good.sock"
"""


class HostileCase(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(CONFIG)

    def assert_serves(self, timeout=15.0):
        """Whoever means no harm is served, and in time."""
        with ControlPeer(self.path("good"), timeout=timeout) as control, Session(control, "mailbox") as session:
            session.join(timeout)
            self.assertEqual(session.slot, 6)
            self.assertIn(6, session.present())
        self.assertTrue(wait_until(lambda: 6 not in self.slots_of_the_host(), timeout), "its slot is free again")

    def slots_of_the_host(self):
        with ControlPeer(self.path("control")) as control:
            return [peer["slot"] for peer in control.stat("mailbox")["peers"]]

    def make_blocking(self, fd):
        """The file description is shared with the service: O_NONBLOCK goes for it too."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)

    def let_go(self, fd):
        """Lets a service that did block end in an orderly way."""
        fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
        try:
            os.read(fd, 8)
        except BlockingIOError:
            pass


class Bells(HostileCase):
    def test_a_bell_that_is_full_and_blocking_holds_nobody_up(self):
        self.serve(["--config", self.config])
        evil = self.session(self.control("evil"))
        evil.hears_bell(0)
        os.write(evil.bell, struct.pack("=Q", FULL))
        self.make_blocking(evil.bell)
        try:
            watcher = self.session(self.control(), slot=7)
            while watcher.hears_bell(0):
                pass
            for _ in range(5):
                self.assert_serves()
            self.assertTrue(watcher.hears_bell(), "who watches is rung all the same")
            self.assertIn(evil.slot, watcher.present())
        finally:
            self.let_go(evil.bell)

    def test_a_bell_that_is_blocking_and_empty_holds_nobody_up(self):
        service = self.start(self.config)
        evil = self.session(self.control("evil"))
        self.make_blocking(evil.bell)
        for fd in evil.peer.eventfds[evil.slot]:
            self.make_blocking(fd)
        self.assert_serves()
        service = self.follow(service, self.config)
        self.assert_serves()
        evil.close()
        self.assert_serves()
        self.finish_all(service)

    def test_a_full_blocking_bell_survives_a_take_over_and_hurts_nobody(self):
        service = self.start(self.config)
        evil = self.session(self.control("evil"))
        leaver = self.session(self.control(), slot=7)
        evil.hears_bell(0)
        self.make_blocking(evil.bell)
        for fd in evil.peer.eventfds[evil.slot]:
            self.make_blocking(fd)
        self.kill(service)
        leaver.close()
        evil.hears_bell(0)
        os.write(evil.bell, struct.pack("=Q", FULL))
        try:
            service = self.start(self.config)
            self.assert_serves()
            self.assertTrue(wait_until(lambda: evil.present() == [evil.slot]))
        finally:
            self.let_go(evil.bell)
        self.finish_all(service)

    def test_a_doorbell_that_is_full_and_blocking_can_be_left_and_taken(self):
        self.serve(["--config", self.config])
        for _ in range(3):
            evil = self.session(self.control("evil"))
            fd = evil.peer.eventfds[evil.slot][0]
            os.write(fd, struct.pack("=Q", FULL))
            self.make_blocking(fd)
            evil.close()
            self.assert_serves()


class Pages(HostileCase):
    def test_pages_of_others_cannot_be_written(self):
        self.serve(["--config", self.config])
        evil = self.session(self.control("evil"))
        self.assertEqual(len(evil.senders), 8)
        self.assertFalse(mapping_fails(evil.senders[0], SENDER_BYTES), "the own one can")
        self.assertTrue(mapping_fails(evil.presence, PRESENCE_BYTES))
        for fd in (evil.presence, *evil.senders[1:]):
            self.assertTrue(mapping_fails(fd, 4096))
            for attempt in (lambda: os.pwrite(fd, b"evil", 0), lambda: os.ftruncate(fd, 0),
                            lambda: os.posix_fallocate(fd, 0, 1 << 20)):
                with self.assertRaises(OSError):
                    attempt()
        self.assert_serves()

    def test_no_seal_can_be_added_to_what_others_need(self):
        self.serve(["--config", self.config])
        evil = self.session(self.control("evil"))
        for name, fd in (("memory", evil.peer.memory), ("sender page", evil.senders[0]), ("presence", evil.presence)):
            before = seals_of(fd)
            for seal in ALL_SEALS:
                try:
                    fcntl.fcntl(fd, F_ADD_SEALS, seal)
                except PermissionError:
                    pass
            with self.subTest(what=name):
                self.assertEqual(seals_of(fd), before)
            for size in (0, 4096, 1 << 20):
                if size != os.fstat(fd).st_size:
                    with self.assertRaises(OSError):
                        os.ftruncate(fd, size)
        evil.close()
        again = self.session(self.control("evil"))
        self.assertFalse(mapping_fails(again.senders[0], SENDER_BYTES))
        self.assertFalse(mapping_fails(again.peer.memory, 65536))

    def test_garbage_in_the_own_sender_page_is_the_next_holders_only_trouble(self):
        service = self.start(self.config)
        evil = self.session(self.control("evil"))
        slot = evil.slot
        os.pwrite(evil.senders[0], os.urandom(SENDER_BYTES), 0)
        evil.close()
        self.assert_serves()
        service = self.follow(service, self.config)
        again = self.session(self.control("evil"))
        self.assertEqual(again.slot, slot)
        self.finish_all(service)

    @need_root
    def test_the_files_of_another_users_session_are_closed_to_a_third(self):
        self.open_to_everybody()
        self.serve(["--config", self.config])
        evil = self.session(self.control("evil"))

        def attack():
            won = []
            for fd in evil.fds[1:]:
                try:
                    os.close(os.open(f"/proc/{os.getppid()}/fd/{fd}", os.O_RDWR))
                    won.append(str(fd))
                except OSError:
                    pass
            for name in ("control", "evil", "good", "control.keeper", "sock", "good.sock"):
                try:
                    connect(self.path(name)).close()
                    won.append(name)
                except OSError:
                    pass
            return "; ".join(won)

        self.assertEqual(run_as(NOBODY, attack), "")


class Creates(HostileCase):
    def test_thousands_of_creates_against_the_limits_leave_nothing(self):
        service = self.serve(["--config", self.config])
        control = self.control("evil")
        held = [self.session(control, f"made-{number}", create=True, size=4096, slots=2) for number in range(4)]
        before, resident = service.descriptor_count(), service.resident_bytes()
        codes = set()
        for number in range(3000):
            try:
                Session(control, f"made-more-{number}", create=True, size=4096 * (1 + number % 7), slots=2).close()
                self.fail("beyond its limit")
            except ControlError as refusal:
                codes.add((refusal.code, refusal.errno))
        self.assertEqual(codes, {("exhausted", errno.EDQUOT)})
        self.assertEqual(service.settled_descriptor_count(before), before)
        self.assertLess(service.resident_bytes() - resident, 4 << 20)
        self.assert_serves()
        for session in held:
            session.close()
        self.assertTrue(wait_until(lambda: len(self.control().call("share.list")["shares"]) == 1, 10))

    def test_a_thousand_shares_made_and_left_leave_nothing(self):
        service = self.start(self.config)
        control = self.control("evil")
        self.session(control, "made-first", create=True, size=4096).close()
        self.assertTrue(wait_until(lambda: len(control.call("share.list")["shares"]) == 1, 10))
        before, resident = self.settled_descriptors(service), service.resident_bytes()
        made = 0
        for number in range(1000):
            try:
                Session(control, f"made-{number}", create=True, size=4096, slots=4).close()
                made += 1
            except ControlError as refusal:
                # The one before may not be gone yet.
                self.assertEqual(refusal.errno, errno.EDQUOT)
        self.assertGreater(made, 100)
        self.assertEqual(self.settled_descriptors(service), before)
        self.assertLess(service.resident_bytes() - resident, 4 << 20)
        self.assert_serves()
        self.finish_all(service)

    def test_names_that_are_none_make_no_share(self):
        service = self.serve(["--config", self.config])
        mark = len(service.log())
        for name in ("", "made-\n", "made-\0x", "made-\x1b[31m", "../made", "made/x", "made-" + "x" * 60,
                     "made-\u00e9", "made-\u202e"):
            with self.subTest(name=name), ControlPeer(self.path("control")) as control:
                try:
                    Session(control, name, create=True, size=4096).close()
                    self.fail(f"{name!r} was made")
                except ControlError as refusal:
                    self.assertIn(refusal.code, ("invalid_argument", "corrupt"))
        for line in service.log()[mark:].splitlines():
            self.assertRegex(line, r"^guestmem-share: [ -~]+$")
        self.assertEqual(len(self.control().call("share.list")["shares"]), 1)
        self.assert_serves()

    def test_wrong_types_are_errors_and_never_a_session(self):
        self.serve(["--config", self.config])
        right = {"share": "mailbox", "session": True}
        wrong = [{"slot": -1}, {"slot": 8}, {"slot": 2**32}, {"slot": 2**64}, {"slot": "1"}, {"slot": 1.5},
                 {"slot": [1]}, {"session": 1}, {"session": "yes"}, {"create": 1}, {"read_only": "no"},
                 {"share": "made-x", "create": True, "size": -1}, {"share": "made-x", "create": True, "size": 2**70},
                 {"share": "made-x", "create": True, "size": "4K"}, {"share": "made-x", "create": True, "size": 1.5},
                 {"share": "made-x", "create": True, "size": 4096, "vectors": -1},
                 {"share": "made-x", "create": True, "size": 4096, "slots": 2**33},
                 {"share": "made-x", "create": True, "size": 4096, "slots": 8192, "vectors": 2048}]
        for arguments in wrong:
            with self.subTest(arguments=arguments), ControlPeer(self.path("evil")) as control:
                control.send_raw(json.dumps({"v": 1, "id": 1, "call": "share.attach",
                                             "args": {**right, **arguments}}).encode() + b"\n")
                reply, fds = control.read_reply()
                self.assertEqual(fds, [])
                self.assertIn("error", reply)
        self.assertEqual(self.slots_of_the_host(), [])
        self.assert_serves()


class Clients(HostileCase):
    def send_descriptors(self, path):
        """Bytes with descriptors, a socket with a socket in it among them."""
        sock = connect(path)
        pair = socket.socketpair()
        try:
            for fds in ([pair[0].fileno()] * 10, [sock.fileno()]):
                sock.sendmsg([b'{"v":1,"id":1,"call":"share.list"}\n'],
                             [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))])
        except OSError:
            pass
        finally:
            pair[0].close()
            pair[1].close()
        return sock

    def test_descriptors_at_the_sockets_of_vms_leave_nothing(self):
        service = self.start(self.config)
        self.assert_serves()
        before = self.settled_descriptors(service)
        for path in ("evil", "evil.sock", "good", "sock"):
            for _ in range(20):
                self.send_descriptors(self.path(path)).close()
        control = self.control("evil")
        evil = self.session(control)
        rights = array.array("i", [evil.bell, evil.stream.fileno()])
        evil.stream.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        self.assertEqual(evil.peer.read_until_closed(), [])
        evil.close()
        self.assert_serves()
        control.close()
        self.assertEqual(self.settled_descriptors(service), before)
        self.finish_all(service)

    def test_a_crowd_at_one_vms_socket_keeps_no_other_vm_out(self):
        self.serve(["--config", self.config])
        crowd = [connect(self.path("evil")) for _ in range(60)]
        crowd += [connect(self.path("evil.sock")) for _ in range(60)]
        self.addCleanup(lambda: [sock.close() for sock in crowd])
        for _ in range(3):
            self.assert_serves()

    def test_replies_that_nobody_reads_keep_nobody_out_and_end(self):
        service = self.serve(["--config", self.config])
        before = service.resident_bytes()
        mute = [connect(self.path("evil")) for _ in range(8)]
        self.addCleanup(lambda: [sock.close() for sock in mute])
        request = b'{"v":1,"id":1,"call":"share.list"}\n' * 200
        for sock in mute:
            sock.setblocking(False)
            try:
                for _ in range(200):
                    sock.send(request)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError):
                pass
        for _ in range(3):
            self.assert_serves()
        self.assertLess(service.resident_bytes() - before, 8 << 20)

    def test_sessions_whose_reply_is_never_read_go_with_their_socket(self):
        self.serve(["--config", self.config])
        with ControlPeer(self.path("evil")) as control:
            # Nobody has the other ends but the socket.
            for _ in range(2):
                control.send_request("share.attach", {"share": "mailbox", "session": True})
            self.assert_serves()
        self.assertTrue(wait_until(lambda: self.slots_of_the_host() == [], 20))

    def test_a_session_that_does_not_read_its_stream_is_closed_at_its_deadline(self):
        self.serve(["--config", self.config])
        with Session(self.control("evil"), "mailbox") as evil:
            self.assert_serves()
            self.assertTrue(wait_until(lambda: self.slots_of_the_host() == [], 30))
            self.assertTrue(wait_until(lambda: evil.slot not in evil.present()))

    def test_a_flood_of_attach_and_close_leaves_nothing(self):
        service = self.start(self.config)
        self.assert_serves()
        chance = seeded_random("attach and close")
        before, resident = self.settled_descriptors(service), service.resident_bytes()
        for _ in range(1500):
            control = ControlPeer(self.path("evil"))
            try:
                control.send_request("share.attach", {"share": "mailbox", "session": True})
                if chance.random() < 0.5:
                    _, fds = control.read_reply(10.0)
                    for fd in chance.sample(fds, len(fds)):
                        os.close(fd)
            except (ControlBroken, ConnectionError):
                pass  # the VM's socket has its limit
            control.close()
        self.assertTrue(wait_until(lambda: self.slots_of_the_host() == [], 20))
        self.assertEqual(self.settled_descriptors(service), before)
        self.assertLess(service.resident_bytes() - resident, 4 << 20)
        self.assert_serves()
        self.finish_all(service)


class Kills(HostileCase):
    def attack(self, chance):
        kind = chance.randrange(6)
        if kind == 0:
            sock = connect(self.path(chance.choice(["evil.sock", "sock"])))
            for _ in range(chance.randrange(12)):
                if not ivshmem_peer.select_readable(sock, 0.2):
                    break
                message = ivshmem_peer.receive_message(sock, identify=False)
                if message.fd is not None:
                    os.close(message.fd)
            sock.close()
        elif kind == 1:
            sock = connect(self.path(chance.choice(["evil", "evil.sock", "sock", "control"])))
            sock.send(chance.randbytes(chance.randrange(1, 200)))
            sock.close()
        elif kind == 2:
            sock = connect(self.path(chance.choice(["evil", "evil.sock"])))
            sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [sock.fileno()] * 3))])
            sock.close()
        else:
            with ControlPeer(self.path("evil"), timeout=20.0) as control:
                if kind == 3:
                    control.send_request("share.attach", {"share": "mailbox", "session": True})
                    return
                share = "mailbox" if kind == 4 else f"made-{chance.randrange(8)}"
                with Session(control, share, create=True, size=4096, slots=4) as session:
                    try:
                        os.write(session.bell, struct.pack("=Q", FULL - 1000))
                        self.make_blocking(session.bell)
                    except BlockingIOError:
                        pass
                    if chance.random() < 0.7:
                        session.join(20.0)
                        os.pwrite(session.senders[0], os.urandom(64), 0)

    def test_attacks_at_the_same_time_as_kills_hurt_nobody(self):
        chance = seeded_random("attacks and kills")
        service = self.start(self.config)
        witness = self.session(self.control("good"))
        witness.peer.map()[:4] = b"safe"
        tenancy = witness.tenancy(witness.slot)
        stop, problems, attacks = threading.Event(), [], []

        def run(seed):
            own = type(chance)(seed)
            while not stop.is_set():
                try:
                    self.attack(own)
                    attacks.append(1)
                except (ControlBroken, ControlError, ProtocolError, ConnectionError, BrokenPipeError):
                    pass
                except Exception as problem:  # whatever it is, the test's thread has to know
                    problems.append(repr(problem))
                    return

        threads = [threading.Thread(target=run, args=(chance.getrandbits(32),)) for _ in range(3)]
        for thread in threads:
            thread.start()
        try:
            for _ in range(15):
                time.sleep(chance.random() / 5)
                self.kill(service)
                service = self.start(self.config)
                self.assert_stays(witness.peer, 0)
                self.assertEqual(witness.tenancy(6), tenancy)
                self.assertEqual(witness.peer.map()[:4], b"safe")
        finally:
            stop.set()
            for thread in threads:
                thread.join(30)
        self.assertEqual(problems, [])
        print(f"{len(attacks)} attacks ", end="", flush=True)
        self.assertGreater(len(attacks), 15)
        keeper = self.keeper()
        self.assertTrue(wait_until(lambda: self.slots_of_the_host() == [6], 20), self.slots_of_the_host())
        self.assertTrue(wait_until(lambda: len(self.control().call("share.list")["shares"]) == 1, 20))
        kept = len(os.listdir(f"/proc/{keeper}/fd"))
        self.assertLess(kept, 70, "what attackers had is not kept")
        witness.close()
        self.assert_serves()
        self.assertEqual([line for line in service.lines(": error:")], [])
        self.finish_all(service)


if __name__ == "__main__":
    main()
