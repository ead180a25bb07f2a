# SPDX-License-Identifier: Apache-2.0
"""The protocol of pages, held against a second implementation: its vectors, `template serve` and `template send`."""

import contextlib
import io
import json
import os
import random
import re
import signal
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


class Served(Template):
    """It, and a server."""

    def setUp(self):
        super().setUp()
        self.path = os.path.join(self.folder, "socket")
        self.server = self.serve("base")

    def serve(self, *words):
        server = subprocess.Popen(self.words("serve", *words, "--socket", self.path), stdout=subprocess.DEVNULL,
                                  stderr=subprocess.PIPE, text=True)
        self.addCleanup(server.communicate)
        self.addCleanup(server.kill)
        self.assertRegex(server.stderr.readline(), "^serving ", "it says so when it listens")
        return server


class Serve(Served):
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


class Forks(Served):
    """`fork --from`, and servers that end, stop or lie in between."""

    def fork(self, *words):
        process = subprocess.Popen(self.words("fork", "--from", self.path, "--json", *words), stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, stdin=subprocess.DEVNULL)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def ended(self, process, code=0, within=TIMEOUT):
        """What it has printed; an error's sentence when the code is not 0."""
        begin = time.monotonic()
        out, said = process.communicate(timeout=TIMEOUT)
        self.assertLess(time.monotonic() - begin, within)
        self.assertEqual(process.returncode, code, said)
        if code:
            self.assertRegex(said, r"^(guestmem: [ -~]+\n)+$")
            return said
        return [json.loads(line) for line in out.splitlines()]

    def test_several_at_once_have_all_of_the_memory(self):
        data_bytes = sum(PAGE for at in range(0, len(self.image), PAGE) if any(self.image[at:at + PAGE]))
        forks = [self.fork("--fill", "--count", "2") for _ in range(4)]
        forks += [self.fork("--mode", "copy") for _ in range(3)]
        lines = [line for process in forks for line in self.ended(process)]
        self.assertEqual([(line["mapped_bytes"], line["private_bytes"]) for line in lines],
                         [(len(self.image), data_bytes)] * 11)
        self.assertEqual(len({line["generation"] for line in lines}), 11)
        untouched, = self.ended(self.fork())
        self.assertEqual(untouched["private_bytes"], 0, "nothing comes before it is touched")

    def test_a_chain_is_served_as_one_image(self):
        self.server.kill()
        self.server.wait()
        self.image = self.image[:-2 * PAGE] + b"changed" + bytes(2 * PAGE - 7)
        self.run_program("diff", "day2", "--parent", "base", "--memory", self.write("ram", self.image), "--compress")
        self.server = self.serve("day2")
        with Client(self.path) as client:
            self.assertEqual(client.fetch(0, len(self.image)), self.image)
            self.assertEqual(client.state, b"")
        self.ended(self.fork("--fill"))

    def slow(self):
        """A server that takes long for a large template, and a fork in the midst of filling itself."""
        self.server.kill()
        self.server.wait()
        ram = self.write("large", self.random.randbytes(24 << 20).hex().encode())
        os.truncate(ram, 8 << 30)
        self.run_program("make", "large", "--memory", ram)
        self.server = self.serve("large", "--compress=19")
        process = self.fork("--fill", "--patience", "1")
        end = time.monotonic() + TIMEOUT
        while self.resident_bytes(process) < 24 << 20:
            self.assertIsNone(process.poll(), "it is filled before the server is gone")
            self.assertLess(time.monotonic(), end)
            time.sleep(0.01)
        return process

    @staticmethod
    def resident_bytes(process):
        with open(f"/proc/{process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * PAGE

    def test_a_server_that_is_killed_meanwhile_is_an_error(self):
        process = self.slow()
        self.server.kill()
        self.ended(process, 1, within=5)

    def test_a_server_that_stops_meanwhile_is_an_error(self):
        process = self.slow()
        self.server.send_signal(signal.SIGSTOP)
        self.ended(process, 3, within=6)
        for mode in ("lazy", "copy"):
            self.ended(self.fork("--mode", mode, "--patience", "0.3"), 3, within=5)

    def test_a_server_that_lies_is_an_error(self):
        hello = page_peer.frame(page_peer.HELLO, struct.pack("<8sIIQ16sIIQ", page_peer.MAGIC, 1, 0, 1 << 46,
                                                             bytes(16), PAGE, 0, 0))
        error = page_peer.frame(page_peer.ERROR, struct.pack("<I", 10) + b"\x1b[31mred\n")
        for said in (b"", b"x" * 100, hello, hello + error, error, hello[:20]):
            for mode in ("lazy", "copy"):
                with self.subTest(said[:8]), socket.socket(socket.AF_UNIX) as listener:
                    path = os.path.join(self.folder, "liar")
                    listener.bind(path)
                    listener.listen()
                    listener.settimeout(TIMEOUT)
                    process = subprocess.Popen(self.words("fork", "--from", path, "--mode", mode, "--patience", "1"),
                                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
                    client, _ = listener.accept()
                    with client:
                        client.sendall(said)
                        client.shutdown(socket.SHUT_WR)
                        self.ended(process, 1, within=5)
                    os.unlink(path)

    def test_a_served_template_stays_until_the_server_ends(self):
        done = subprocess.run(self.words("rm", "base"), capture_output=True, text=True, timeout=TIMEOUT, check=False)
        self.assertEqual(done.returncode, 1)
        self.assertIn(f"{self.server.pid}", done.stderr)
        with Client(self.path) as client:
            client.ask(0, len(self.image))
            self.server.terminate()
            self.assertEqual(self.server.wait(TIMEOUT), 0)
        self.assertFalse(os.path.exists(self.path))
        self.run_program("rm", "base")

    def test_a_socket_in_use_is_left_alone(self):
        for path, pattern in ((self.path, "another server is listening"), (self.folder, "in the way"),
                              (os.path.join(self.folder, "ram"), "in the way"), ("x" * 108, "107"),
                              (os.path.join(self.folder, "nowhere", "socket"), "nowhere")):
            done = subprocess.run(self.words("serve", "base", "--socket", path), capture_output=True, text=True,
                                  timeout=TIMEOUT, check=False)
            self.assertEqual(done.returncode, 1, path)
            self.assertRegex(done.stderr, "^guestmem: .*" + pattern)
        self.ended(self.fork("--fill"))
        self.server.kill()
        self.server.wait()
        self.assertTrue(os.path.exists(self.path), "a killed server leaves its socket")
        self.server = self.serve("base")
        self.ended(self.fork("--fill"))


class Receive(Template):
    """`send | receive`, and streams that are cut off, altered, late, or no streams at all."""

    def receive(self, data, *words, name="new"):
        return subprocess.run(self.words("receive", name, *words), input=data, capture_output=True, timeout=TIMEOUT,
                              check=False)

    def refuse(self, data, *words, code=1):
        done = self.receive(data, *words)
        self.assertEqual((done.returncode, done.stdout), (code, b""), done.stderr)
        self.assertRegex(done.stderr, rb"^guestmem: [ -~]+\n$")
        self.assert_nothing_is_left()
        return done.stderr

    def assert_nothing_is_left(self):
        self.assertEqual(os.listdir(os.path.join(self.folder, "store")), ["base"])

    def sent(self, name):
        return page_peer.read_stream(io.BytesIO(self.run_program("send", name)).read)

    def test_round_trips(self):
        self.image = self.image[:-PAGE] + b"changed" + bytes(PAGE - 7)
        self.run_program("diff", "day2", "--parent", "base", "--memory", self.write("ram", self.image), "--state",
                         self.write("state", self.state), "--compress")
        self.run_program("flatten", "day2", "small", "--compress")
        for number, (name, sending, receiving) in enumerate((
                ("day2", [], []), ("day2", ["--compress"], ["--compress=2"]), ("small", [], []),
                ("small", ["--compress=19"], []))):
            with self.subTest((name, sending, receiving)):
                stream = self.run_program("send", name, *sending)
                done = self.receive(stream, "--json", *receiving, name=f"got{number}")
                self.assertEqual(done.returncode, 0, done.stderr)
                manifest = json.loads(done.stdout)
                self.assertEqual(manifest["encoding"], "zstd" if receiving else "raw")
                self.assertNotIn("parent", manifest)
                identity, _, state, image = self.sent(f"got{number}")
                self.assertEqual((identity.hex(), state), (manifest["id"], self.state))
                self.assertEqual(image, self.image)
                self.run_program("verify", f"got{number}")

    def test_a_stream_that_is_cut_off_leaves_nothing(self):
        stream = self.run_program("send", "base")
        for at in (0, 1, 8, 63, 64, len(stream) - 24, len(stream) - 1,
                   *(self.random.randrange(len(stream)) for _ in range(40))):
            with self.subTest(at):
                self.refuse(stream[:at])

    def test_a_flipped_bit_anywhere_leaves_nothing(self):
        for words in ([], ["--compress"]):
            stream = bytearray(self.run_program("send", "base", *words))
            for at in (*range(24), *range(24, 200, 8), *(self.random.randrange(len(stream)) for _ in range(40)),
                       *range(len(stream) - 24, len(stream))):
                bit = 1 << self.random.randrange(8)
                if (at, bit) == (20, 1):
                    continue  # there may be compressed pages, and there are none
                with self.subTest((words, at, bit)):
                    stream[at] ^= bit
                    try:
                        self.flip(bytes(stream), words)
                    finally:
                        stream[at] ^= bit

    def flip(self, stream, words):
        # A decoder of zstd passes over some bits: then all is as it was.
        done = self.receive(stream)
        if words and done.returncode == 0:
            self.assertEqual(self.sent("new")[2:], (self.state, self.image))
            self.run_program("rm", "new")
            return
        self.assertEqual(done.returncode, 1, done.stderr)
        self.assert_nothing_is_left()

    def test_what_is_no_stream_leaves_nothing(self):
        stream = self.run_program("send", "base")
        for data in (b"\0" * 100_000, self.random.randbytes(100_000), b"GMPAGES\0" * 1000, stream[8:], stream[:64] * 2,
                     page_peer.frame(page_peer.ERROR, struct.pack("<I", 10) + b"\x1b[31mred\n"),
                     page_peer.join() + stream):
            with self.subTest(data[:16]):
                self.assertNotIn(b"\x1b", self.refuse(data))

    def test_a_stream_without_end_is_left(self):
        stream = self.run_program("send", "base")
        twice = page_peer.frame(page_peer.ZEROS, struct.pack("<QQ", 0, PAGE))
        for begin, forever in ((b"", bytes(65536)), (stream[:-24], twice * 1000), (stream[:64], stream[64:-24]),
                               (b"", self.random.randbytes(65536))):
            process = subprocess.Popen(self.words("receive", "new"), stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            try:
                end = time.monotonic() + TIMEOUT
                with self.assertRaises(BrokenPipeError):
                    process.stdin.write(begin)
                    while time.monotonic() < end:
                        process.stdin.write(forever)
                self.assertEqual(process.wait(TIMEOUT), 1)
                self.assertRegex(process.stderr.read(), rb"^guestmem: [ -~]+\n$")
            finally:
                process.kill()
                process.wait()
                process.stderr.close()
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self.assert_nothing_is_left()

    def slowly(self, stream, pause, *words):
        """Exit code and message, when a tenth comes after each pause."""
        process = subprocess.Popen(self.words("receive", "new", *words), stdin=subprocess.PIPE,
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            with contextlib.suppress(BrokenPipeError):
                for at in range(0, len(stream), len(stream) // 10):
                    process.stdin.write(stream[at:at + len(stream) // 10])
                    process.stdin.flush()
                    time.sleep(pause)
                if not words:
                    process.stdin.close()
            code = process.wait(TIMEOUT)
            return code, process.stderr.read().decode()
        finally:
            process.kill()
            process.wait()
            process.stderr.close()
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def test_a_sender_may_be_slow_within_the_patience(self):
        stream = self.run_program("send", "base")
        code, said = self.slowly(stream, 0.1, "--patience", "0.4")
        self.assertEqual(code, 3, said)
        self.assertRegex(said, "^guestmem: .* 400 ms")
        self.refuse(stream[:-1], code=1)
        self.assertEqual(self.slowly(stream, 0.1), (0, ""))
        self.assertEqual(self.sent("new")[3], self.image)

    def test_what_exists_is_left_alone(self):
        stream = self.run_program("send", "base")
        self.assertIn(b"exists", self.receive(stream, name="base").stderr)
        self.assertEqual(self.sent("base")[3], self.image)

    def test_an_image_of_any_size_takes_no_more_than_it_has(self):
        """A stream of zeros for 8 TiB, and one of 64 TiB: whole, or an error, soon and in little memory."""
        limited = ["prlimit", f"--data={256 << 20}"]
        if subprocess.run([*limited, PROGRAM, "--version"], capture_output=True, check=False).returncode != 0:
            limited = []  # with a sanitizer
        for image_bytes in (1 << 43, 1 << 46):
            manifest = json.loads(self.manifest)
            manifest.pop("sum")
            manifest.update(image_bytes=image_bytes, stored_bytes=image_bytes, data_pages=0, sum_of_sums="0" * 16,
                            state_bytes=0, state_sum="0" * 16)
            manifest["regions"][0]["size"] = image_bytes
            text = json.dumps(manifest, indent=2, sort_keys=True)
            manifest["sum"] = f"{page_peer.sum_of(text.encode()):016x}"
            text = json.dumps(manifest, indent=2, sort_keys=True).encode()
            stream = page_peer.frame(page_peer.HELLO, struct.pack(
                "<8sIIQ16sIIQ", page_peer.MAGIC, 1, 0, image_bytes, bytes.fromhex(manifest["id"]), PAGE, len(text), 0))
            stream += page_peer.frame(page_peer.DESCRIPTION, struct.pack("<Q", page_peer.sum_of(text)) + text)
            stream += page_peer.frame(page_peer.ZEROS, struct.pack("<QQ", 0, image_bytes))
            stream += page_peer.frame(page_peer.END, struct.pack(
                "<QQ", 0, page_peer.sum_of(struct.pack("<QQQQ", 0, 0, image_bytes, 0))))
            begin = time.monotonic()
            done = subprocess.run([*limited, *self.words("receive", f"of{image_bytes}")], input=stream,
                                  capture_output=True, timeout=TIMEOUT, check=False)
            self.assertLess(time.monotonic() - begin, 10)
            self.assertIn(done.returncode, (0, 1), done.stderr)
            if done.returncode == 0:
                # A sanitizer leaves less of the address space.
                forked = subprocess.run(self.words("fork", f"of{image_bytes}"), capture_output=True, timeout=TIMEOUT,
                                        check=False)
                if forked.returncode != 0:
                    self.assertIn(b"Cannot allocate memory", forked.stderr)
                self.run_program("rm", f"of{image_bytes}")
        self.assert_nothing_is_left()


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
