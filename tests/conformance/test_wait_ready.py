# SPDX-License-Identifier: Apache-2.0
"""No lost first kick: `ring` and `send` wait until the peer is there and listens."""

import struct
import subprocess
import time

from ivshmem_peer import Peer
from service import ConformanceCase, main, program

READY = 4096


class WaitReady(ConformanceCase):

    def setUp(self):
        super().setUp()
        self.serve_quick(slots=4, vectors=2, size="20K")

    def tool(self, *arguments):
        return self.run_tool("share", *arguments, "--control", self.path("sock.control"))

    def start(self, *arguments):
        """The tool in the background; it ends with the test."""
        process = subprocess.Popen(
            [program(), "share", *arguments, "--control", self.path("sock.control")],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.stderr.close)
        return process


    def test_a_peer_that_is_there_is_rung_at_once(self):
        with Peer(self.path("sock.1"), slots=4, vectors=2) as peer:
            result = self.tool("ring", "mailbox", "1", "0", "--wait-ready", "--timeout", "20")
            self.assertEqual(result.returncode, 0, result.stderr)
            self.assertEqual(peer.pending(0), 1)

    def test_a_peer_that_comes_late_is_waited_for(self):
        sender = self.start("send", "mailbox", "1", "1", "--message", "hello", "--wait-ready",
                            "--timeout", "60")
        # It waits: nothing is written or rung while nobody is there.
        time.sleep(0.3)
        self.assertIsNone(sender.poll())
        with Peer(self.path("sock.1"), slots=4, vectors=2) as peer:
            self.assertEqual(sender.wait(timeout=60), 0, sender.stderr.read())
            self.assertEqual(peer.pending(1), 1)
            self.assertEqual(peer.map()[:6], b"hello\0")

    def test_a_ready_word_is_waited_for_too(self):
        with Peer(self.path("sock.2"), slots=4, vectors=2) as peer:
            memory = peer.map()
            memory[READY:READY + 4] = struct.pack("<I", 0)
            sender = self.start("ring", "mailbox", "2", "0", "--wait-ready",
                                "--ready-word", str(READY), "--timeout", "60")
            time.sleep(0.3)
            self.assertIsNone(sender.poll())
            self.assertEqual(peer.pending(0), 0)
            memory[READY:READY + 4] = struct.pack("<I", 1)
            self.assertEqual(sender.wait(timeout=60), 0, sender.stderr.read())
            self.assertEqual(peer.pending(0), 1)

    def test_the_end_of_the_time_is_3_and_nothing_was_rung(self):
        result = self.tool("send", "mailbox", "3", "0", "--message", "x", "--wait-ready",
                           "--timeout", "0.2")
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertIn("peer 3 is not ready", result.stderr)
        with Peer(self.path("sock.3"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.pending(0), 0)
            self.assertEqual(peer.map()[:2], b"\0\0")

    def test_wrong_words_are_refused(self):
        for words, says in ((("all", "0", "--wait-ready"), "for one peer"),
                            (("1", "0", "--wait-ready", "--ready-word", "20478"), "multiple of 4"),
                            (("1", "0", "--wait-ready", "--ready-word", "20480"), "multiple of 4")):
            with self.subTest(words=words):
                result = self.tool("ring", "mailbox", *words, "--timeout", "0.1")
                self.assertNotEqual(result.returncode, 0)
                self.assertIn(says, result.stderr)


if __name__ == "__main__":
    main()
