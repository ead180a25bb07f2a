# SPDX-License-Identifier: Apache-2.0
"""The host's tools through the command line, and the stock server's options."""

import json
import os
import re
import signal
import subprocess
import threading
import time

from control_peer import ControlPeer, pending_of
from ivshmem_peer import Peer
from service import NOBODY, ConformanceCase, is_socket, main, need_root, program, wait_until

SIZE, EXTENT = 20480, 32768


class ToolCase(ConformanceCase):

    def setUp(self):
        super().setUp()
        self.service = self.serve_quick(slots=4, vectors=2, size="20K")

    def tool(self, *arguments, **options):
        """guestmem share ARGUMENTS --control of the service."""
        return self.run_tool("share", *arguments, "--control", self.path("sock.control"),
                             **options)

    def good(self, *arguments, **options):
        """A tool that must succeed; returns what it prints."""
        result = self.tool(*arguments, **options)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(result.stderr, "")
        return result.stdout

    def bad(self, *arguments, code=1, says=None, **options):
        """A tool that must fail and say why."""
        result = self.tool(*arguments, **options)
        self.assertEqual(result.returncode, code, result.stdout + result.stderr)
        self.assertNotEqual(result.stderr.strip(), "", "the reason is on stderr")
        if says:
            self.assertRegex(result.stderr, says)
        return result

    def join(self, path="sock"):
        peer = Peer(self.path(path), slots=4, vectors=2)
        self.addCleanup(peer.close)
        return peer

    def start_tool(self, *arguments):
        """A tool that goes on; its output goes to a file."""
        output = open(self.path("tool.out"), "wb")
        self.addCleanup(output.close)
        process = subprocess.Popen([program(), "share", *map(str, arguments)],
                                   stdin=subprocess.PIPE, stdout=output, stderr=output)

        def end():
            if process.poll() is None:
                process.kill()
            process.wait()
            process.stdin.close()
        self.addCleanup(end)
        return process

    def tool_output(self):
        with open(self.path("tool.out"), encoding="utf-8") as file:
            return file.read()

    def tool_slot(self):
        """The slot of the tool that has joined, or None."""
        with ControlPeer(self.path("sock.control")) as control:
            slots = [peer["slot"] for peer in control.stat("mailbox")["peers"]
                     if peer["tool"] and peer["state"] == "joined"]
        return slots[0] if slots else None

    def wait_for_tool(self):
        self.assertTrue(wait_until(lambda: self.tool_slot() is not None, 10), self.tool_output())
        return self.tool_slot()


class Looking(ToolCase):

    def test_list_shows_the_share(self):
        self.join()
        self.assertIn("mailbox", self.good("list"))
        listed = json.loads(self.good("list", "--json"))
        self.assertEqual(listed["service"]["pid"], self.service.pid)
        self.assertEqual([(share["name"], share["size"], share["extent"], share["vectors"],
                           share["slots"], share["peers"]) for share in listed["shares"]],
                         [("mailbox", SIZE, EXTENT, 2, 4, 1)])

    def test_stat_shows_who_is_there_and_what_is_pending(self):
        peer = self.join("sock.1")
        peer.kick(2, 1, 5)
        text = self.good("stat", "mailbox")
        self.assertRegex(text, rf"\b{os.getpid()}\b")
        self.assertRegex(text, rf"\b{SIZE}\b|\b20 ?Ki?B?\b")
        self.assertRegex(text, r"\b5\b")
        for _ in range(2):
            stat = json.loads(self.good("stat", "mailbox", "--json"))
            self.assertEqual(pending_of(stat), [[0, 0], [0, 0], [0, 5], [0, 0]])
        self.assertEqual([(entry["slot"], entry["pid"], entry["uid"]) for entry in stat["peers"]],
                         [(1, os.getpid(), os.getuid())])

    def test_the_control_socket_may_come_from_the_environment(self):
        result = self.run_tool("share", "list", environment={
            "GUESTMEM_SHARE_CONTROL": self.path("sock.control")})
        self.assertEqual((result.returncode, "mailbox" in result.stdout), (0, True))

    def test_a_service_that_is_not_there_is_an_error_that_names_the_socket(self):
        result = self.run_tool("share", "list", "--control", self.path("nowhere"))
        self.assertEqual(result.returncode, 1)
        self.assertIn(self.path("nowhere"), result.stderr)

    def test_an_unknown_share_is_an_error_that_names_it(self):
        for arguments in (["stat", "mailbux"], ["read", "mailbux"], ["ring", "mailbux", 0, 0],
                          ["write", "mailbux", "--message", "x"], ["client", "mailbux"],
                          ["wait", "mailbux", 0, "--timeout", "1"],
                          ["send", "mailbux", 0, 0, "--message", "x"]):
            with self.subTest(arguments):
                self.bad(*arguments, says="mailbux")

    def test_wrong_usage_exits_with_2(self):
        for arguments in (["stat"], ["nonsense"], ["ring", "mailbox"], ["ring", "mailbox", "x", 0],
                          ["write", "mailbox"], ["wait", "mailbox"],
                          ["write", "mailbox", "--message", "x", "--file", "/dev/null"],
                          ["write", "mailbox", "--message", "x", "--offset", "-1"],
                          ["wait", "mailbox", 0, "--timeout", "soon"], ["list", "--nonsense"]):
            with self.subTest(arguments):
                self.bad(*arguments, code=2)

    def test_every_command_has_help(self):
        for command in ("serve", "list", "stat", "write", "read", "ring", "wait", "send",
                        "client", "check", "attach-line", "reload", "retire"):
            with self.subTest(command):
                result = self.run_tool("share", command, "--help")
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertIn(command, result.stdout)


class Memory(ToolCase):

    def test_a_written_message_has_a_nul_and_is_read_back(self):
        peer = self.join()
        peer.map()[:20] = b"\xff" * 20
        self.good("write", "mailbox", "--message", "hello world")
        self.assertEqual(peer.map()[:14], b"hello world\0\xff\xff")
        self.assertEqual(self.good("read", "mailbox").rstrip("\n"), "hello world")

    def test_offset_and_length_choose_the_place(self):
        peer = self.join()
        self.good("write", "mailbox", "--message", "deep", "--offset", "8192")
        self.assertEqual(peer.map()[8192:8197], b"deep\0")
        self.assertEqual(self.good("read", "mailbox", "--offset", "8192").rstrip("\n"), "deep")
        self.assertEqual(self.good("read", "mailbox", "--offset", "8193", "--length", "2")
                         .rstrip("\n"), "ee")

    def test_raw_reads_every_byte(self):
        peer = self.join()
        data = bytes(range(256))
        peer.map()[4096:4352] = data
        result = subprocess.run(
            [program(), "share", "read", "mailbox", "--offset", "4096", "--length", "256", "--raw",
             "--control", self.path("sock.control")], capture_output=True, timeout=20, check=True)
        self.assertEqual(result.stdout, data)

    def test_a_file_is_written_as_it_is(self):
        peer = self.join()
        data = os.urandom(5000)
        with open(self.path("data"), "wb") as file:
            file.write(data)
        self.good("write", "mailbox", "--file", self.path("data"), "--offset", "100")
        self.assertEqual(peer.map()[:5102], bytes(100) + data + b"\0\0")

    def test_writing_never_changes_the_size_of_the_memory(self):
        peer = self.join()
        with open(self.path("data"), "wb") as file:
            file.write(b"x" * SIZE)
        sizes, stop = set(), threading.Event()

        def sample():
            while not stop.is_set():
                for _ in range(500):
                    sizes.add(os.fstat(peer.memory).st_size)

        sampler = threading.Thread(target=sample)
        sampler.start()
        try:
            for _ in range(10):
                self.good("write", "mailbox", "--file", self.path("data"))
                self.good("write", "mailbox", "--message", "short")
        finally:
            stop.set()
            sampler.join(10)
        self.assertEqual(sizes, {EXTENT})
        self.assertEqual(peer.map()[6:SIZE], b"x" * (SIZE - 6))

    def test_a_message_that_just_fits_is_written(self):
        peer = self.join()
        self.good("write", "mailbox", "--message", "hello", "--offset", SIZE - 6)
        self.assertEqual(peer.map()[SIZE - 6:SIZE + 1], b"hello\0\0")

    def test_what_does_not_fit_is_refused_whole(self):
        peer = self.join()
        peer.map()[:EXTENT] = b"\xaa" * EXTENT
        with open(self.path("data"), "wb") as file:
            file.write(b"x" * (SIZE + 1))
        for arguments in (["--message", "hello", "--offset", SIZE - 5],
                          ["--message", "hello", "--offset", SIZE],
                          ["--message", "hello", "--offset", EXTENT - 100],
                          ["--message", "hello", "--offset", 2**63 - 1],
                          ["--message", "hello", "--offset", 2**64 - 3],
                          ["--message", "x" * SIZE], ["--file", self.path("data")],
                          ["--file", "/dev/zero"], ["--file", self.path("nothing")]):
            with self.subTest([str(word)[:30] for word in arguments]):
                result = self.tool("write", "mailbox", *arguments, timeout=8)
                self.assertIn(result.returncode, (1, 2), result.stderr)
                self.assertNotEqual(result.stderr, "")
                self.assertEqual(peer.map()[:EXTENT], b"\xaa" * EXTENT)

    def test_reading_past_the_end_is_refused(self):
        for arguments in (["--offset", SIZE + 1], ["--offset", 2**64 - 1],
                          ["--offset", SIZE - 1, "--length", 2], ["--length", SIZE + 1]):
            with self.subTest(arguments):
                result = self.tool("read", "mailbox", *arguments)
                self.assertIn(result.returncode, (1, 2), result.stdout)
                self.assertNotEqual(result.stderr, "")

    def test_reading_memory_without_a_nul_ends_at_the_size(self):
        peer = self.join()
        peer.map()[:EXTENT] = b"z" * EXTENT
        self.assertEqual(self.good("read", "mailbox").rstrip("\n"), "z" * SIZE)

    def test_what_a_guest_wrote_cannot_command_the_terminal(self):
        peer = self.join()
        wrote = b"\x1b[2Jred\x07\x9b1\0"
        peer.map()[:len(wrote)] = wrote
        terminal, inside = os.openpty()
        self.addCleanup(os.close, terminal)
        try:
            subprocess.run([program(), "share", "read", "mailbox", "--control",
                            self.path("sock.control")], stdout=inside, timeout=20, check=True)
        finally:
            os.close(inside)
        shown = os.read(terminal, 4096)
        self.assertIn(b"red", shown)
        for byte in (b"\x1b", b"\x07", b"\x9b"):
            self.assertNotIn(byte, shown)


class Doorbells(ToolCase):

    def test_ring_reaches_one_peer_or_all(self):
        one, two = self.join(), self.join()
        self.good("ring", "mailbox", 1, 1)
        self.assertEqual(two.wait(1), 1)
        self.assertEqual(one.pending(1), 0)
        self.good("ring", "mailbox", "all", 0)
        self.assertEqual((one.wait(0), two.wait(0)), (1, 1))

    def test_ring_to_an_empty_slot_says_so_and_waits(self):
        peer = self.join()
        result = self.tool("ring", "mailbox", 2, 0)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stdout + result.stderr, r"\b2\b")
        self.assertEqual(peer.pending(0, 2), 1)

    def test_ring_out_of_range_is_refused(self):
        peer = self.join()
        for arguments in ((4, 0), (0, 2), (65536, 0), (0, 65536), (-1, 0)):
            with self.subTest(arguments):
                result = self.tool("ring", "mailbox", *arguments)
                self.assertIn(result.returncode, (1, 2), result.stdout)
        self.assertEqual([peer.pending(0), peer.pending(1)], [0, 0])

    def test_send_writes_and_then_rings(self):
        peer = self.join()
        self.good("send", "mailbox", 0, 1, "--message", "hello world")
        self.assertEqual(peer.wait(1), 1)
        self.assertEqual(peer.map()[:12], b"hello world\0")

    def test_send_that_cannot_ring_writes_nothing_and_that_cannot_write_rings_nothing(self):
        peer = self.join()
        result = self.tool("send", "mailbox", 0, 9, "--message", "hello")
        self.assertIn(result.returncode, (1, 2))
        self.assertEqual(peer.map()[:5], bytes(5))
        result = self.tool("send", "mailbox", 0, 0, "--message", "x" * SIZE)
        self.assertIn(result.returncode, (1, 2))
        self.assertEqual(peer.map()[:5], bytes(5))
        self.assertEqual(peer.pending(0), 0)

    def test_wait_ends_with_3_at_its_timeout(self):
        began = time.monotonic()
        result = self.tool("wait", "mailbox", 0, "--timeout", "0.4")
        self.assertEqual(result.returncode, 3, result.stderr)
        self.assertGreaterEqual(time.monotonic() - began, 0.39)

    def test_wait_ends_with_0_at_a_kick_to_its_vector(self):
        peer = self.join()
        process = self.start_tool("wait", "mailbox", 1, "--timeout", "15", "--control",
                                  self.path("sock.control"))
        slot = self.wait_for_tool()
        self.assertEqual(slot, 3, "a tool takes the highest free slot")
        peer.kick(slot, 0)
        time.sleep(0.2)
        self.assertIsNone(process.poll(), "another vector does not count")
        peer.kick(slot, 1)
        self.assertEqual(process.wait(10), 0, self.tool_output())

    def test_wait_for_a_vector_that_is_not_there_is_refused(self):
        result = self.tool("wait", "mailbox", 2, "--timeout", "0.3")
        self.assertIn(result.returncode, (1, 2), result.stdout)

    def test_wait_ends_with_1_when_the_service_ends(self):
        process = self.start_tool("wait", "mailbox", 0, "--timeout", "15", "--control",
                                  self.path("sock.control"))
        self.wait_for_tool()
        self.finish(self.service)
        self.assertEqual(process.wait(10), 1, self.tool_output())

    def test_the_tools_leave_no_slot_taken(self):
        before = self.service.descriptor_count()
        for arguments in (["write", "mailbox", "--message", "x"], ["read", "mailbox"],
                          ["ring", "mailbox", 0, 0], ["send", "mailbox", 0, 0, "--message", "x"]):
            self.tool(*arguments)
        with ControlPeer(self.path("sock.control")) as control:
            wait_until(lambda: not control.stat("mailbox")["peers"])
            self.assertEqual(control.stat("mailbox")["peers"], [])
        self.assertEqual(self.service.settled_descriptor_count(before), before)


class Prompt(ToolCase):

    def prompt(self, *arguments):
        return self.start_tool("client", *arguments)

    def say(self, process, text):
        process.stdin.write(text.encode())
        process.stdin.flush()

    def expect(self, pattern, timeout=10.0):
        found = wait_until(lambda: re.search(pattern, self.tool_output()), timeout)
        self.assertTrue(found, f"{pattern!r} is not in:\n{self.tool_output()}")
        return found

    def end(self, process):
        process.stdin.close()
        self.assertEqual(process.wait(10), 0, self.tool_output())

    def _check_prompt(self, process, own):
        peer = self.join("sock.1")
        self.say(process, "dump\n")
        vectors = r"\n  vector 0 is enabled \(fd=\d+\)\n  vector 1 is enabled \(fd=\d+\)"
        others = "".join(rf"\npeer_id = {peer}{vectors}" for peer in range(4) if peer != own)
        self.expect(rf"our_id = {own}{vectors}{others}\n")
        self.say(process, "int 1 1\n")
        self.assertEqual(peer.wait(1), 1)
        self.say(process, "int 1 all\n")
        self.assertEqual((peer.wait(0), peer.wait(1)), (1, 1))
        self.say(process, "int all\n")
        self.assertEqual((peer.wait(0), peer.wait(1)), (1, 1))
        self.assertEqual((peer.pending(0, own), peer.pending(1, own)), (0, 0), "not itself")
        peer.kick(own, 1)
        self.expect(r"(?i)notification.*vector\W*1")
        self.end(process)

    def test_it_takes_the_stock_commands_through_the_control_socket(self):
        process = self.prompt("mailbox", "--control", self.path("sock.control"))
        self._check_prompt(process, self.wait_for_tool())

    def test_it_takes_the_stock_commands_on_an_ivshmem_socket(self):
        process = self.prompt("-S", self.path("sock.2"))
        self._check_prompt(process, 2)

    def test_commands_are_separated_by_newlines_or_semicolons(self):
        peer = self.join("sock.1")
        process = self.prompt("-S", self.path("sock.0"))
        self.say(process, "int 1 0;int 1 1;;int 1 1\n\n ; \n")
        self.assertEqual(peer.wait(0), 1)
        self.assertTrue(wait_until(lambda: peer.pending(1) == 2))
        self.end(process)

    def test_a_last_command_without_a_newline_is_taken(self):
        peer = self.join("sock.1")
        process = self.prompt("-S", self.path("sock.0"))
        self.say(process, "int 1 0")
        self.end(process)
        self.assertEqual(peer.wait(0), 1)

    def test_help_names_the_commands(self):
        process = self.prompt("-S", self.path("sock.0"))
        self.say(process, "help\n")
        for word in ("dump", r"int <peer> <vector>|int PEER VECTOR|(?i:int.*peer.*vector)",
                     "int all"):
            self.expect(word)
        self.end(process)

    def test_a_wrong_command_is_answered_and_does_not_end_it(self):
        peer = self.join("sock.1")
        process = self.prompt("-S", self.path("sock.0"))
        self.say(process, "nonsense\nint\nint 1\nint 1 x\nint 99 0\nint 1 2\nint 1 -1\n"
                 "int 1 0 0\n" + "x" * 100_000 + "\n")
        self.expect("nonsense")
        self.expect(r"(?i)cannot find peer_id = 99|peer.*99")
        self.say(process, "int 1 0\n")
        self.assertEqual(peer.wait(0), 1)
        self.assertEqual(peer.pending(1), 0)
        self.end(process)

    def test_the_end_of_the_service_is_told(self):
        process = self.prompt("-S", self.path("sock.0"))
        self.say(process, "dump\n")
        self.expect("our_id = 0")
        self.finish(self.service)
        self.expect(r"(?i)disconnected from server|server.*(gone|closed)|service.*ended")
        if process.poll() is None:
            process.stdin.close()
        self.assertIn(process.wait(10), (0, 1))

    def test_a_refusal_is_told_with_its_reason(self):
        self.join("sock.0")
        process = self.prompt("-S", self.path("sock.0"))
        self.assertEqual(process.wait(10), 1)
        self.assertRegex(self.tool_output(), r"(?i)busy|taken|held|in use")

    def test_a_stream_of_a_classic_service_is_understood(self):
        self.serve(["--quick", "old", "--size", "4K", "--vectors", "2", "--slots", "4",
                    "--socket", self.path("classic"), "--ids", "classic"])
        process = self.prompt("-S", self.path("classic"))
        self.say(process, "dump\n")
        self.expect("our_id = 0")
        with Peer(self.path("classic"), vectors=2, ids="classic") as peer:
            time.sleep(0.2)
            self.say(process, "int 1 1\n")
            self.assertEqual(peer.wait(1), 1)
        time.sleep(0.2)
        self.say(process, "int 1 1\n")
        self.expect(r"cannot find peer_id = 1|(?i:peer.*1.*(gone|left|not))")
        self.end(process)


class StockOptions(ConformanceCase):

    def stock(self, *options):
        return self.serve(["-F", "-S", self.path("sock"), *options])

    def stat(self):
        with ControlPeer(self.path("sock.control")) as control:
            shares = control.call("share.list", {})["shares"]
            self.assertEqual(len(shares), 1)
            return control.stat(shares[0]["name"])

    def test_the_line_of_the_zephyr_sample_works(self):
        self.stock("-n", "2", "-l", "4096")
        stat = self.stat()
        self.assertEqual((stat["vectors"], stat["size"], stat["extent"]), (2, 4096, 4096))
        with Peer(self.path("sock"), vectors=2) as peer:
            self.assertEqual(peer.id, 0)
            self.assertEqual(os.fstat(peer.memory).st_size, 4096)

    def test_the_defaults_are_those_of_the_stock_server(self):
        self.stock()
        stat = self.stat()
        self.assertEqual((stat["vectors"], stat["size"]), (1, 4 << 20))

    def test_a_size_is_rounded_up_and_that_is_said(self):
        for size, extent in (("3M", 4 << 20), ("5000", 8192), ("1", 4096)):
            with self.subTest(size=size):
                service = self.stock("-l", size)
                said = [line for line in service.log().splitlines() if "ready:" not in line]
                self.assertTrue([line for line in said if re.search(
                    rf"{extent}|{extent >> 10} ?Ki?B?\b|{extent >> 20} ?Mi?B?\b", line)
                    and re.search("(?i)round", line)], said)
                with Peer(self.path("sock"), vectors=1) as peer:
                    self.assertEqual(os.fstat(peer.memory).st_size, extent)
                self.finish(service)

    def test_m_names_the_share_and_says_that_it_does_no_more(self):
        service = self.stock("-M", "my_shm")
        self.assertEqual(self.stat()["name"], "my_shm")
        said = service.lines("my_shm|-M|/dev/shm")
        self.assertTrue([line for line in said if re.search("(?i)name", line)], service.log())
        self.assertFalse(os.path.exists("/dev/shm/my_shm"))

    def test_fixed_sockets_exist_beside_the_stock_path_when_slots_are_given(self):
        self.stock("-n", "2", "--slots", "4")
        with Peer(self.path("sock.1"), vectors=2) as peer:
            self.assertEqual(peer.id, 1)

    def test_without_f_it_listens_before_it_returns_and_writes_its_pid(self):
        arguments = ["share", "serve", "-S", self.path("sock"), "-p", self.path("pid"), "-n", "2",
                     "-l", "64K"]
        result = self.run_tool(*arguments)
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertTrue(is_socket(self.path("sock")))
        with open(self.path("pid"), encoding="ascii") as file:
            pid = int(file.read())
        self.addCleanup(self._end_daemon, pid)
        with Peer(self.path("sock"), vectors=2) as peer:
            self.assertEqual(peer.id, 0)
            again = self.run_tool(*arguments)
            self.assertEqual(again.returncode, 1, again.stderr)
            self.assertIn(self.path("sock"), again.stderr)
            with open(self.path("pid"), encoding="ascii") as file:
                self.assertEqual(int(file.read()), pid, "the second one leaves the pid file")
        with ControlPeer(self.path("sock.control")) as control:
            self.assertEqual(control.call("share.list", {})["service"]["pid"], pid)
        for number in (0, 1, 2):
            self.assertEqual(os.readlink(f"/proc/{pid}/fd/{number}"), "/dev/null")
        self.assertNotEqual(os.getsid(pid), os.getsid(0))
        os.kill(pid, signal.SIGTERM)
        self.assertTrue(wait_until(lambda: not self._runs(pid), 10))
        self.assertFalse(os.path.lexists(self.path("sock")))

    def _runs(self, pid):
        try:
            with open(f"/proc/{pid}/stat", encoding="ascii") as file:
                return file.read().rsplit(")", 1)[1].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def _end_daemon(self, pid):
        if self._runs(pid):
            os.kill(pid, signal.SIGKILL)

    def test_a_daemon_that_cannot_start_says_so_before_it_returns(self):
        with open(self.path("sock"), "w", encoding="ascii") as file:
            file.write("precious")
        result = self.run_tool("share", "serve", "-S", self.path("sock"), "-p", self.path("pid"))
        self.assertIn(result.returncode, (1, 2))
        self.assertIn(self.path("sock"), result.stderr)
        self.assertFalse(os.path.exists(self.path("pid")))

    def test_wrong_stock_options_are_wrong_usage(self):
        for options in (["-n", "0"], ["-n", "x"], ["-l", "0"], ["-l", "4Q"], ["-l", ""],
                        ["-n", "4294967297"], ["-M", "a/b"], ["-Z"]):
            with self.subTest(options):
                result = self.run_tool("share", "serve", "-F", "-S", self.path("sock"), *options,
                                       timeout=10)
                self.assertEqual(result.returncode, 2, result.stderr)
                self.assertFalse(os.path.lexists(self.path("sock")))


@need_root
class Rights(ConformanceCase):

    def test_another_uid_may_look_and_is_denied_everything_else(self):
        self.open_to_everybody()
        self.serve_config("""
[control]
path = "@/control"
mode = "0666"

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 4
socket = "@/sock"
""")
        with Peer(self.path("sock"), slots=4, vectors=2) as peer:
            def as_nobody(*arguments):
                return self.run_tool("share", *arguments, "--control", self.path("control"),
                                     uid=NOBODY, binary=self.public_program())
            for arguments in (["list"], ["stat", "mailbox"]):
                self.assertEqual(as_nobody(*arguments).returncode, 0, arguments)
            for arguments in (["write", "mailbox", "--message", "x"], ["read", "mailbox"],
                              ["ring", "mailbox", 0, 0], ["client", "mailbox"],
                              ["wait", "mailbox", 0, "--timeout", "1"],
                              ["send", "mailbox", 0, 0, "--message", "x"]):
                with self.subTest(arguments):
                    result = as_nobody(*arguments)
                    self.assertEqual(result.returncode, 1, result.stderr)
                    self.assertRegex(result.stderr, r"(?i)denied|permission|operator|allowed")
            self.assertEqual(peer.pending(0), 0)
            self.assertEqual(peer.map()[0], 0)


if __name__ == "__main__":
    main()
