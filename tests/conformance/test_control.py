# SPDX-License-Identifier: Apache-2.0
"""The control protocol as its document says it."""

import errno
import json
import os
import time

import ivshmem_peer
from control_peer import ControlError, ControlPeer, pending_of
from ivshmem_peer import Peer
from service import NOBODY, ConformanceCase, main, need_root, run_as, wait_until

CONFIG = """
[control]
path = "@/control"

[[share]]
name = "mailbox"
size = "20K"
vectors = 2
slots = 4
socket = "@/sock"

[[share]]
name = "other"
size = "64K"
vectors = 1
slots = 2
ids = "classic"
socket = "@/other.sock"

[[vm]]
name = "linux"
[[vm.attach]]
share = "mailbox"
slot = 1
socket = "@/linux.sock"
"""


class ControlCase(ConformanceCase):

    def setUp(self):
        super().setUp()
        self.service = self.serve_config(CONFIG)
        self.control = ControlPeer(self.path("control"))
        self.addCleanup(self.control.close)


class Calls(ControlCase):

    def test_list_names_the_service_and_every_share(self):
        result = self.control.call("share.list", {})
        self.assertEqual(result["service"]["pid"], self.service.pid)
        shares = {share["name"]: share for share in result["shares"]}
        self.assertEqual(sorted(shares), ["mailbox", "other"])
        mailbox = {key: shares["mailbox"][key]
                   for key in ("size", "extent", "vectors", "slots", "ids", "peers")}
        self.assertEqual(mailbox, {"size": 20480, "extent": 32768, "vectors": 2, "slots": 4,
                                   "ids": "stable", "peers": 0})
        self.assertEqual(shares["other"]["ids"], "classic")

    def test_list_counts_the_peers(self):
        with Peer(self.path("sock"), slots=4, vectors=2), \
                Peer(self.path("linux.sock"), slots=4, vectors=2):
            shares = self.control.call("share.list", {})["shares"]
            self.assertEqual([share["peers"] for share in shares if share["name"] == "mailbox"],
                             [2])

    def test_stat_says_who_is_there(self):
        with Peer(self.path("linux.sock"), slots=4, vectors=2), \
                Peer(self.path("sock"), slots=4, vectors=2):
            slot, sock = self.control.attach("mailbox")
            with Peer(sock=sock, slots=4, vectors=2):
                stat = self.control.stat("mailbox")
        peers = {peer["slot"]: peer for peer in stat["peers"]}
        self.assertEqual(sorted(peers), [0, 1, 3])
        self.assertEqual(slot, 3)
        self.assertEqual(peers[1]["vm"], "linux")
        self.assertFalse(peers[0]["vm"])
        for peer in peers.values():
            self.assertEqual((peer["pid"], peer["uid"], peer["gid"], peer["state"]),
                             (os.getpid(), os.getuid(), os.getgid(), "joined"))
        self.assertEqual([peers[slot]["tool"] for slot in (0, 1, 3)], [False, False, True])

    def test_stat_tells_joining_from_joined(self):
        with ivshmem_peer.connect(self.path("sock")):
            def states():
                return [peer["state"] for peer in self.control.stat("mailbox")["peers"]]
            wait_until(states)
            # 11 messages fit into any socket buffer; a client that reads none may count as
            # joined or joining, but it is there.
            self.assertIn(states(), (["joining"], ["joined"]))

    def test_stat_names_the_sockets_and_their_slots(self):
        sockets = {entry["path"]: entry for entry in self.control.stat("mailbox")["sockets"]}
        self.assertEqual(sorted(sockets), sorted([self.path("linux.sock"), self.path("sock")]))
        self.assertEqual(sockets[self.path("linux.sock")]["vm"], "linux")
        self.assertEqual(sockets[self.path("linux.sock")]["slots"], [1])

    def test_stat_shows_pending_kicks_without_consuming_them(self):
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            peer.kick(1, 1, 3)
            peer.kick(0, 0)
            for _ in range(3):
                pending = pending_of(self.control.stat("mailbox"))
                self.assertEqual(pending, [[1, 0], [0, 3], [0, 0], [0, 0]])
            self.assertEqual(peer.wait(0), 1)
            with Peer(self.path("linux.sock"), slots=4, vectors=2) as linux:
                self.assertEqual(linux.wait(1), 3)
            self.assertTrue(wait_until(
                lambda: pending_of(self.control.stat("mailbox")) == [[0, 0]] * 4))

    def test_stat_names_the_seals(self):
        seals = {str(seal).lower() for seal in self.control.stat("mailbox")["seals"]}
        self.assertLessEqual({"shrink", "grow", "seal"}, seals)
        self.assertNotIn("write", seals)

    def test_memory_gives_the_object_that_the_guests_map(self):
        result, fd = self.control.call_for_fd("share.memory", {"share": "mailbox"})
        self.addCleanup(os.close, fd)
        self.assertEqual((result["size"], result["extent"]), (20480, 32768))
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(ivshmem_peer.identity_of(fd), ivshmem_peer.identity_of(peer.memory))
        with self.assertRaises(PermissionError):
            os.ftruncate(fd, 0)

    def test_attach_gives_an_ordinary_client_on_the_highest_free_slot(self):
        with Peer(self.path("sock"), slots=4, vectors=2) as guest:
            slot, sock = self.control.attach("mailbox")
            with Peer(sock=sock, slots=4, vectors=2) as tool:
                self.assertEqual((slot, tool.id), (3, 3))
                self.assertEqual(tool.eventfd_ids(), guest.eventfd_ids())
                tool.kick(0, 1)
                self.assertEqual(guest.wait(1), 1)
                guest.kick(3, 0)
                self.assertEqual(tool.wait(0), 1)

    def test_an_attached_stream_outlives_the_control_connection(self):
        with ControlPeer(self.path("control")) as control:
            _, sock = control.attach("mailbox")
        with Peer(sock=sock, slots=4, vectors=2) as tool:
            self.assertTrue(tool.is_quiet(0.2))

    def test_attach_works_on_a_classic_share(self):
        with Peer(self.path("other.sock"), vectors=1, ids="classic") as guest:
            slot, sock = self.control.attach("other")
            with Peer(sock=sock, vectors=1, ids="classic") as tool:
                self.assertEqual(tool.id, slot)
                guest.next_message()
                guest.kick(tool.id, 0)
                self.assertEqual(tool.wait(0), 1)

    def test_ring_says_whom_it_reached_and_who_is_absent(self):
        with Peer(self.path("sock"), slots=4, vectors=2) as guest:
            result = self.control.call("share.ring",
                                       {"share": "mailbox", "peer": 0, "vector": 1})
            self.assertEqual((result["rung"], result["absent"]), ([0], []))
            self.assertEqual(guest.wait(1), 1)
            result = self.control.call("share.ring",
                                       {"share": "mailbox", "peer": 1, "vector": 0})
            self.assertEqual(result["absent"], [1])
            self.assertEqual(guest.pending(0, 1), 1, "the kick waits")

    def test_ring_all_reaches_everybody_who_is_there(self):
        with Peer(self.path("sock"), slots=4, vectors=2) as one, \
                Peer(self.path("linux.sock"), slots=4, vectors=2) as two:
            result = self.control.call("share.ring",
                                       {"share": "mailbox", "peer": "all", "vector": 0})
            self.assertLessEqual({0, 1}, set(result["rung"]))
            self.assertEqual((one.wait(0), two.wait(0)), (1, 1))
            self.assertEqual((one.pending(1), two.pending(1)), (0, 0))

    def test_an_unknown_share_is_not_found(self):
        for call, args in (("share.stat", {}), ("share.memory", {}), ("share.attach", {}),
                           ("share.ring", {"peer": 0, "vector": 0})):
            with self.subTest(call), self.assertRaises(ControlError) as caught:
                self.control.call(call, {"share": "mailbux", **args})
            self.assertEqual((caught.exception.code, caught.exception.errno),
                             ("not_found", errno.ENOENT))
            self.assertIn("mailbux", caught.exception.message)

    def test_a_peer_or_vector_out_of_range_is_an_error_with_the_range(self):
        for args, word in (({"peer": 4, "vector": 0}, "4"), ({"peer": 0, "vector": 2}, "2")):
            with self.subTest(args), self.assertRaises(ControlError) as caught:
                self.control.call("share.ring", {"share": "mailbox", **args})
            self.assertIn(word, caught.exception.message)
        self.assertEqual(pending_of(self.control.stat("mailbox")), [[0, 0]] * 4)


class Framing(ControlCase):

    REQUEST = b'{"v":1,"id":7,"call":"share.list","args":{}}\n'

    def test_a_request_may_come_byte_by_byte(self):
        for byte in self.REQUEST:
            self.control.send_raw(bytes([byte]))
        reply, _ = self.control.read_reply()
        self.assertEqual((reply["id"], "result" in reply), (7, True))

    def test_requests_in_one_write_are_answered_in_order(self):
        lines = [json.dumps({"v": 1, "id": number, "call": "share.list", "args": {}})
                 for number in range(100, 130)]
        self.control.send_raw(("\n".join(lines) + "\n").encode())
        self.assertEqual([self.control.read_reply()[0]["id"] for _ in lines],
                         list(range(100, 130)))

    def test_descriptors_come_with_their_own_reply(self):
        calls = ["share.memory", "share.list", "share.attach", "share.memory", "share.stat"]
        lines = [json.dumps({"v": 1, "id": index, "call": call, "args": {"share": "mailbox"}
                             if call != "share.list" else {}}) for index, call in enumerate(calls)]
        self.control.send_raw(("\n".join(lines) + "\n").encode())
        time.sleep(0.1)
        counts = []
        for _ in calls:
            reply, fds = self.control.read_reply()
            self.assertIn("result", reply)
            counts.append(len(fds))
            for fd in fds:
                os.close(fd)
        self.assertEqual(counts, [1, 0, 1, 1, 0])

    def test_args_may_be_left_out_where_none_are_needed(self):
        self.control.send_raw(b'{"v":1,"id":1,"call":"share.list"}\n')
        self.assertIn("result", self.control.read_reply()[0])

    def test_the_last_request_before_a_half_close_is_answered(self):
        self.control.send_raw(self.REQUEST)
        self.control.sock.shutdown(1)
        self.assertIn("result", self.control.read_reply()[0])
        self.assertTrue(self.control.is_closed())

    def test_an_error_does_not_end_the_connection(self):
        with self.assertRaises(ControlError):
            self.control.stat("nothing")
        self.assertEqual(self.control.stat("mailbox")["name"], "mailbox")


class Permission(ConformanceCase):

    CALLS = (("share.memory", {}), ("share.attach", {}),
             ("share.ring", {"peer": 0, "vector": 0}))

    def test_the_control_socket_is_private_unless_told_otherwise(self):
        self.serve_config(CONFIG)
        status = os.stat(self.path("control"))
        self.assertEqual((status.st_uid, status.st_mode & 0o7777), (os.geteuid(), 0o600))

    @need_root
    def test_who_is_let_in_but_is_no_operator_may_look_and_not_touch(self):
        self.open_to_everybody()
        self.serve_config(CONFIG.replace('control"\n', 'control"\nmode = "0666"\n', 1))
        self.assertEqual(run_as(NOBODY, self._as_other),
                         "list ok, stat ok, " +
                         ", ".join(f"{call} denied" for call, _ in self.CALLS))
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.pending(0), 0, "a denied ring rings nobody")

    @need_root
    def test_an_operator_may_touch_by_name_or_by_number(self):
        self.open_to_everybody()
        for operator in ('"nobody"', str(NOBODY)):
            with self.subTest(operator=operator):
                service = self.serve_config(CONFIG.replace(
                    'control"\n', f'control"\nmode = "0666"\noperators = [{operator}]\n', 1))
                self.assertEqual(run_as(NOBODY, self._as_other), "list ok, stat ok, " +
                                 ", ".join(f"{call} ok" for call, _ in self.CALLS))
                self.finish(service)

    def _as_other(self):
        found = []
        with ControlPeer(self.path("control")) as control:
            control.call("share.list", {})
            found.append("list ok")
            control.stat("mailbox")
            found.append("stat ok")
            for call, args in self.CALLS:
                try:
                    control.call_with_fds(call, {"share": "mailbox", **args})
                    found.append(f"{call} ok")
                except ControlError as problem:
                    denied = problem.errno in (errno.EACCES, errno.EPERM)
                    found.append(f"{call} {'denied' if denied else problem}")
        return ", ".join(found)


if __name__ == "__main__":
    main()
