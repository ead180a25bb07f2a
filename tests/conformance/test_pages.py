# SPDX-License-Identifier: Apache-2.0
"""The protocol of pages, held against a second implementation: its vectors, `template serve` and `template send`."""

import os
import random
import re
import socket
import struct
import subprocess
import sys
import tempfile
import time
import unittest

import page_peer
from page_peer import PAGE, Client, Decoder, Receiver, Refused

PROGRAM = os.environ["GUESTMEM"]
SOURCE = os.environ.get("GUESTMEM_SOURCE") or os.path.join(os.path.dirname(__file__), "..", "..")
SEED = int(os.environ.get("GUESTMEM_TEST_SEED", "20260821"))
TIMEOUT = 30


def vectors():
    """(name, flow, bytes, outcome) of each line of the document's block."""
    with open(os.path.join(SOURCE, "docs", "protocols", "pages.md"), encoding="utf-8") as file:
        block = re.search(r"^```vectors\n(.*?)^```$", file.read(), re.MULTILINE | re.DOTALL).group(1)
    hello = b""
    for line in block.splitlines():
        name, flow, text, outcome = (column.strip() for column in line.split("|"))
        data = b"".join(hello if word == "HELLO" else repeated(word) for word in text.split())
        hello = data if name == "hello" else hello
        yield name, flow, data, outcome


def repeated(word):
    found = re.fullmatch(r"\{(..)\*(\d+)\}", word)
    return bytes.fromhex(found.group(1)) * int(found.group(2)) if found else bytes.fromhex(word)


def outcome_of(flow, data, piece):
    decoder = Decoder(flow)
    try:
        for at in range(0, len(data), piece):
            decoder.feed(data[at:at + piece])
            while decoder.next():
                pass
    except (page_peer.Broken, Refused) as problem:
        return problem.code
    return "part" if decoder.data else "ok"


class Vectors(unittest.TestCase):
    def test_the_peer_makes_of_each_vector_what_the_document_says(self):
        count = 0
        for name, flow, data, outcome in vectors():
            with self.subTest(name):
                self.assertEqual(outcome_of(flow, data, 1 << 20), outcome)
                self.assertEqual(outcome_of(flow, data, 61), outcome)
            count += 1
        self.assertGreater(count, 50)

    def test_the_sum_is_xxh3(self):
        # Of the vectors: a page of the byte 0x11, sixteen pages of 0x22, one page of zeros.
        with open(os.path.join(SOURCE, "docs", "protocols", "pages.md"), encoding="utf-8") as file:
            text = file.read()
        for data in (b"\x11" * PAGE, b"\x22" * 16 * PAGE, bytes(PAGE)):
            self.assertIn(struct.pack("<Q", page_peer.sum_of(data)).hex(), text)


class Template(unittest.TestCase):
    """A template of sparse memory, with a state."""

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = folder.name
        self.random = random.Random(SEED)
        self.image = b"".join(self.run_of_pages() for _ in range(30))
        self.state = self.random.randbytes(150_000)
        self.run_program("make", "base", "--memory", self.write("ram", self.image), "--state",
                         self.write("state", self.state))
        with open(os.path.join(self.folder, "store", "base", "manifest.json"), "rb") as file:
            self.manifest = file.read()

    def run_of_pages(self):
        count = self.random.randrange(1, 30)
        kind = self.random.randrange(3)
        if kind == 0:
            return bytes(count * PAGE)
        return self.random.randbytes(count * PAGE) if kind == 1 else b"abcd" * (count * PAGE // 4)

    def write(self, name, content):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as file:
            file.write(content)
        return path

    def words(self, verb, *words):
        return [PROGRAM, "template", verb, *words, "--store", os.path.join(self.folder, "store")]

    def run_program(self, verb, *words):
        done = subprocess.run(self.words(verb, *words), capture_output=True, timeout=TIMEOUT, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, b""))
        return done.stdout

    def check_greeting(self, identity, description, state):
        self.assertIn(identity.hex().encode(), self.manifest)
        self.assertEqual(description, self.manifest)
        self.assertEqual(state, self.state)


class Serve(Template):
    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.folder, "socket")
        server = subprocess.Popen(self.words("serve", "base", "--socket", self.path), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.DEVNULL)
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        self.server = server
        end = time.monotonic() + TIMEOUT
        while not self.is_listening():
            self.assertIsNone(server.poll(), "the server has ended")
            self.assertLess(time.monotonic(), end, "the server does not listen")
            time.sleep(0.01)

    def is_listening(self):
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                probe.connect(self.path)
        except OSError:
            return False
        return True

    def test_all_pages_and_the_greeting(self):
        with Client(self.path) as client:
            self.assertEqual(client.image_bytes, len(self.image))
            self.check_greeting(client.id, client.description, client.state)
            self.assertEqual(client.fetch(0, len(self.image)), self.image)

    def test_description_and_state_come_when_they_are_wanted(self):
        with Client(self.path, flags=0) as client:
            self.assertEqual((client.description, client.state), (b"", b""))
            self.assertEqual(client.fetch(PAGE, PAGE), self.image[PAGE:2 * PAGE])

    def test_parts_by_several_clients_in_turn(self):
        clients = [Client(self.path, flags=0) for _ in range(5)]
        try:
            for _ in range(40):
                asked = []
                for client in clients:
                    offset = self.random.randrange(len(self.image) // PAGE) * PAGE
                    size = min(self.random.randrange(1, 40) * PAGE, len(self.image) - offset)
                    asked.append((client, client.ask(offset, size), offset, size))
                for client, number, offset, size in asked:
                    self.assertEqual(client.answer(number, offset, size), self.image[offset:offset + size])
        finally:
            for client in clients:
                client.socket.close()

    def test_requests_are_answered_in_their_order(self):
        with Client(self.path, flags=0) as client:
            asked = [(client.ask(page * PAGE, 2 * PAGE), page * PAGE) for page in range(100)]
            client.socket.shutdown(socket.SHUT_WR)
            for number, offset in asked:
                self.assertEqual(client.answer(number, offset, 2 * PAGE), self.image[offset:offset + 2 * PAGE])
            self.assertEqual(client.socket.recv(1), b"", "and then the server closes")

    def hostile(self, data):
        """What the server says to a client that says that."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stream:
            stream.settimeout(TIMEOUT)
            stream.connect(self.path)
            try:
                stream.sendall(data)
            except (BrokenPipeError, ConnectionResetError):
                pass
            receiver = Receiver(stream.recv, "server")
            try:
                while True:
                    receiver.next()
            except Refused as refused:
                return refused.code
            except (page_peer.Broken, ConnectionResetError):
                return "closed"

    def test_each_vector_of_a_client_is_met_as_the_document_says(self):
        for name, flow, data, outcome in vectors():
            if flow == "client" and outcome not in ("ok", "part"):
                with self.subTest(name):
                    self.assertEqual(self.hostile(data), outcome)
        self.test_all_pages_and_the_greeting()

    def test_pages_outside_of_the_image_are_refused(self):
        for offset, size in ((len(self.image), PAGE), (0, len(self.image) + PAGE)):
            self.assertEqual(self.hostile(page_peer.join() + page_peer.request(1, offset, size)), "out_of_range")

    def test_random_bytes_leave_the_server_alive(self):
        for _ in range(100):
            data = page_peer.join() + page_peer.request(1, 0, PAGE)
            spoiled = bytearray(data)
            spoiled[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            self.assertIn(self.hostile(bytes(spoiled) + self.random.randbytes(200)),
                          ("corrupt", "unsupported", "out_of_range", "closed"))
        self.assertIsNone(self.server.poll())
        self.test_all_pages_and_the_greeting()

    def test_clients_that_never_read_hold_nobody_up(self):
        deaf = [Client(self.path, flags=0) for _ in range(10)]
        try:
            for client in deaf:
                for _ in range(50):
                    client.ask(0, len(self.image))
            begin = time.monotonic()
            self.test_all_pages_and_the_greeting()
            self.assertLess(time.monotonic() - begin, 10)
        finally:
            for client in deaf:
                client.socket.close()

    def test_a_killed_server_ends_the_answer(self):
        with Client(self.path, flags=0) as client:
            self.server.kill()
            self.server.wait()
            with self.assertRaises((page_peer.Broken, ConnectionError)):
                client.fetch(0, PAGE)


class Send(Template):
    def test_a_stream_has_all_of_the_template(self):
        stream = self.run_program("send", "base")
        at = 0

        def read(count):
            nonlocal at
            at += count
            return stream[at - count:at]

        identity, description, state, image = page_peer.read_stream(read)
        self.check_greeting(identity, description, state)
        self.assertEqual(image, self.image)

    def test_a_reader_that_goes_is_an_error_of_the_sender(self):
        sender = subprocess.Popen(self.words("send", "base"), stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        sender.stdout.read(100)
        sender.stdout.close()
        said = sender.stderr.read().decode()
        sender.stderr.close()
        self.assertEqual(sender.wait(TIMEOUT), 1, said)
        self.assertTrue(said.startswith("guestmem: "), said)


if __name__ == "__main__":
    sys.exit(unittest.main(verbosity=2))
