# SPDX-License-Identifier: Apache-2.0
"""Clients that mean harm, or do harm: the service goes on and the others notice nothing."""

import array
import errno
import fcntl
import os
import re
import resource
import select
import signal
import socket
import struct
import threading
import time

import ivshmem_peer
from control_peer import ControlPeer
from ivshmem_peer import Closed, Decoder, Peer
from service import (NOBODY, ConformanceCase, main, need_root, run_as, seeded_random,
                     share_config, wait_until)

ATTEMPTS = 10_000


class Swarm:
    """Many clients in one process, each with the strict decoder; descriptors are closed as
    they come, because 64 clients of 4096 eventfds are more than a process may hold."""

    def __init__(self, path, count, slots, vectors):
        self.decoders = {}
        self.done = []
        self.failures = []
        self.selector = select.epoll()
        self.socks = []
        for _ in range(count):
            sock = ivshmem_peer.connect(path)
            sock.setblocking(False)
            self.socks.append(sock)
            self.decoders[sock.fileno()] = (sock, Decoder(vectors, slots))
            self.selector.register(sock.fileno(), select.EPOLLIN)

    def run(self, timeout):
        deadline = time.monotonic() + timeout
        while self.decoders and time.monotonic() < deadline:
            for number, _ in self.selector.poll(0.5):
                self._read(number)

    def _read(self, number):
        sock, decoder = self.decoders[number]
        try:
            for _ in range(256):
                message = ivshmem_peer.receive_message(sock, identify=False)
                decoder.feed(message.value, message.fd)
                if message.fd is not None:
                    os.close(message.fd)
                if decoder.complete:
                    self.done.append(decoder.id)
                    self._forget(number)
                    return
        except BlockingIOError:
            return
        except ivshmem_peer.ProtocolError as problem:
            self.failures.append(str(problem))
            self._forget(number)

    def _forget(self, number):
        self.selector.unregister(number)
        del self.decoders[number]

    def close(self):
        for sock in self.socks:
            sock.close()
        self.selector.close()


class Handshakes(ConformanceCase):

    def test_64_clients_of_64_vectors_join_at_once_while_one_never_reads(self):
        self.need_descriptors(4400)
        service = self.serve_config(share_config(64, 64, limits="handshake_timeout_ms = 20000"))
        before = service.descriptor_count()
        mute = ivshmem_peer.connect(self.path("sock"))
        self.addCleanup(mute.close)
        began = time.monotonic()
        swarm = Swarm(self.path("sock"), 63, 64, 64)
        self.addCleanup(swarm.close)
        swarm.run(19.0)
        print(f"63 clients of 64 x 64: {time.monotonic() - began:.2f} s ", end="", flush=True)
        self.assertEqual(swarm.failures, [])
        self.assertEqual(len(swarm.done), 63)
        self.assertEqual(sorted(swarm.done), list(range(1, 64)), "the mute one holds slot 0")
        swarm.close()
        mute.close()
        self.assertEqual(service.settled_descriptor_count(before), before)

    def test_a_client_that_never_reads_is_closed_at_the_handshake_deadline(self):
        self.need_descriptors(1400)
        service = self.serve_config(share_config(8, 64, limits="handshake_timeout_ms = 800"))
        before = service.descriptor_count()
        mute = ivshmem_peer.connect(self.path("sock"))
        self.addCleanup(mute.close)
        began = time.monotonic()
        with Peer(self.path("sock"), slots=8, vectors=64) as good:
            self.assertEqual(good.id, 1)
            self.assertLess(time.monotonic() - began, 0.7, "the mute one delays nobody")
            hung_up = select.poll()
            hung_up.register(mute, select.POLLHUP)
            self.assertTrue(hung_up.poll(5000), "the service has not closed the mute one")
            self.assertGreater(time.monotonic() - began, 0.6, "not before the deadline")
            with Peer(self.path("sock"), slots=8, vectors=64) as next_one:
                self.assertEqual(next_one.id, 0, "its slot is free again")
            self.assertTrue(good.is_quiet(0.5), "who has joined is not under the deadline")
        mute.close()
        self.assertEqual(service.settled_descriptor_count(before), before)
        self.assertEqual(len(service.lines("mailbox.*(deadline|handshake|timed? ?out|unread)")), 1,
                         service.log())

    def test_a_client_that_reads_slowly_but_in_time_is_served(self):
        self.serve_config(share_config(8, 64, limits="handshake_timeout_ms = 8000"))
        slow = Peer(self.path("sock"), slots=8, vectors=64, record=False, handshake=False)
        self.addCleanup(slow.close)
        while not slow.decoder.complete:
            for _ in range(60):
                if not slow.decoder.complete:
                    slow.next_message()
            time.sleep(0.05)
        self.assertEqual(slow.id, 0)

    def test_10000_connect_and_close_at_random_points_leave_no_trace(self):
        service = self.serve_config(share_config(8, 4, limits="connections_per_uid = 4096"))
        before = service.descriptor_count()
        chance = seeded_random("connect and close")
        handshake = 3 + 8 * 4
        kinds = {"close": 0, "read": 0, "bytes": 0, "shutdown": 0, "linger": 0, "half message": 0}
        lingering = []
        self.read_as_meant = 0
        with Peer(self.path("sock"), slots=8, vectors=4) as resident, \
                ControlPeer(self.path("control")) as control:
            for attempt in range(ATTEMPTS):
                if attempt % 4 == 0:
                    # A round trip lets the service catch up, or it refuses most attempts
                    # because all slots are taken, and few get into the handshake.
                    control.call("share.list", {})
                if attempt == ATTEMPTS // 10:
                    resident_bytes = service.resident_bytes()
                kind = chance.choice(list(kinds))
                kinds[kind] += 1
                self._attempt(kind, chance, handshake, lingering)
            for sock in lingering:
                sock.close()
            self.assertLess(service.resident_bytes() - resident_bytes, 4 << 20, "it grows")
            self.assertTrue(resident.is_quiet(0.05), "the resident client heard nothing")
            with Peer(self.path("sock"), slots=8, vectors=4, timeout=2.0) as good:
                self.assertEqual(good.id, 1)
                resident.kick(1, 3)
                self.assertEqual(good.wait(3), 1)
        self.assertEqual(sum(kinds.values()), ATTEMPTS)
        print(f"{self.read_as_meant} of {kinds['read']} partial readers read what they meant to ",
              end="", flush=True)
        self.assertGreater(self.read_as_meant, kinds["read"] // 2, "most are refused")
        self.assertEqual(service.settled_descriptor_count(before), before)

    def _attempt(self, kind, chance, handshake, lingering):
        sock = ivshmem_peer.connect(self.path("sock"))
        if kind == "linger":
            lingering.append(sock)
            if len(lingering) > 2:
                lingering.pop(chance.randrange(len(lingering))).close()
            return
        try:
            if kind == "read":
                wanted = chance.randrange(handshake + 1)
                self.read_as_meant += self._read_some(sock, wanted) == wanted
            elif kind == "half message":
                sock.settimeout(0.2)
                self._swallow(sock, chance.randrange(1, 64))
            elif kind == "bytes":
                sock.send(bytes(chance.randrange(1, 64)))
            elif kind == "shutdown":
                sock.shutdown(chance.choice([socket.SHUT_RD, socket.SHUT_WR, socket.SHUT_RDWR]))
                self._read_some(sock, chance.randrange(4))
        except (Closed, ConnectionError, BrokenPipeError, socket.timeout):
            pass
        sock.close()

    def _read_some(self, sock, count):
        """Reads up to count messages; a refused client gets one only. Returns how many."""
        for done in range(count):
            if not ivshmem_peer.select_readable(sock, 0.2):
                return done
            message = ivshmem_peer.receive_message(sock, identify=False)
            if message.fd is not None:
                os.close(message.fd)
            if done == 0 and message.value < 0:
                return done
        return count

    def _swallow(self, sock, count):
        """Reads that many bytes without regard to messages; the descriptors are lost."""
        sock.recv(count)


class Doorbells(ConformanceCase):

    def _make_blocking(self, fd):
        """The file description is shared with the service: O_NONBLOCK goes for it too."""
        fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)

    def test_an_eventfd_made_blocking_by_its_holder_does_not_stop_the_drain(self):
        self.serve_config(share_config(3, 2))
        with Peer(self.path("sock"), slots=3, vectors=2) as watcher:
            holder = Peer(self.path("sock"), slots=3, vectors=2)
            for fds in holder.eventfds.values():
                for fd in fds:
                    self._make_blocking(fd)
            watcher.kick(1, 1)
            holder.close()
            self.assertTrue(wait_until(lambda: watcher.pending(1, 1) == 0, 3), "drained")
            with Peer(self.path("sock"), slots=3, vectors=2, timeout=3.0) as successor:
                self.assertEqual(successor.id, 1, "the service did not block")

    def test_a_full_eventfd_does_not_stop_the_service_from_ringing(self):
        self.serve_config(share_config(3, 2))
        with Peer(self.path("sock"), slots=3, vectors=2) as bad, \
                Peer(self.path("sock"), slots=3, vectors=2) as good, \
                ControlPeer(self.path("control")) as control, \
                ControlPeer(self.path("control")) as other:
            fd = bad.eventfds[bad.id][0]
            os.write(fd, struct.pack("=Q", 0xfffffffffffffffe))
            self._make_blocking(fd)
            control.send_request("share.ring", {"share": "mailbox", "peer": bad.id, "vector": 0})
            try:
                control.read_reply(2.0)
                other.call("share.ring", {"share": "mailbox", "peer": good.id, "vector": 1})
                self.assertEqual(good.wait(1, 2.0), 1, "the service still rings")
                with Peer(self.path("sock"), slots=3, vectors=2, timeout=2.0) as newcomer:
                    self.assertEqual(newcomer.id, 2)
            finally:
                # Lets a service that did block end in an orderly way.
                fcntl.fcntl(fd, fcntl.F_SETFL, os.O_RDWR | os.O_NONBLOCK)
                os.read(fd, 8)


class Descriptors(ConformanceCase):
    """Descriptors that a client sends."""

    def slow_to_close(self):
        """A TCP socket whose last close waits 20 s for data that nobody reads."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)
        slow = socket.create_connection(listener.getsockname())
        reader, _ = listener.accept()
        self.addCleanup(reader.close)
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 20))
        slow.setblocking(False)
        try:
            while True:
                slow.send(bytes(65536))
        except BlockingIOError:
            return slow

    def test_one_whose_close_blocks_holds_nobody_up(self):
        service = self.serve_config(share_config(4, 2))
        began = time.monotonic()
        for path in ("sock", "control"):
            with self.subTest(path=path):
                slow = self.slow_to_close()
                client = ivshmem_peer.connect(self.path(path))
                # The service sleeps until its descriptor is the last one: were it quicker than this
                # test, the close that waits would be the test's own.
                os.kill(service.pid, signal.SIGSTOP)
                try:
                    client.sendmsg([b"x\n"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS,
                                              array.array("i", [slow.fileno()]))])
                    slow.close()
                    client.close()
                finally:
                    os.kill(service.pid, signal.SIGCONT)
                time.sleep(0.3)
                with Peer(self.path("sock"), slots=4, vectors=2, timeout=3.0):
                    pass
                with ControlPeer(self.path("control")) as control:
                    self.assertEqual(len(control.call("share.list")["shares"]), 1)
        service.terminate()
        self.assertLess(time.monotonic() - began, 10)


class Refused(ConformanceCase):
    def test_refused_clients_that_go_on_sending_starve_nobody(self):
        self.serve_config(share_config(2, 2))
        holders = [Peer(self.path("sock"), slots=2, vectors=2) for _ in range(2)]
        self.addCleanup(lambda: [holder.close() for holder in holders])
        flood = [ivshmem_peer.connect(self.path("sock")) for _ in range(8)]
        self.addCleanup(lambda: [sock.close() for sock in flood])
        stop = threading.Event()

        def pour():
            alive = list(flood)
            while alive and not stop.is_set():
                for sock in list(alive):
                    try:
                        sock.send(bytes(4096), socket.MSG_DONTWAIT)
                    except BlockingIOError:
                        pass
                    except OSError:
                        alive.remove(sock)

        thread = threading.Thread(target=pour)
        thread.start()
        try:
            for _ in range(5):
                with ControlPeer(self.path("control")) as control:
                    self.assertEqual(control.call("share.list")["shares"][0]["peers"], 2)
        finally:
            stop.set()
            thread.join(10)


class Exhaustion(ConformanceCase):

    SLOTS, VECTORS = 4, 1

    def _exhaust(self, count):
        """Connects until the service has no descriptor left; returns the sockets."""
        socks = []
        for _ in range(count):
            sock = ivshmem_peer.connect(self.path("sock"))
            self.addCleanup(sock.close)
            socks.append(sock)
        return socks

    def _check_exhaustion(self, service):
        before = service.descriptor_count()
        with Peer(self.path("sock"), slots=self.SLOTS, vectors=self.VECTORS) as resident:
            socks = self._exhaust(120)
            time.sleep(0.3)
            busy = service.cpu_seconds()
            time.sleep(0.7)
            self.assertLess(service.cpu_seconds() - busy, 0.35, "it does not spin")
            self.assertTrue(service.is_alive())
            self.assertTrue(resident.is_quiet(0.02), "who is in notices nothing")
            spoken = sum(ivshmem_peer.select_readable(sock, 0) for sock in socks)
            for sock in socks:
                sock.close()
            self.assertGreater(spoken, 0)
            with Peer(self.path("sock"), slots=self.SLOTS, vectors=self.VECTORS,
                      timeout=3.0) as good:
                resident.kick(good.id, 0)
                self.assertEqual(good.wait(0), 1)
        self.assertEqual(service.settled_descriptor_count(before), before)
        self.assertGreater(len(service.lines("refus|descriptor|EMFILE|open files")), 0)

    def test_a_limit_of_64_at_start_is_met_or_refused_with_the_number(self):
        path = self.write_config(share_config(self.SLOTS, self.VECTORS))
        service = self.launch(["--config", path], nofile=64)
        wait_until(lambda: service.is_ready() or not service.is_alive(), 20)
        if service.is_alive():
            self.addCleanup(self.finish, service)
            self._check_exhaustion(service)
            return
        self.assertIn(service.wait_exit(), (1, 2))
        self._check_limit_error(service, 64)
        self.assertFalse(os.path.exists(self.path("sock")))

    def _check_limit_error(self, service, limit):
        """The error names the limit and the number that is needed; returns the latter."""
        text = service.log()
        self.assertRegex(text, r"(?i)descriptor|RLIMIT_NOFILE|open files|nofile")
        numbers = [int(number) for number in re.findall(r"(?<![\w.])\d+(?![\w.])", text)]
        self.assertIn(limit, numbers, text)
        needed = [number for number in numbers if number > limit]
        self.assertTrue(needed, f"no number above {limit} in: {text}")
        return max(needed)

    def test_a_config_that_needs_more_descriptors_than_the_limit_is_refused_with_the_number(self):
        self.need_descriptors(1400)
        path = self.write_config(share_config(64, 16))
        small = self.launch(["--config", path], nofile=512)
        self.assertIn(small.wait_exit(), (1, 2), small.log())
        needed = self._check_limit_error(small, 512)
        self.assertGreaterEqual(needed, 64 * 16 + 64)
        self.assertEqual(sorted(name for name in os.listdir(self.directory)
                                if not name.startswith("log.")), ["share.toml"])
        below = self.launch(["--config", path], nofile=needed - 1)
        self.assertIn(below.wait_exit(), (1, 2), below.log())
        service = self.serve(["--config", path], nofile=needed)
        peers = [ivshmem_peer.connect(self.path("sock")) for _ in range(64)]
        for sock in peers:
            self.addCleanup(sock.close)
            self.assertTrue(ivshmem_peer.select_readable(sock, 5.0))
            self.assertEqual(ivshmem_peer.receive_message(sock, identify=False).value, 0,
                             "the number it names is enough for all slots")
        self.assertTrue(service.is_alive())

    def test_a_limit_of_64_on_the_running_service_is_refused_and_recovered_from(self):
        service = self.serve_config(share_config(self.SLOTS, self.VECTORS))
        service.set_descriptor_limit(64)
        self._check_exhaustion(service)
        service.set_descriptor_limit(1024)
        with Peer(self.path("sock"), slots=self.SLOTS, vectors=self.VECTORS) as peer:
            self.assertEqual(peer.id, 0)

    def test_control_clients_cannot_keep_ivshmem_clients_out(self):
        service = self.serve_config(share_config(self.SLOTS, self.VECTORS))
        before = service.descriptor_count()
        service.set_descriptor_limit(max(64, before + 20))
        controls = []
        for _ in range(100):
            sock = ivshmem_peer.connect(self.path("control"))
            self.addCleanup(sock.close)
            controls.append(sock)
        time.sleep(0.2)
        busy = service.cpu_seconds()
        time.sleep(0.5)
        self.assertLess(service.cpu_seconds() - busy, 0.25, "it does not spin")
        for sock in controls:
            sock.close()
        with Peer(self.path("sock"), slots=self.SLOTS, vectors=self.VECTORS, timeout=3.0) as peer:
            self.assertEqual(peer.id, 0)
        with ControlPeer(self.path("control")) as control:
            self.assertEqual(control.stat("mailbox")["name"], "mailbox")
        self.assertEqual(service.settled_descriptor_count(before), before)


@need_root
class Unprivileged(ConformanceCase):
    """The service as a plain user, for whom the kernel counts descriptors in flight."""

    NOFILE = 1024

    def serve_as_nobody(self, slots, vectors, limits=""):
        self.open_to_everybody()
        folder = self.path("run")
        os.mkdir(folder)
        os.chown(folder, NOBODY, NOBODY)
        text = share_config(slots, vectors, limits=limits)
        text = text.replace("@/control", "@/run/control").replace("@/sock", "@/run/sock")
        return self.serve(["--config", self.write_config(text)], uid=NOBODY, nofile=self.NOFILE,
                          binary=self.public_program())

    def test_mute_clients_do_not_keep_a_good_one_from_joining(self):
        self.serve_as_nobody(16, 32, limits="handshake_timeout_ms = 20000")
        for _ in range(15):
            sock = ivshmem_peer.connect(self.path("run/sock"))
            self.addCleanup(sock.close)
        time.sleep(0.3)
        began = time.monotonic()
        with Peer(self.path("run/sock"), slots=16, vectors=32, timeout=5.0) as good:
            self.assertEqual(good.id, 15)
        self.assertLess(time.monotonic() - began, 3.0)

    def test_etoomanyrefs_is_retried_until_the_descriptors_have_landed(self):
        self.need_descriptors(self.NOFILE + 500)
        service = self.serve_as_nobody(4, 4, limits="handshake_timeout_ms = 20000")
        release, hold = os.pipe()
        ready, told = os.pipe()
        child = os.fork()
        if child == 0:
            self._fly(hold, release, told)
        for fd in (release, told):
            os.close(fd)
        try:
            self.assertTrue(ivshmem_peer.select_readable(ready, 20))
            self.assertEqual(os.read(ready, 1), b"y", "the child holds descriptors in flight")
            peer = Peer(self.path("run/sock"), slots=4, vectors=4, timeout=10.0, handshake=False)
            self.addCleanup(peer.close)
            self.assertEqual(peer.next_message().value, 0)
            self.assertEqual(peer.next_message().value, 0)
            busy = service.cpu_seconds()
            self.assertTrue(peer.is_quiet(1.0), "no descriptor can be sent, and nothing is lost")
            self.assertLess(service.cpu_seconds() - busy, 0.5, "it waits, it does not spin")
            os.close(hold)
            hold = None
            began = time.monotonic()
            peer.handshake()
            self.assertLess(time.monotonic() - began, 3.0)
            self.assertEqual(len(peer.messages), 3 + 16)
        finally:
            if hold is not None:
                os.close(hold)
            os.close(ready)
            os.waitpid(child, 0)

    def _fly(self, hold, release, told):
        """In a child: as nobody, puts more descriptors in flight than the service may have, and
        takes them down when the parent lets go."""
        try:
            os.close(hold)
            hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            os.setgroups([])
            os.setresgid(NOBODY, NOBODY, NOBODY)
            os.setresuid(NOBODY, NOBODY, NOBODY)
            null = os.open("/dev/null", os.O_RDONLY)
            pairs, flying = [], 0
            while flying <= self.NOFILE + 200 and flying + 250 < hard:
                pair = socket.socketpair()
                for _ in range(4):
                    rights = array.array("i", [null] * 250)
                    pair[0].sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
                    flying += 250
                pairs.append(pair)
            os.write(told, b"y")
            ivshmem_peer.select_readable(release, 30)
        finally:
            os._exit(0)

    def test_another_uid_is_kept_out_by_the_mode_of_the_socket(self):
        self.open_to_everybody()
        text = share_config(4, 2).replace('socket = "@/sock"',
                                    'socket = "@/sock"\nsocket_mode = "0600"')
        self.serve_config(text)
        self.assertEqual(os.stat(self.path("sock")).st_mode & 0o7777, 0o600)
        self.assertEqual(self._try_as_nobody("sock"), "EACCES")
        self.assertEqual(self._try_as_nobody("control"), "EACCES")
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_another_uid_is_let_in_by_the_mode_or_the_owner_of_the_socket(self):
        self.open_to_everybody()
        text = share_config(4, 2).replace('socket = "@/sock"',
                                    'socket = "@/sock"\nsocket_mode = "0666"')
        text += ('\n[[vm]]\nname = "linux"\n[[vm.attach]]\nshare = "mailbox"\nslot = 3\n'
                 'socket = "@/linux.sock"\nowner = "nobody"\ngroup = "nogroup"\nmode = "0600"\n')
        self.serve_config(text)
        status = os.stat(self.path("linux.sock"))
        self.assertEqual((status.st_uid, status.st_mode & 0o7777), (NOBODY, 0o600))
        self.assertEqual(self._try_as_nobody("sock"), "0")
        self.assertEqual(self._try_as_nobody("linux.sock"), "3")

    def _try_as_nobody(self, name):
        def attempt():
            try:
                with Peer(self.path(name), slots=4, vectors=2) as peer:
                    return str(peer.id)
            except PermissionError as problem:
                return errno.errorcode[problem.errno]
        return run_as(NOBODY, attempt)


if __name__ == "__main__":
    main()
