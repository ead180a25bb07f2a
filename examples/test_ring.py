# SPDX-License-Identifier: Apache-2.0
"""Runs the ring example against a real service: two of them ring one another.

The program is $GUESTMEM, the example stands in $GUESTMEM_BUILD/bin.
"""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "conformance"))

import service  # noqa: E402  (found through the path above)

EXAMPLE = os.path.join(os.environ.get("GUESTMEM_BUILD", "build/dev"), "bin", "example_ring")
WAIT_SECONDS = 20.0


class RingExample(service.ConformanceCase):
    def start(self, *words):
        process = subprocess.Popen([EXAMPLE, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_two_of_them_ring_one_another(self):
        self.serve_quick(slots=4, vectors=2, size="64K")
        # The kick for id 1 is there before its holder: it waits in the slot.
        first = self.start(self.path("sock"), 2, 1)
        said = [first.stdout.readline(), first.stdout.readline()]
        self.assertEqual(said, ["id 0, 65536 bytes, 4 ids with doorbells\n", "rang 1\n"])
        second = self.start(self.path("sock"), 2, 0)
        self.assertEqual(second.communicate(timeout=WAIT_SECONDS)[0],
                         "id 1, 65536 bytes, 4 ids with doorbells\nrang 0\nwas rung 1 times\n")
        self.assertEqual(first.communicate(timeout=WAIT_SECONDS)[0], "was rung 1 times\n")
        self.assertEqual((first.returncode, second.returncode), (0, 0))

    def test_a_peer_that_cannot_be_is_an_error(self):
        self.serve_quick(slots=4, vectors=2, size="64K")
        output = self.start(self.path("sock"), 2, 4).communicate(timeout=WAIT_SECONDS)[0]
        self.assertIn("no peer 4 here", output)

    def test_without_a_service_it_says_so(self):
        process = self.start(self.path("nobody"), 2, 0)
        self.assertIn("connect to", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 1)

    def test_wrong_words_are_wrong_usage(self):
        process = self.start("one")
        self.assertIn("usage:", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 2)


if __name__ == "__main__":
    service.main()
