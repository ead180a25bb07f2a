# SPDX-License-Identifier: Apache-2.0
"""The test vectors of docs/protocols/, held against the Python peers and the service."""

import os
import re
import socket
import struct
import unittest

import ivshmem_peer
from control_peer import ControlBroken, ControlPeer
from service import ConformanceCase, main, share_config

SOURCE = os.environ.get("GUESTMEM_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")


def vectors_of(name):
    """The lines of the vectors block of docs/protocols/NAME, each split at its last columns."""
    path = os.path.join(SOURCE, "docs", "protocols", name)
    with open(path, encoding="utf-8") as file:
        blocks = re.findall(r"^```vectors\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL)
    if len(blocks) != 1:
        raise AssertionError(f"{path} has {len(blocks)} blocks of vectors, expected 1")
    return blocks[0].splitlines()


class Ivshmem(unittest.TestCase):

    def setUp(self):
        self.vectors = []
        for line in vectors_of("ivshmem.md"):
            name, value, data, carries = (column.strip() for column in line.split("|"))
            self.vectors.append((name, int(value), bytes.fromhex(data), carries == "yes"))

    def test_there_are_vectors_with_and_without_descriptors(self):
        self.assertEqual({carries for *_, carries in self.vectors}, {True, False})

    def test_the_peer_reads_each_vector_as_it_is_written_down(self):
        for name, value, data, carries in self.vectors:
            with self.subTest(name):
                server, client = socket.socketpair()
                event = os.eventfd(0)
                try:
                    socket.send_fds(server, [data], [event] if carries else [])
                    message = ivshmem_peer.receive_message(client)
                    self.assertEqual((message.value, message.raw), (value, data))
                    self.assertEqual(struct.pack("<q", value), data)
                    self.assertEqual(message.fd is not None, carries)
                    if carries:
                        self.assertEqual(message.identity, ivshmem_peer.identity_of(event))
                        os.close(message.fd)
                finally:
                    os.close(event)
                    server.close()
                    client.close()

    def test_the_refusals_are_refusals_of_their_errno(self):
        refusals = [vector for vector in self.vectors if vector[0].startswith("refused ")]
        self.assertTrue(refusals)
        for name, value, _, _ in refusals:
            with self.subTest(name), self.assertRaises(ivshmem_peer.Refused) as caught:
                ivshmem_peer.Decoder(vectors=1).feed(value, None)
            self.assertEqual(str(caught.exception), name.replace("refused ", "refused: "))


class Control(ConformanceCase):

    def test_the_service_answers_each_vector_as_it_is_written_down(self):
        self.serve_config(share_config(4, 2))
        lines = vectors_of("control.md")
        self.assertTrue(lines)
        for line in lines:
            request, wanted = line.rsplit("|", 1)
            with self.subTest(request), ControlPeer(self.path("control")) as control:
                control.send_raw(request.removesuffix(" ").encode() + b"\n")
                reply, fds = control.read_reply()
                self.assertEqual(fds, [])
                seen = reply["error"]["code"] if "error" in reply else "ok"
                self.assertEqual(seen, wanted.strip())

    def test_a_request_that_cannot_be_read_is_answered_with_id_0_and_ends_the_connection(self):
        self.serve_config(share_config(4, 2))
        for line in (b"hello\n", b'{"v":2,"id":9,"call":"share.list"}\n', b"x" * 70_000 + b"\n"):
            with self.subTest(line=line[:40]), ControlPeer(self.path("control")) as control:
                try:
                    control.send_raw(line)
                    reply, _ = control.read_reply()
                except (ControlBroken, ConnectionError) as problem:
                    self.fail(f"no answer: {problem}")
                self.assertEqual((reply["id"], "error" in reply), (0, True))
                self.assertTrue(control.is_closed())


if __name__ == "__main__":
    main()
