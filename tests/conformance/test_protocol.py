# SPDX-License-Identifier: Apache-2.0
"""The ivshmem protocol with stable ids, byte for byte."""

import errno
import fcntl
import os
import socket
import struct
import threading
import time

import ivshmem_peer
from control_peer import ControlPeer
from ivshmem_peer import Peer, Refused
from service import ConformanceCase, main, wait_until

F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_WRITE, F_SEAL_FUTURE_WRITE = 1, 2, 4, 8, 16

NAMED = """
[control]
path = "@/control"

[limits]
refusal_hold_ms = 60000

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 6
socket = "@/any.sock"

[[vm]]
name = "linux"
[[vm.attach]]
share = "mailbox"
slot = 1
socket = "@/linux.sock"

[[vm]]
name = "rtos"
[[vm.attach]]
share = "mailbox"
slots = [0, 4]
socket = "@/rtos.sock"
"""


def expected_handshake(own, slots, vectors):
    """The whole stream as bytes, and which messages carry a descriptor."""
    values = [0, own, -1]
    for slot in [other for other in range(slots) if other != own] + [own]:
        values += [slot] * vectors
    return b"".join(struct.pack("<q", value) for value in values), \
        [False, False] + [True] * (len(values) - 2)


class Handshake(ConformanceCase):

    def test_the_stream_is_exact_at_1_2_5_64_slots_and_1_2_64_vectors(self):
        for slots in (1, 2, 5, 64):
            for vectors in (1, 2, 64):
                with self.subTest(slots=slots, vectors=vectors):
                    self.need_descriptors((slots + 1) * vectors + slots + 100)
                    self._check_stream(slots, vectors)

    def _check_stream(self, slots, vectors):
        service = self.launch(["--quick", "mailbox", "--size", "64K", "--vectors", vectors,
                               "--slots", slots, "--socket", self.path("sock")]).wait_ready()
        try:
            with Peer(self.path("sock"), slots=slots, vectors=vectors) as first:
                self._check_peer(first, 0, slots, vectors)
            last = slots - 1
            with Peer(self.path(f"sock.{last}"), slots=slots, vectors=vectors) as peer:
                self._check_peer(peer, last, slots, vectors)
        finally:
            self.finish(service)

    def _check_peer(self, peer, own, slots, vectors):
        stream, has_fd = expected_handshake(own, slots, vectors)
        self.assertEqual(b"".join(message.raw for message in peer.messages), stream)
        self.assertEqual([message.fd is not None for message in peer.messages], has_fd)
        kinds = [message.identity[0] for message in peer.messages[2:]]
        self.assertEqual(kinds, ["memory"] + ["eventfd"] * (slots * vectors))
        eventfds = [message.identity for message in peer.messages[3:]]
        self.assertEqual(len(set(eventfds)), slots * vectors, "each eventfd is another one")
        self.assertTrue(peer.is_quiet(0.05))

    def test_eventfds_begin_at_zero_and_do_not_block(self):
        self.serve_quick(slots=3, vectors=2)
        with Peer(self.path("sock"), slots=3, vectors=2) as peer:
            for fds in peer.eventfds.values():
                for fd in fds:
                    self.assertEqual(ivshmem_peer.pending_kicks(fd), 0)
                    self.assertTrue(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NONBLOCK)

    def test_a_client_that_waits_before_it_reads_gets_the_same_stream(self):
        self.need_descriptors(1300)
        self.serve_quick(slots=64, vectors=16)
        sock = ivshmem_peer.connect(self.path("sock"))
        time.sleep(0.3)
        with Peer(sock=sock, slots=64, vectors=16, record=False) as peer:
            self.assertEqual(len(peer.messages), 3 + 64 * 16)

    def test_a_byte_from_a_client_closes_its_connection_and_no_other(self):
        self.serve_quick()
        with Peer(self.path("sock"), slots=4, vectors=2) as good, \
                Peer(self.path("sock"), slots=4, vectors=2) as bad:
            bad.sock.send(b"x")
            self.assertEqual(bad.read_until_closed(), [])
            self.assertTrue(good.is_quiet(0.2))


class Memory(ConformanceCase):

    def test_the_descriptor_is_sealed_private_zeroed_and_allocated(self):
        for size, extent in (("4K", 4096), ("64K", 65536), ("20K", 32768), ("4M", 4 << 20)):
            with self.subTest(size=size):
                service = self.launch(["--quick", "mailbox", "--size", size, "--vectors", 1,
                                       "--slots", 2, "--socket", self.path("sock")]).wait_ready()
                try:
                    with Peer(self.path("sock"), slots=2, vectors=1) as peer:
                        self._check_memory(peer, extent)
                finally:
                    self.finish(service)

    def _check_memory(self, peer, extent):
        status = os.fstat(peer.memory)
        self.assertEqual(status.st_size, extent, "size of the object = extent")
        self.assertEqual(status.st_mode & 0o7777, 0o600)
        self.assertEqual(status.st_blocks * 512, extent, "all pages are allocated")
        wanted = F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL
        self.assertEqual(peer.seals() & wanted, wanted)
        self.assertEqual(peer.seals() & (F_SEAL_WRITE | F_SEAL_FUTURE_WRITE), 0)
        self.assertEqual(bytes(peer.map()), bytes(extent))
        self.assertEqual(fcntl.fcntl(peer.memory, fcntl.F_GETFL) & os.O_ACCMODE, os.O_RDWR)

    def test_nobody_can_truncate_it(self):
        service = self.serve_quick(slots=2, vectors=1)
        with Peer(self.path("sock"), slots=2, vectors=1) as peer:
            inode = os.fstat(peer.memory).st_ino
            from_outside = [path for path in service.memory_descriptors()
                            if os.stat(path).st_ino == inode]
            self.assertTrue(from_outside, "the service holds the memory as a memfd")
            outside = from_outside[0]
            attempts = {
                "shrink own fd": lambda: os.ftruncate(peer.memory, 0),
                "grow own fd": lambda: os.ftruncate(peer.memory, 1 << 20),
                "one byte less": lambda: os.ftruncate(peer.memory, 65535),
                "truncate /proc/PID/fd": lambda: os.truncate(outside, 0),
                "grow /proc/PID/fd": lambda: os.truncate(outside, 1 << 20),
                "open with O_TRUNC": lambda: os.open(outside, os.O_RDWR | os.O_TRUNC),
                "another seal": lambda: fcntl.fcntl(peer.memory, fcntl.F_ADD_SEALS, F_SEAL_WRITE),
            }
            for name, attempt in attempts.items():
                with self.subTest(name):
                    with self.assertRaises(PermissionError) as caught:
                        attempt()
                    self.assertEqual(caught.exception.errno, errno.EPERM)
                    self.assertEqual(os.fstat(peer.memory).st_size, 65536)

    def test_all_clients_see_the_same_bytes(self):
        self.serve_quick()
        with Peer(self.path("sock"), slots=4, vectors=2) as one:
            one.map()[100:105] = b"hello"
            with Peer(self.path("sock"), slots=4, vectors=2) as two:
                self.assertEqual(two.map()[100:105], b"hello")
                two.map()[65535] = 7
                self.assertEqual(one.map()[65535], 7)
        with Peer(self.path("sock"), slots=4, vectors=2) as three:
            self.assertEqual(three.map()[:], bytes(65536), "cleared when the last one left")

    def test_bytes_that_are_to_be_kept_outlive_the_clients(self):
        self.serve_quick(extra=["--keep"])
        with Peer(self.path("sock"), slots=4, vectors=2) as one:
            one.map()[100:105] = b"hello"
        with Peer(self.path("sock"), slots=4, vectors=2) as two:
            self.assertEqual(two.map()[100:105], b"hello")


class Doorbells(ConformanceCase):

    def test_every_slot_has_the_same_eventfds_for_every_client_and_over_restarts(self):
        self.serve_quick(slots=4, vectors=3)
        tables = []
        for _ in range(3):
            peers = [Peer(self.path(f"sock.{slot}"), slots=4, vectors=3) for slot in (2, 0, 3)]
            tables += [peer.eventfd_ids() for peer in peers]
            for peer in peers:
                peer.close()
        for table in tables[1:]:
            self.assertEqual(table, tables[0])

    def test_every_kick_reaches_exactly_the_vector_of_the_peer_that_it_names(self):
        self.serve_quick(slots=3, vectors=3)
        peers = [Peer(self.path("sock"), slots=3, vectors=3) for _ in range(3)]
        for peer in peers:
            self.addCleanup(peer.close)
        for sender in peers:
            for target in peers:
                for vector in range(3):
                    sender.kick(target.id, vector)
                    self.assertEqual(target.wait(vector), 1)
                    for other in peers:
                        self.assertEqual([other.pending(v) for v in range(3)], [0, 0, 0])

    def test_kicks_add_up_until_they_are_read(self):
        self.serve_quick(slots=2, vectors=1)
        with Peer(self.path("sock"), slots=2, vectors=1) as one, \
                Peer(self.path("sock"), slots=2, vectors=1) as two:
            for _ in range(5):
                one.kick(two.id, 0)
            self.assertEqual(two.wait(0), 5)
            self.assertIsNone(two.wait(0, 0.05))

    def test_a_slot_is_drained_when_its_holder_leaves_and_no_other_slot_is(self):
        self.serve_quick(slots=3, vectors=2)
        with Peer(self.path("sock.0"), slots=3, vectors=2) as watcher:
            holder = Peer(self.path("sock.1"), slots=3, vectors=2)
            for slot in (0, 1, 2):
                for vector in (0, 1):
                    watcher.kick(slot, vector)
            self.assertEqual([holder.pending(0), holder.pending(1)], [1, 1])
            holder.close()
            drained = wait_until(lambda: watcher.pending(0, 1) + watcher.pending(1, 1) == 0)
            self.assertTrue(drained)
            self.assertEqual([watcher.pending(0, 0), watcher.pending(1, 2)], [1, 1])

    def test_a_kick_to_an_empty_slot_waits_for_the_next_holder(self):
        self.serve_quick(slots=2, vectors=2)
        with Peer(self.path("sock.0"), slots=2, vectors=2) as watcher:
            watcher.kick(1, 1)
            with Peer(self.path("sock.1"), slots=2, vectors=2) as first:
                self.assertEqual(first.wait(1), 1, "a kick before the first holder")
                watcher.kick(1, 0)
            self.assertTrue(wait_until(lambda: watcher.pending(0, 1) == 0))
            watcher.kick(1, 1, 3)
            time.sleep(0.1)
            with Peer(self.path("sock.1"), slots=2, vectors=2) as second:
                self.assertEqual(second.wait(1), 3)
                self.assertIsNone(second.wait(0, 0.05), "the kick to the first holder is stale")

    def test_a_holder_that_leaves_in_the_middle_of_the_handshake_is_drained_too(self):
        self.serve_quick(slots=2, vectors=2)
        with Peer(self.path("sock.0"), slots=2, vectors=2) as watcher:
            half = Peer(self.path("sock.1"), slots=2, vectors=2, handshake=False)
            half.next_message()
            half.next_message()
            watcher.kick(1, 0)
            half.close()
            self.assertTrue(wait_until(lambda: watcher.pending(0, 1) == 0))

    def test_a_refused_client_does_not_drain_the_slot_that_it_wanted(self):
        self.serve_quick(slots=2, vectors=1)
        with Peer(self.path("sock.0"), slots=2, vectors=1) as holder:
            os.write(holder.eventfds[0][0], struct.pack("=Q", 1))
            sock = ivshmem_peer.connect(self.path("sock.0"))
            self.assertEqual(ivshmem_peer.read_refusal(sock), errno.EBUSY)
            sock.close()
            time.sleep(0.1)
            self.assertEqual(holder.wait(0), 1)


class Ids(ConformanceCase):

    def test_a_named_vm_always_gets_its_own_slots(self):
        self.serve_config(NAMED)
        for _ in range(3):
            with Peer(self.path("linux.sock"), slots=6, vectors=2) as linux, \
                    Peer(self.path("rtos.sock"), slots=6, vectors=2) as rtos, \
                    Peer(self.path("rtos.sock"), slots=6, vectors=2) as rtos_second:
                self.assertEqual((linux.id, rtos.id, rtos_second.id), (1, 0, 4))

    def test_an_unnamed_client_gets_the_lowest_free_slot_that_no_vm_owns(self):
        self.serve_config(NAMED)
        peers = [Peer(self.path("any.sock"), slots=6, vectors=2) for _ in range(3)]
        for peer in peers:
            self.addCleanup(peer.close)
        self.assertEqual([peer.id for peer in peers], [2, 3, 5])
        peers[1].close()
        with Peer(self.path("any.sock"), slots=6, vectors=2) as again:
            self.assertEqual(again.id, 3)

    def test_a_host_tool_gets_the_highest_free_slot_that_no_vm_owns(self):
        self.serve_config(NAMED.replace("slots = [0, 4]", "slots = [0, 5]"))
        with ControlPeer(self.path("control")) as control:
            found = []
            for _ in range(3):
                slot, sock = control.attach("mailbox")
                tool = Peer(sock=sock, slots=6, vectors=2)
                self.addCleanup(tool.close)
                self.assertEqual(tool.id, slot)
                found.append(slot)
            self.assertEqual(found, [4, 3, 2])

    def test_a_fixed_socket_gives_its_slot_and_only_that(self):
        self.serve_quick(slots=4)
        for slot in (3, 1, 0, 2):
            with Peer(self.path(f"sock.{slot}"), slots=4, vectors=2) as peer:
                self.assertEqual(peer.id, slot)
        self.assertFalse(os.path.exists(self.path("sock.4")))

    def test_restarting_either_or_both_gives_the_same_ids(self):
        self.serve_quick(slots=2)
        paths = [self.path("sock.0"), self.path("sock.1")]
        peers = [Peer(path, slots=2, vectors=2) for path in paths]
        for restarted in ((0,), (1,), (0, 1), (1, 0)) * 3:
            for index in restarted:
                peers[index].close()
            for index in restarted:
                peers[index] = Peer(paths[index], slots=2, vectors=2)
            self.assertEqual([peer.id for peer in peers], [0, 1])
            peers[0].kick(1, 1)
            self.assertEqual(peers[1].wait(1), 1)
            peers[1].kick(0, 0)
            self.assertEqual(peers[0].wait(0), 1)
        for peer in peers:
            self.assertTrue(peer.is_quiet(0.02))
            peer.close()

    def test_a_slot_is_free_as_soon_as_its_holder_has_closed(self):
        """A VM that restarts at once must not meet its own ghost: QEMU never retries."""
        self.serve_quick(slots=2)
        for path in ("sock.1", "sock"):
            wanted = 1 if path == "sock.1" else 0
            for attempt in range(200):
                try:
                    with Peer(self.path(path), slots=2, vectors=2, record=False) as peer:
                        self.assertEqual(peer.id, wanted, f"attempt {attempt} on {path}")
                except Refused as refusal:
                    self.fail(f"attempt {attempt} on {path}: {refusal}")


class Silence(ConformanceCase):

    def test_nothing_follows_the_handshake_when_others_come_and_go(self):
        self.serve_quick(slots=4)
        with Peer(self.path("sock.0"), slots=4, vectors=2) as peer:
            for _ in range(3):
                others = [Peer(self.path("sock"), slots=4, vectors=2) for _ in range(3)]
                with self.assertRaises(Refused):
                    Peer(self.path("sock"), slots=4, vectors=2)
                for other in others:
                    other.close()
            half = ivshmem_peer.connect(self.path("sock.2"))
            half.close()
            self.assertTrue(peer.is_quiet(0.3))

    def test_the_end_of_the_service_sends_nothing_and_doorbells_go_on(self):
        service = self.serve_quick(slots=2)
        with Peer(self.path("sock"), slots=2, vectors=2) as one, \
                Peer(self.path("sock"), slots=2, vectors=2) as two:
            self.finish(service)
            self.assertEqual(one.read_until_closed(), [])
            self.assertEqual(two.read_until_closed(), [])
            one.map()[0:2] = b"ok"
            one.kick(two.id, 1)
            self.assertEqual(two.wait(1), 1)
            self.assertEqual(two.map()[0:2], b"ok")


class Refusal(ConformanceCase):

    def _refused(self, path):
        sock = ivshmem_peer.connect(self.path(path))
        self.addCleanup(sock.close)
        return ivshmem_peer.read_refusal(sock), sock

    def test_a_taken_slot_is_ebusy_with_one_log_line_that_says_so(self):
        service = self.serve_config(NAMED)
        with Peer(self.path("linux.sock"), slots=6, vectors=2) as holder:
            number, sock = self._refused("linux.sock")
            self.assertEqual(number, errno.EBUSY)
            self.assertFalse(ivshmem_peer.select_readable(sock, 0.4), "silence, and not closed")
            lines = service.wait_for_lines("refus", 1)
            self.assertEqual(len(lines), 1, lines)
            self.assertRegex(lines[0], r"^guestmem-share: (info|warning): ")
            self.assertIn("mailbox", lines[0])
            self.assertRegex(lines[0], r"\b1\b")
            self.assertRegex(lines[0], r"(?i)taken|held|busy|in use|occupied")
            self.assertRegex(lines[0], rf"\b{os.getpid()}\b", "the reason names who asked")
            self.assertTrue(holder.is_quiet(0.05))

    def test_a_full_share_is_enospc_with_one_log_line_that_says_so(self):
        service = self.serve_config(NAMED)
        peers = [Peer(self.path("any.sock"), slots=6, vectors=2) for _ in range(3)]
        for peer in peers:
            self.addCleanup(peer.close)
        number, sock = self._refused("any.sock")
        self.assertEqual(number, errno.ENOSPC)
        self.assertFalse(ivshmem_peer.select_readable(sock, 0.4), "silence, and not closed")
        lines = service.wait_for_lines("refus", 1)
        self.assertEqual(len(lines), 1, lines)
        self.assertIn("mailbox", lines[0])
        self.assertRegex(lines[0], r"(?i)full|no free|no slot")

    def test_each_refusal_has_its_own_log_line(self):
        service = self.serve_quick(slots=1)
        with Peer(self.path("sock"), slots=1, vectors=2):
            socks = [self._refused("sock") for _ in range(5)]
            self.assertEqual([number for number, _ in socks], [errno.ENOSPC] * 5)
            self.assertEqual(len(service.wait_for_lines("refus", 5)), 5)

    def test_the_hold_ends_at_its_time(self):
        service = self.serve_config(NAMED.replace("60000", "600"))
        with Peer(self.path("linux.sock"), slots=6, vectors=2):
            before = service.descriptor_count()
            _, sock = self._refused("linux.sock")
            began = time.monotonic()
            self.assertFalse(ivshmem_peer.select_readable(sock, 0.35), "held")
            self.assertTrue(ivshmem_peer.select_readable(sock, 3.0), "released")
            self.assertEqual(sock.recv(1), b"")
            self.assertLess(time.monotonic() - began, 3.0)
            self.assertEqual(service.settled_descriptor_count(before), before)

    def test_a_refused_client_that_closes_frees_its_place_at_once(self):
        service = self.serve_quick(slots=1)
        with Peer(self.path("sock"), slots=1, vectors=2):
            before = service.descriptor_count()
            for _ in range(20):
                _, sock = self._refused("sock")
                sock.close()
            self.assertEqual(service.settled_descriptor_count(before), before)

    def test_held_refusals_are_bounded_in_number(self):
        self.need_descriptors(1700)
        service = self.serve_quick(slots=1)
        with Peer(self.path("sock"), slots=1, vectors=2) as holder:
            before = service.descriptor_count()
            socks = []
            for _ in range(1500):
                sock = ivshmem_peer.connect(self.path("sock"))
                self.addCleanup(sock.close)
                socks.append(sock)
            for sock in socks:
                self.assertTrue(ivshmem_peer.select_readable(sock, 5.0), "refused or closed")
            time.sleep(0.1)
            self.assertLess(service.descriptor_count() - before, 1200)
            self.assertTrue(holder.is_quiet(0.02))
            for sock in socks:
                sock.close()
            self.assertEqual(service.settled_descriptor_count(before), before)
        with Peer(self.path("sock"), slots=1, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_no_more_refused_clients_are_held_than_the_configuration_says(self):
        service = self.serve_config(NAMED.replace("[limits]", "[limits]\nrefusals_held = 4"))
        with Peer(self.path("linux.sock"), slots=6, vectors=2):
            before = service.descriptor_count()
            socks = [self._refused("linux.sock")[1] for _ in range(10)]

            def still_open():
                return [sock for sock in socks if not ivshmem_peer.select_readable(sock, 0)]

            wait_until(lambda: len(still_open()) <= 4)
            self.assertEqual(len(still_open()), 4)
            self.assertEqual(service.settled_descriptor_count(before + 4), before + 4)

    def test_connections_of_a_uid_are_bounded_by_the_configuration(self):
        text = NAMED.replace("[limits]", "[limits]\nconnections_per_uid = 2")
        service = self.serve_config(text)
        with Peer(self.path("linux.sock"), slots=6, vectors=2) as one, \
                Peer(self.path("any.sock"), slots=6, vectors=2) as two:
            number, sock = self._refused("any.sock")
            self.assertGreater(number, 0)
            self.assertEqual(len(service.wait_for_lines(r"refus.*\buid\b", 1)), 1)
            sock.close()
            self.assertTrue(one.is_quiet(0.02))
            two.close()
            with Peer(self.path("any.sock"), slots=6, vectors=2) as again:
                self.assertEqual(again.id, 2)


class Joining(ConformanceCase):

    def test_clients_that_join_at_the_same_time_get_different_slots(self):
        # Of 16 slots some would be set aside for receivers that hear senders apart: test_senders.py.
        self.serve_quick(slots=15, vectors=2)
        results, barrier = [], threading.Barrier(15)

        def join():
            barrier.wait(10)
            results.append(Peer(self.path("sock"), slots=15, vectors=2))

        threads = [threading.Thread(target=join) for _ in range(15)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        for peer in results:
            self.addCleanup(peer.close)
        self.assertEqual(sorted(peer.id for peer in results), list(range(15)))
        tables = [peer.eventfd_ids() for peer in results]
        self.assertTrue(all(table == tables[0] for table in tables))

    def test_the_socket_is_a_stream_socket_and_no_other_kind(self):
        self.serve_quick()
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as sock:
            with self.assertRaises(OSError) as caught:
                sock.connect(self.path("sock"))
            self.assertEqual(caught.exception.errno, errno.EPROTOTYPE)


if __name__ == "__main__":
    main()
