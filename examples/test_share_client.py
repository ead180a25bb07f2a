# SPDX-License-Identifier: Apache-2.0
"""Runs the C and the Python example of the host client against a real service: they ring one another.

The program is $GUESTMEM; the example and the library stand in $GUESTMEM_BUILD.
"""

import os
import subprocess
import sys

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "tests", "conformance"))

import service  # noqa: E402  (found through the path above)

BUILD = os.environ.get("GUESTMEM_BUILD", "build/dev")
LIBRARY = os.path.join(BUILD, "lib", "libguestmem-share.so.1")
IN_C = [os.path.join(BUILD, "bin", "example_share_client")]
IN_PYTHON = [sys.executable, os.path.join(os.path.dirname(os.path.abspath(__file__)), "share_client.py")]
WAIT_SECONDS = 40.0


def why_not_in_python():
    """A library with a sanitizer in it cannot be loaded into a Python that has none."""
    done = subprocess.run([sys.executable, "-c", "import ctypes, sys; ctypes.CDLL(sys.argv[1])", LIBRARY],
                          capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    if "__tsan" in done.stderr or "__asan" in done.stderr:
        return "this Python cannot load a library with a sanitizer"
    if "anitizer" in done.stderr or "ASan" in done.stderr or "static TLS" in done.stderr:
        return "this Python cannot load a library with a sanitizer"
    raise AssertionError(f"{LIBRARY}: {done.stderr}")


class ShareClientExamples(service.ConformanceCase):
    def start(self, command, *words):
        environment = {**os.environ, "GUESTMEM_SHARE_LIBRARY": LIBRARY}
        process = subprocess.Popen([*command, *map(str, words)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True, env=environment)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def ring_one_another(self, first_command, second_command, names, share="mailbox"):
        self.serve_quick(slots=4, vectors=2, size="64K")
        control = self.path("sock.control")
        first = self.start(first_command, control, share, 0, 1)
        second = self.start(second_command, control, share, 1, 0)
        heard = [process.communicate(timeout=WAIT_SECONDS)[0] for process in (second, first)]
        self.assertEqual(heard, [f"slot {slot}: greetings from {names[slot]} on slot {slot}\n" for slot in (0, 1)])
        self.assertEqual((first.returncode, second.returncode), (0, 0))

    def need_python(self):
        if why := why_not_in_python():
            self.skipTest(why)

    def test_two_in_c_ring_one_another(self):
        self.ring_one_another(IN_C, IN_C, ("C", "C"))

    def test_one_in_c_and_one_in_python_ring_one_another(self):
        self.need_python()
        self.ring_one_another(IN_C, IN_PYTHON, ("C", "Python"))

    def test_two_in_python_ring_one_another_in_a_share_that_they_make(self):
        self.need_python()
        self.ring_one_another(IN_PYTHON, IN_PYTHON, ("Python", "Python"), share="theirs")

    def test_a_slot_that_cannot_be_is_an_error(self):
        self.serve_quick(slots=4, vectors=2, size="64K")
        process = self.start(IN_C, self.path("sock.control"), "mailbox", 4, 0)
        self.assertIn("attach: share 'mailbox'", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 1)

    def test_without_a_service_both_say_so(self):
        process = self.start(IN_C, self.path("nobody"), "mailbox", 0, 1)
        self.assertIn("no service at", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 1)
        self.need_python()
        process = self.start(IN_PYTHON, self.path("nobody"), "mailbox", 0, 1)
        self.assertIn("no service at", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 1)

    def test_wrong_words_are_wrong_usage(self):
        process = self.start(IN_C, "one")
        self.assertIn("usage:", process.communicate(timeout=WAIT_SECONDS)[0])
        self.assertEqual(process.returncode, 2)

    def test_only_the_functions_of_the_header_are_seen_outside(self):
        listed = subprocess.run(["nm", "-D", "--defined-only", LIBRARY], capture_output=True, text=True, check=True)
        seen = {line.split()[-1].split("@")[0] for line in listed.stdout.splitlines()}
        header = os.path.join(os.environ.get("GUESTMEM_SOURCE", "."), "guestmem", "share.h")
        with open(header, encoding="utf-8") as file:
            declared = {word.split("(")[0].lstrip("*") for line in file if not line.startswith((" ", "//", "#"))
                        for word in line.split() if word.lstrip("*").startswith("gm_") and "(" in word}
        self.assertGreater(len(declared), 20)
        self.assertEqual(seen - {"GUESTMEM_SHARE_1"}, declared)


if __name__ == "__main__":
    service.main()
