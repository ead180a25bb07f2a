# SPDX-License-Identifier: Apache-2.0
"""`guestmem share attach-line`: what it prints, and that QEMU takes it."""

import os
import shlex
import shutil
import signal
import subprocess
import sys
import unittest
from pathlib import Path
from xml.etree import ElementTree

from service import ConformanceCase, main, program, wait_until

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "e2e"))
import qemu  # noqa: E402  (it stands in the other folder)

TIMEOUT = 60

CONFIG = """
[control]
path = "@/control"

[[share]]
name = "mailbox"
size = "64K"
vectors = 3
slots = 5

[[share]]
name = "a&b, 'c'"
size = "64K"
slots = 4

[[vm]]
name = "linux"
[[vm.attach]]
share = "mailbox"
slot = 0
socket = "@/linux.sock"
[[vm.attach]]
share = "a&b, 'c'"
slot = 0
socket = "@/li nux,it's<.sock"

[[vm]]
name = "double"
[[vm.attach]]
share = "mailbox"
slot = 1
socket = "@/double.1.sock"
[[vm.attach]]
share = "mailbox"
slot = 2
socket = "@/double.2.sock"

[[vm]]
name = "reader"
rules = [ { allow = "mail*", read_only = true } ]
[[vm.attach]]
share = "mailbox"
slot = 3
socket = "@/reader.sock"

[[vm]]
name = "shut-out"
rules = [ { deny = "mail*" } ]
[[vm.attach]]
share = "mailbox"
slot = 4
socket = "@/shut-out.sock"

[[vm]]
name = "by-control"
socket = "@/by-control.sock"
"""

class AttachLine(ConformanceCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(CONFIG)

    def ask(self, *words):
        return subprocess.run([program(), "share", "attach-line", *words, "--config", self.config],
                              capture_output=True, text=True, timeout=TIMEOUT)

    def printed(self, *words):
        done = self.ask(*words)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        return done.stdout

    def assert_refused(self, code, words, *texts):
        done = self.ask(*words)
        self.assertEqual(done.returncode, code, done.stderr)
        self.assertEqual(done.stdout, "")
        for text in texts:
            self.assertIn(text, done.stderr)

    def test_a_line_for_qemu(self):
        self.assertEqual(self.printed("mailbox", "--vm", "linux", "--qemu"),
                         f"-chardev socket,path={self.path('linux.sock')},id=share-mailbox "
                         "-device ivshmem-doorbell,chardev=share-mailbox,vectors=3\n")

    def test_a_line_for_each_socket_with_ids_of_their_own(self):
        lines = self.printed("mailbox", "--vm", "double", "--qemu").splitlines()
        self.assertEqual(len(lines), 2)
        for number, line in enumerate(lines, 1):
            self.assertIn(self.path(f"double.{number}.sock"), line)
        self.assertIn("id=share-mailbox ", lines[0])
        self.assertIn("id=share-mailbox-2 ", lines[1])

    def test_what_a_shell_and_qemu_read_is_quoted(self):
        words = shlex.split(self.printed("a&b, 'c'", "--vm", "linux", "--qemu"))
        path = self.path("li nux,it's<.sock").replace(",", ",,")
        self.assertEqual(words, ["-chardev", f"socket,path={path},id=share-a-b---c-",
                                 "-device", "ivshmem-doorbell,chardev=share-a-b---c-,vectors=1"])

    def test_an_element_for_libvirt(self):
        element = ElementTree.fromstring(self.printed("mailbox", "--vm", "linux", "--libvirt"))
        self.assertEqual((element.tag, element.attrib), ("shmem", {"name": "mailbox"}))
        self.assertEqual({child.tag: child.attrib for child in element},
                         {"model": {"type": "ivshmem-doorbell"}, "server": {"path": self.path("linux.sock")},
                          "msi": {"vectors": "3", "ioeventfd": "on"}})

    def test_what_libvirt_reads_is_escaped(self):
        element = ElementTree.fromstring(self.printed("a&b, 'c'", "--vm", "linux", "--libvirt"))
        self.assertEqual(element.get("name"), "a&b, 'c'")
        self.assertEqual(element.find("server").get("path"), self.path("li nux,it's<.sock"))

    def test_who_may_only_read_is_told_that_qemu_cannot(self):
        for target in ("--qemu", "--libvirt"):
            self.assert_refused(1, ("mailbox", "--vm", "reader", target), "read-only", "ivshmem-doorbell", "mail*")

    def test_who_may_not_attach_is_told_the_rule(self):
        self.assert_refused(1, ("mailbox", "--vm", "shut-out", "--qemu"), "may not attach", "share.toml:")

    def test_who_has_no_socket_is_told_what_to_write(self):
        self.assert_refused(1, ("mailbox", "--vm", "by-control", "--qemu"), "[[vm.attach]]")

    def test_names_that_are_not_there(self):
        self.assert_refused(1, ("mailbox", "--vm", "nobody-of-that-name", "--qemu"), "nobody-of-that-name")
        self.assert_refused(1, ("other", "--vm", "linux", "--qemu"), "no such share")

    def test_neither_or_both_targets_are_wrong_words(self):
        self.assert_refused(2, ("mailbox", "--vm", "linux"), "--qemu or --libvirt")
        self.assert_refused(2, ("mailbox", "--vm", "linux", "--qemu", "--libvirt"), "--libvirt")

    def test_a_file_that_is_wrong_is_wrong_words(self):
        with open(self.config, "a", encoding="utf-8") as file:
            file.write("[nonsense]\n")
        self.assert_refused(2, ("mailbox", "--vm", "linux", "--qemu"), "share.toml:")

    @unittest.skipUnless(shutil.which(qemu.PROGRAM), f"{qemu.PROGRAM} is not installed")
    def test_qemu_takes_the_line(self):
        self.serve(["--config", self.config])
        line = shlex.split(self.printed("mailbox", "--vm", "linux", "--qemu"))
        monitor = self.path("qmp")
        process = subprocess.Popen(
            [qemu.PROGRAM, "-S", "-nodefaults", "-no-user-config", "-display", "none", "-accel", "tcg", "-m", "64",
             "-machine", "q35", "-chardev", f"socket,id=qmp,path={qemu.escape(monitor)},server=on,wait=off",
             "-mon", "chardev=qmp,mode=control", *line],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        self.addCleanup(process.stderr.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        self.assertTrue(wait_until(lambda: os.path.exists(monitor) or process.poll() is not None, TIMEOUT))
        self.assertIsNone(process.poll(), "QEMU ended")

        def is_joined():
            done = subprocess.run([program(), "share", "stat", "mailbox", "--control", self.path("control")],
                                  capture_output=True, text=True, timeout=TIMEOUT)
            return "joined" in done.stdout and "linux" in done.stdout

        self.assertTrue(wait_until(is_joined, TIMEOUT), "QEMU is no peer of the share")
        process.send_signal(signal.SIGTERM)
        self.assertEqual(process.wait(TIMEOUT), 0, process.stderr.read())


if __name__ == "__main__":
    main()
