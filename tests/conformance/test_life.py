# SPDX-License-Identifier: Apache-2.0
"""How the service begins and ends: sockets, a second instance, signals, readiness."""

import os
import signal
import socket
import stat

import ivshmem_peer
from control_peer import ControlPeer
from ivshmem_peer import Peer
from service import ConformanceCase, is_socket, main, wait_until

CONFIG = """
[control]
path = "@/control"

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 4
socket = "@/sock"
"""


class SecondInstance(ConformanceCase):

    def _check_undisturbed(self, second_arguments, message):
        first = self.serve(["--config", self.write_config(CONFIG)])
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            peer.map()[:5] = b"alive"
            before = {name: os.lstat(self.path(name)).st_ino for name in os.listdir(self.directory)
                      if is_socket(self.path(name))}
            second = self.launch(second_arguments)
            self.assertEqual(second.wait_exit(), 1, second.log())
            self.assertRegex(second.log(), message)
            self.assertRegex(second.log(), r"(?i)in use|already|another|listens|running|live")
            self.assertFalse(second.is_ready())
            after = {name: os.lstat(self.path(name)).st_ino for name in os.listdir(self.directory)
                     if is_socket(self.path(name))}
            self.assertEqual(after, before, "the second instance touches and leaves no socket")
            self.assertTrue(first.is_alive())
            self.assertTrue(peer.is_quiet(0.1))
            self.assertEqual(os.fstat(peer.memory).st_size, 65536)
            with Peer(self.path("sock"), slots=4, vectors=2) as newcomer:
                self.assertEqual(newcomer.id, 1, "the probe holds no slot")
                self.assertEqual(newcomer.map()[:5], b"alive")
                newcomer.kick(0, 1)
                self.assertEqual(peer.wait(1), 1)
        with ControlPeer(self.path("control")) as control:
            self.assertEqual(control.stat("mailbox")["name"], "mailbox")

    def test_the_same_configuration_twice_is_an_error_that_names_the_socket(self):
        path = self.write_config(CONFIG)
        self._check_undisturbed(["--config", path], self.path("(control|sock)"))

    def test_one_ivshmem_socket_in_use_is_an_error_before_anything_is_touched(self):
        text = CONFIG.replace("@/control", "@/other.control")
        text += ('\n[[share]]\nname = "zzz"\nsize = "4K"\nvectors = 1\nslots = 2\n'
                 'socket = "@/aaa.sock"\n')
        path = self.write_config(text, "other.toml")
        self._check_undisturbed(["--config", path], self.path("sock"))
        self.assertFalse(os.path.lexists(self.path("other.control")))
        self.assertFalse(os.path.lexists(self.path("aaa.sock")))

    def test_the_control_socket_in_use_is_an_error_before_anything_is_touched(self):
        path = self.write_config(CONFIG.replace("@/sock", "@/other.sock"), "other.toml")
        self._check_undisturbed(["--config", path], self.path("control"))
        self.assertFalse(os.path.lexists(self.path("other.sock")))

    def test_a_smaller_quick_share_on_the_same_socket_changes_no_memory(self):
        self._check_undisturbed(["--quick", "mailbox", "--size", "4K", "--vectors", "2",
                                 "--slots", "4", "--socket", self.path("sock")],
                                self.path("sock"))
        self.assertFalse(os.path.lexists(self.path("sock.0")))
        self.assertFalse(os.path.lexists(self.path("sock.control")))


class Sockets(ConformanceCase):

    def test_stale_socket_files_are_no_obstacle(self):
        for name in ("sock", "control"):
            stale = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            stale.bind(self.path(name))
            stale.close()
        self.serve(["--config", self.write_config(CONFIG)])
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_a_service_that_was_killed_is_no_obstacle_to_the_next(self):
        path = self.write_config(CONFIG)
        for _ in range(3):
            service = self.launch(["--config", path]).wait_ready()
            service.kill()
            self.assertTrue(is_socket(self.path("sock")), "a killed service leaves its sockets")
        self.serve(["--config", path])
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_what_is_not_a_socket_is_refused_and_kept(self):
        def make_folder(path):
            os.mkdir(path)

        def make_file(path):
            with open(path, "w", encoding="ascii") as file:
                file.write("precious")

        def make_dangling_link(path):
            os.symlink(self.path("nowhere"), path)

        for kind in (make_file, make_folder, make_dangling_link):
            for name in ("sock", "control"):
                with self.subTest(kind=kind.__name__, name=name):
                    path = self.path(name)
                    kind(path)
                    before = os.lstat(path)
                    service = self.launch(["--config", self.write_config(CONFIG)])
                    self.assertIn(service.wait_exit(), (1, 2), service.log())
                    self.assertIn(path, service.log())
                    after = os.lstat(path)
                    self.assertEqual((before.st_ino, before.st_mode, before.st_size),
                                     (after.st_ino, after.st_mode, after.st_size))
                    self.assertFalse(os.path.lexists(self.path("nowhere")))
                    other = "control" if name == "sock" else "sock"
                    self.assertFalse(os.path.lexists(self.path(other)))
                    if stat.S_ISDIR(before.st_mode):
                        os.rmdir(path)
                    else:
                        os.unlink(path)

    def test_a_relative_socket_path_is_taken_from_the_current_folder(self):
        service = self.serve(["--quick", "mailbox", "--size", "4K", "--vectors", "2", "--slots",
                              "2", "--socket", "near"], cwd=self.directory)
        with Peer(self.path("near"), slots=2, vectors=2) as peer:
            self.assertEqual(peer.id, 0)
        self.finish(service)
        self.assertFalse(os.path.lexists(self.path("near")))

    def test_a_socket_path_that_is_too_long_is_an_error_that_says_so(self):
        path = self.path("x" * 120)
        service = self.launch(["--quick", "mailbox", "--size", "4K", "--vectors", "1",
                               "--slots", "1", "--socket", path])
        self.assertIn(service.wait_exit(), (1, 2))
        self.assertRegex(service.log(), r"(?i)long|107|108")


class End(ConformanceCase):

    def test_sigterm_and_sigint_end_it_quietly_and_remove_its_sockets(self):
        path = self.write_config(CONFIG)
        for number in (signal.SIGTERM, signal.SIGINT):
            with self.subTest(signal=number.name):
                service = self.launch(["--config", path]).wait_ready()
                self.assertTrue(is_socket(self.path("sock")))
                self.assertTrue(is_socket(self.path("control")))
                with Peer(self.path("sock"), slots=4, vectors=2) as peer:
                    others = [ivshmem_peer.connect(self.path("sock")) for _ in range(5)]
                    for sock in others:
                        self.addCleanup(sock.close)
                    self.assertEqual(len(service.wait_for_lines("refus", 2)), 2)
                    code, said = service.terminate(number)
                    for sock in others:
                        sock.close()
                    self.assertEqual(code, 0)
                    self.assert_quiet(said)
                    self.assertLessEqual(len(said.splitlines()), 2, said)
                    self.assertEqual(peer.read_until_closed(), [])
                self.assertFalse(os.path.lexists(self.path("sock")))
                self.assertFalse(os.path.lexists(self.path("control")))

    def test_sigterm_at_any_moment_of_the_start_ends_it(self):
        path = self.write_config(CONFIG)
        for delay in (0.0, 0.002, 0.005, 0.01, 0.02, 0.04):
            service = self.launch(["--config", path])
            wait_until(lambda: False, delay)
            code, _ = service.terminate()
            self.assertIn(code, (0, -signal.SIGTERM))

    def test_quick_removes_all_of_its_sockets(self):
        service = self.serve_quick(slots=3)
        names = ["sock", "sock.0", "sock.1", "sock.2", "sock.control"]
        self.assertEqual([name for name in names if is_socket(self.path(name))], names)
        self.finish(service)
        self.assertEqual([name for name in names if os.path.lexists(self.path(name))], [])

    def test_a_socket_that_another_has_put_in_its_place_is_left_alone(self):
        service = self.serve(["--config", self.write_config(CONFIG)])
        os.unlink(self.path("sock"))
        other = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.addCleanup(other.close)
        other.bind(self.path("sock"))
        self.finish(service)
        self.assertTrue(is_socket(self.path("sock")), "not ours, not removed")


class Readiness(ConformanceCase):

    def _notified(self, address):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(address)
            receiver.settimeout(10)
            shown = "@" + address[1:] if address.startswith("\0") else address
            service = self.serve(["--config", self.write_config(CONFIG)], notify=shown)
            states = []
            while "READY=1" not in states:
                states += receiver.recv(4096).decode().split("\n")
            with Peer(self.path("sock"), slots=4, vectors=2) as peer:
                self.assertEqual(peer.id, 0)
            self.finish(service)

    def test_ready_is_sent_to_a_notify_socket(self):
        self._notified(self.path("notify"))

    def test_ready_is_sent_to_an_abstract_notify_socket(self):
        self._notified(f"\0guestmem-test-{os.getpid()}")

    def test_a_notify_socket_that_is_gone_does_not_stop_the_service(self):
        self.serve(["--config", self.write_config(CONFIG)], notify=self.path("nowhere"))
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            self.assertEqual(peer.id, 0)

    def test_when_it_says_ready_every_socket_listens(self):
        for _ in range(5):
            service = self.launch(["--quick", "mailbox", "--size", "64K", "--vectors", "1",
                                   "--slots", "3", "--socket", self.path("sock")]).wait_ready()
            for name in ("sock", "sock.0", "sock.1", "sock.2", "sock.control"):
                ivshmem_peer.connect(self.path(name)).close()
            self.finish(service)


if __name__ == "__main__":
    main()
