# SPDX-License-Identifier: Apache-2.0
"""Hostile clients of the control socket: the service goes on and nothing leaks."""

import array
import errno
import json
import os
import socket
import time

import ivshmem_peer
from control_peer import ControlBroken, ControlError, ControlPeer, MAX_LINE_BYTES
from ivshmem_peer import Peer
from service import ConformanceCase, main, seeded_random, share_config


class Control(ConformanceCase):

    def setUp(self):
        super().setUp()
        self.service = self.serve_config(share_config(4, 2))
        idle = self.service.descriptor_count()
        with ControlPeer(self.path("control")) as control:
            control.stat("mailbox")
        self.before = self.service.settled_descriptor_count(idle, 1.0)

    def connect(self):
        control = ControlPeer(self.path("control"))
        self.addCleanup(control.close)
        return control

    def assert_serves(self):
        """A good client of either socket is served, and no descriptor has leaked."""
        with ControlPeer(self.path("control"), timeout=3.0) as control:
            self.assertEqual(control.stat("mailbox")["name"], "mailbox")
        with Peer(self.path("sock"), slots=4, vectors=2, timeout=3.0) as peer:
            self.assertEqual(peer.id, 0)
        self.assertEqual(self.service.settled_descriptor_count(self.before), self.before)

    def answer(self, data, timeout=3.0):
        """Sends a line; returns the error that it earns, or None when it is closed."""
        with ControlPeer(self.path("control")) as control:
            try:
                control.send_raw(data)
                reply, fds = control.read_reply(timeout)
            except (ControlBroken, ConnectionError) as problem:
                if isinstance(problem, ControlBroken) and "closed" not in str(problem):
                    raise
                return None
            self.assertEqual(fds, [])
            self.assertIn("error", reply, data[:200])
            return reply["error"]

    def test_garbage_is_an_error_or_the_end_of_its_connection_only(self):
        chance = seeded_random("control garbage")
        lines = [b"\n", b"\x00\n", b"hello\n", b"{}\n", b"[]\n", b"null\n", b"1\n", b'"x"\n',
                 b'{"v":1}\n', b'{"v":1,"id":1}\n', b'{"v":1,"id":1,"call":""}\n',
                 b'{"v":1,"id":1,"call":"share.nothing"}\n', b'{"v":1,"id":1,"call":"share.list"\n',
                 b'\xff\xfe{"v":1}\n', b'{"v":1,"id":1,"call":"share.\xff"}\n',
                 b'{"v":1,"id":1,"call":"share.list"} trailing\n',
                 b'{"v":1,"v":1,"id":1,"call":"share.stat","call":"x"}\n',
                 b'{"v":1,"id":1,"call":"\\ud800"}\n', b"GET / HTTP/1.1\r\n\r\n"]
        lines += [chance.randbytes(chance.randrange(1, 300)).replace(b"\n", b"") + b"\n"
                  for _ in range(100)]
        for line in lines:
            with self.subTest(line=line[:60]):
                self.answer(line)
        self.assert_serves()

    def test_wrong_types_are_errors(self):
        def request(**fields):
            return json.dumps({"v": 1, "id": 1, "call": "share.stat",
                               "args": {"share": "mailbox"}, **fields}).encode() + b"\n"

        wrong = [request(args=[]), request(args="mailbox"), request(args=None), request(args=7),
                 request(call=7), request(call=None), request(call=["share.stat"]),
                 request(args={"share": 7}), request(args={"share": None}),
                 request(args={"share": ["mailbox"]}), request(args={"share": ""}),
                 request(args={"share": "x" * 5000}), request(args={"share": "mail\0box"}),
                 request(args={})]
        for peer in (-1, 4, 65536, 2**31, 2**63, 2**64, 1.5, "1", "everyone", None, [1], True):
            wrong.append(request(call="share.ring",
                                 args={"share": "mailbox", "peer": peer, "vector": 0}))
        for vector in (-1, 2, 2**32, 2**64, 0.5, "0", None, {}, False):
            wrong.append(request(call="share.ring",
                                 args={"share": "mailbox", "peer": 0, "vector": vector}))
        for line in wrong:
            with self.subTest(line=line[:120]):
                self.assertIsNotNone(self.answer(line), "answered, not cut")
        self.assert_serves()

    def test_an_unknown_version_is_an_error(self):
        for version in (0, 2, -1, 1.5, "1", None, 2**70):
            with self.subTest(version=version):
                line = json.dumps({"v": version, "id": 1, "call": "share.list"}).encode()
                self.assertIsNotNone(self.answer(line + b"\n"))
        self.assert_serves()

    def test_deep_nesting_does_not_reach_the_end_of_the_stack(self):
        for opening, closing in ((b"[", b"]"), (b'{"a":', b"}")):
            for balanced in (True, False):
                count = (MAX_LINE_BYTES - 200) // (len(opening) + len(closing))
                middle = opening * count + (b"1" + closing * count if balanced else b"")
                self.answer(b'{"v":1,"id":1,"call":"share.list","args":' + middle + b"}\n")
                self.answer(middle + b"\n")
        self.assert_serves()

    def test_a_line_of_64_kib_is_answered_and_a_longer_one_is_not_gathered(self):
        request = b'{"v":1,"id":5,"call":"share.list","args":{}'
        longest = request + b" " * (MAX_LINE_BYTES - len(request) - 2) + b"}\n"
        self.assertEqual(len(longest), MAX_LINE_BYTES)
        control = self.connect()
        control.send_raw(longest)
        reply, _ = control.read_reply()
        self.assertEqual((reply["id"], "result" in reply), (5, True))
        control.close()
        longer = request + b" " * (MAX_LINE_BYTES - len(request)) + b"}\n"
        self.answer(longer)
        self.assert_serves()

    def test_a_line_without_an_end_is_cut_at_64_kib(self):
        resident = self.service.resident_bytes()
        control = self.connect()
        sent = 0
        try:
            while sent < 8 << 20:
                sent += control.sock.send(b"x" * 65536)
        except (ConnectionError, BrokenPipeError, socket.timeout):
            pass
        self.assertLess(sent, 8 << 20, "the service reads a line without end")
        self.assertLess(self.service.resident_bytes() - resident, 4 << 20)
        control.close()
        self.assert_serves()

    def test_half_lines_and_then_nothing_leave_no_trace(self):
        chance = seeded_random("half lines")
        line = b'{"v":1,"id":1,"call":"share.memory","args":{"share":"mailbox"}}\n'
        for _ in range(500):
            control = ControlPeer(self.path("control"))
            control.send_raw(line * chance.randrange(3) + line[:chance.randrange(len(line))])
            control.close()
        self.assert_serves()

    def test_descriptors_sent_by_a_client_do_not_stay_in_the_service(self):
        control = self.connect()
        null = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, null)
        line = b'{"v":1,"id":1,"call":"share.list","args":{}}\n'
        try:
            for _ in range(50):
                control.send_raw(line, [null] * 200)
                control.read_reply()
        except (ControlBroken, ConnectionError):
            pass
        self.assertLess(self.service.descriptor_count() - self.before, 3)
        half = self.connect()
        half.send_raw(b'{"v":1', [null] * 200)
        time.sleep(0.1)
        self.assertLess(self.service.descriptor_count() - self.before, 4)
        control.close()
        half.close()
        self.assert_serves()

    def test_descriptors_sent_on_an_ivshmem_socket_do_not_stay_in_the_service(self):
        null = os.open("/dev/null", os.O_RDONLY)
        self.addCleanup(os.close, null)
        for _ in range(20):
            sock = ivshmem_peer.connect(self.path("sock"))
            rights = array.array("i", [null] * 200)
            try:
                sock.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            except ConnectionError:
                pass
            ivshmem_peer.select_readable(sock, 0.2)
            sock.close()
        self.assert_serves()

    def test_a_client_that_never_reads_replies_costs_a_bounded_amount(self):
        resident = self.service.resident_bytes()
        for call in ("share.stat", "share.memory"):
            control = self.connect()
            control.sock.settimeout(0.5)
            line = json.dumps({"v": 1, "id": 1, "call": call,
                               "args": {"share": "mailbox"}}).encode() + b"\n"
            sent = 0
            try:
                while sent < 32 << 20:
                    sent += control.sock.send(line * 64)
            except (ConnectionError, BrokenPipeError, socket.timeout):
                pass
            self.assertLess(sent, 32 << 20, "the service reads on and on")
            self.assertLess(self.service.resident_bytes() - resident, 16 << 20)
            self.assertLess(self.service.descriptor_count() - self.before, 64)
            with ControlPeer(self.path("control"), timeout=3.0) as good:
                self.assertEqual(good.stat("mailbox")["name"], "mailbox")
            control.close()
        self.assert_serves()

    def test_attaching_again_and_again_stops_at_the_slots(self):
        with ControlPeer(self.path("control")) as control:
            tools = []
            for _ in range(4):
                slot, sock = control.attach("mailbox")
                tools.append(Peer(sock=sock, slots=4, vectors=2))
                self.assertEqual(tools[-1].id, slot)
            for _ in range(100):
                with self.assertRaises(ControlError) as caught:
                    control.attach("mailbox")
                self.assertEqual(caught.exception.errno, errno.ENOSPC)
            for tool in tools:
                tool.close()
        self.assert_serves()

    def test_attached_streams_that_nobody_takes_leave_no_trace(self):
        for _ in range(50):
            control = ControlPeer(self.path("control"))
            control.send_request("share.attach", {"share": "mailbox"})
            control.close()
        self.assertEqual(self.service.settled_descriptor_count(self.before), self.before)
        self.assert_serves()


if __name__ == "__main__":
    main()
