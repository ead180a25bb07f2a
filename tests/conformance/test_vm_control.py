# SPDX-License-Identifier: Apache-2.0
"""The control protocol of a machine as its document says it, asked by a second implementation, and `guestmem vm`."""

import errno
import json
import mmap
import os
import re
import signal
import socket
import subprocess
import time
import unittest

from control_peer import ControlBroken, ControlError, ControlPeer
from service import NOBODY, ConformanceCase, is_socket, main, need_root, program, run_as, seeded_random, wait_until

# guestmem/vmm/vm_control_test.cpp says what it does: bytes of the serial port become writes and answers.
GUEST = bytes.fromhex(
    "b03ee6e966bafd03eca80174f766baf803ec3c5374163c3f741b3c7074200fb6c8c1e10cfe8100002000eb1a"
    "fe042500000040eb118a042500000040eb0866ba000666ed88e0e6e9ebba")
SHARE_AT = 0x4000_0000
PATIENCE = 60.0
CONFIG = """system {name}
ram 32M
cpu
load {guest}
vdev ioapic
    loc 0xf8000000
    intr apic
    name io
vdev ser8250
    intr io:4
"""


def why_no_kvm():
    try:
        os.close(os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC))
    except OSError as problem:
        return f"/dev/kvm does not open: {problem.strerror}"
    return None


def page_of(key):
    return 0x20_0000 + ord(key) * 4096


def typed(ranges):
    """Those that typed keys have written: the processor itself writes into its page tables, far below."""
    return [one for one in ranges if one[0] >= page_of("\0")]


class Machine:
    """A `guestmem run` whose guest is told what to do by its standard input."""

    def __init__(self, case, name, *words, control=None):
        self.case = case
        self.name = name
        self.control = control or case.path(f"{name}.control")
        guest = case.path("guest")
        with open(guest, "wb") as file:
            file.write(GUEST)
        config = case.write_config(CONFIG.format(name=name, guest=guest), f"{name}.qvmconf")
        self.errors = case.path(f"{name}.errors")
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [program(), "run", config, "--control", self.control, *map(str, words)], stdin=subprocess.PIPE,
                stdout=subprocess.PIPE, stderr=errors, start_new_session=True)
        case.addCleanup(self.end)
        os.set_blocking(self.process.stdout.fileno(), False)
        self.said = b""

    def begin(self):
        self.hear(1)
        return self

    def hear(self, count):
        """What the guest said since the last time, at least so many bytes."""
        def has_enough():
            self.said += self.process.stdout.read() or b""
            return len(self.said) >= count or self.process.poll() is not None
        wait_until(has_enough, PATIENCE)
        if len(self.said) < count:
            with open(self.errors, encoding="utf-8") as errors:
                raise AssertionError(f"the guest said {self.said!r}; errors: {errors.read()}")
        said, self.said = self.said, b""
        return said

    def type(self, keys):
        """Types keys; what the guest says to them."""
        self.process.stdin.write(keys.encode())
        self.process.stdin.flush()
        return self.hear(len(keys))

    def connect(self):
        peer = ControlPeer(self.control, timeout=PATIENCE)
        self.case.addCleanup(peer.close)
        return peer

    def wait_end(self):
        return self.process.wait(PATIENCE)

    def end(self):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()


@unittest.skipIf(why_no_kvm(), why_no_kvm())
class VmCase(ConformanceCase):

    def machine(self, *words, name=None):
        return Machine(self, name or f"ctl-{os.getpid()}", *words).begin()

    def vm(self, verb, machine, *words):
        return self.run_tool("vm", verb, machine.name, *words, "--control", machine.control, timeout=PATIENCE)

    def assert_refused(self, code, peer, call, args=None, number=None):
        with self.assertRaises(ControlError) as refusal:
            peer.call(call, {} if args is None else args)
        self.assertEqual(refusal.exception.code, code, f"{call} {args}")
        if number is not None:
            self.assertEqual(refusal.exception.errno, number)
        return refusal.exception.message


class Calls(VmCase):

    def test_the_vectors_of_the_document(self):
        peer = self.machine().connect()
        with open(os.path.join(os.environ["GUESTMEM_SOURCE"], "docs/protocols/vm-control.md"),
                  encoding="utf-8") as file:
            block = re.search(r"```vectors\n(.*?)```", file.read(), re.DOTALL).group(1)
        lines = block.splitlines()
        self.assertGreater(len(lines), 30)
        for line in lines:
            call, args, wanted = line.split(" | ")
            try:
                peer.call(call, json.loads(args))
                got = "ok"
            except ControlError as problem:
                got = problem.code
            self.assertEqual(got, wanted, line)

    def test_stat_says_who_the_machine_is(self):
        machine = self.machine()
        stat = machine.connect().call("vm.stat")
        self.assertEqual((stat["name"], stat["pid"], stat["state"], stat["memory"], stat["slots"]),
                         (machine.name, machine.process.pid, "running", 32 << 20, 1))
        self.assertEqual(len(stat["processors"]), 1)
        self.assertGreater(stat["processors"][0]["exits"]["io"], 0)
        self.assertIn({"name": "ser8250", "bus": "port", "first": 0x3f8, "count": 8}, stat["devices"])
        self.assertEqual((stat["connections"], stat["plugged"]), ([], []))

    def test_the_guest_stands_between_pause_and_resume(self):
        machine = self.machine()
        peer = machine.connect()
        self.assertEqual(peer.call("vm.pause"), {"state": "paused", "changed": True})
        self.assertEqual(peer.call("vm.pause"), {"state": "paused", "changed": False})
        before = peer.call("vm.stat")["processors"]
        machine.process.stdin.write(b"a")
        machine.process.stdin.flush()
        self.assertEqual(peer.call("vm.stat")["processors"], before)
        self.assertEqual(peer.call("vm.resume"), {"state": "running", "changed": True})
        self.assertEqual(machine.hear(1), b"a")

    def test_stop_answers_and_ends_the_machine(self):
        machine = self.machine()
        peer = machine.connect()
        self.assertEqual(peer.call("vm.stop"), {})
        self.assertEqual(machine.wait_end(), 0)
        self.assertFalse(is_socket(machine.control))

    def test_stop_ends_a_machine_that_is_paused(self):
        machine = self.machine()
        peer = machine.connect()
        peer.call("vm.pause")
        peer.call("vm.stop")
        self.assertEqual(machine.wait_end(), 0)

    def test_the_guest_sees_the_power_button(self):
        machine = self.machine()
        self.assertEqual(machine.type("p"), b"\x00")
        machine.connect().call("vm.power_button")
        self.assertEqual(machine.type("p"), b"\x01")

    def test_the_dirty_log_loses_no_page_when_a_caller_goes(self):
        machine = self.machine()
        first = machine.connect()
        first.call("vm.dirty_log", {"on": True})
        machine.type("acz")
        told = first.call("vm.dirty_harvest", {"limit": 2})
        self.assertEqual((len(told["ranges"]), told["more"]), (2, True))
        first.close()
        machine.type("b")
        second = machine.connect()
        told = second.call("vm.dirty_harvest")
        self.assertEqual(typed(told["ranges"]), [[page_of("a"), 3 * 4096], [page_of("z"), 4096]])
        told = second.call("vm.dirty_harvest", {"confirm": told["ticket"]})
        self.assertEqual((typed(told["ranges"]), told["more"]), ([], False))

    def test_parts_go_on_where_the_last_one_ended(self):
        machine = self.machine()
        peer = machine.connect()
        peer.call("vm.dirty_log", {"on": True})
        machine.type("aceg")
        told = peer.call("vm.dirty_harvest", {"limit": 1})
        ranges = told["ranges"]
        while told["more"]:
            told = peer.call("vm.dirty_harvest", {"limit": 1, "confirm": told["ticket"]})
            self.assertEqual(len(told["ranges"]), 1)
            ranges += told["ranges"]
        self.assertEqual(typed(ranges), [[page_of(key), 4096] for key in "aceg"])
        self.assertEqual(ranges, sorted(ranges))

    def test_a_share_is_plugged_into_a_running_guest(self):
        service = self.serve_quick(size="64K")
        machine = Machine(self, f"ctl-{os.getpid()}", "--share-control", self.path("sock.control")).begin()
        peer = machine.connect()
        plugged = peer.call("vm.attach", {"share": "mailbox", "address": SHARE_AT})
        self.assertEqual((plugged["address"], plugged["size"], plugged["read_only"]), (SHARE_AT, 65536, False))
        regions = peer.call("vm.memory_map")["regions"]
        self.assertEqual([(one["name"], one["backend"], one["address"], one["slot"]) for one in regions],
                         [("ram0", "memory-backend-memfd", 0, 0), ("mailbox", "share", SHARE_AT, 1)])
        self.assertEqual(machine.type("SS"), b"SS")
        with ControlPeer(self.path("sock.control")) as desk:
            _, fd = desk.call_for_fd("share.memory", {"share": "mailbox"})
            with mmap.mmap(fd, 65536, prot=mmap.PROT_READ | mmap.PROT_WRITE) as memory:
                self.assertEqual(memory[0], 2)
                memory[0] = 0x41
                self.assertEqual(machine.type("?"), b"A")
            os.close(fd)
            self.assertEqual([one["slot"] for one in desk.stat("mailbox")["peers"]], [plugged["slot"]])
            self.assert_refused("already_exists", peer, "vm.attach", {"share": "mailbox"})
            self.assertEqual(peer.call("vm.detach", {"share": "mailbox"}), {})
            self.assertEqual(machine.type("?"), b"\xff")
            self.assertEqual(wait_until(lambda: not desk.stat("mailbox")["peers"]), True)
        chosen = peer.call("vm.attach", {"share": "mailbox"})
        self.assertEqual(chosen["address"] % (2 << 20), 0)
        self.assert_refused("not_found", peer, "vm.attach", {"share": "other"})
        self.assertTrue(service.is_alive())


class Hostile(VmCase):

    @need_root
    def test_another_user_is_not_heard(self):
        machine = self.machine()
        self.open_to_everybody()
        self.assertEqual(os.stat(machine.control).st_mode & 0o777, 0o600)
        os.chmod(machine.control, 0o666)

        def ask():
            with ControlPeer(machine.control) as peer:
                try:
                    peer.call("vm.stop")
                    return "it obeyed"
                except ControlError as problem:
                    return f"{problem.code} {problem.errno}"

        self.assertEqual(run_as(NOBODY, ask), f"permission_denied {errno.EACCES}")
        self.assertEqual(machine.type("a"), b"a")

    def test_nonsense_is_an_error_and_the_guest_goes_on(self):
        machine = self.machine()
        random = seeded_random("nonsense")
        lines = [b"", b"null", b"[]", b"{}", b"\xff\xfe", b"{" * 5000, b'{"v":1,"id":1,"call":"vm.stop","args":[]}',
                 b'{"v":2,"id":1,"call":"vm.stop"}', b"x" * 70_000]
        lines += [bytes(random.randrange(256) for _ in range(random.randrange(200))).replace(b"\n", b"")
                  for _ in range(40)]
        for line in lines:
            with ControlPeer(machine.control, timeout=PATIENCE) as peer:
                try:
                    peer.send_raw(line + b"\n")
                    reply, _ = peer.read_reply()
                except (ControlBroken, ConnectionError):
                    continue
                self.assertIn("error", reply, line)
        values = [None, True, -1, 1.5, 2**64, "x", "", [], {}, "a" * 10_000, {"share": {}}, [[]] * 10]
        with ControlPeer(machine.control, timeout=PATIENCE) as peer:
            for call, field in (("vm.attach", "share"), ("vm.detach", "share"), ("vm.dirty_log", "on"),
                                ("vm.memory_map", "from"), ("vm.dirty_harvest", "confirm")):
                for value in values:
                    if call == "vm.dirty_log" and value is True:
                        continue
                    self.assertRaises(ControlError, peer.call, call, {field: value})
            self.assert_refused("unsupported", peer, "vm." + "x" * 40, number=errno.ENOSYS)
        self.assertEqual(machine.type("a"), b"a")

    def test_callers_that_do_not_read_or_send_descriptors_harm_nobody(self):
        machine = self.machine()
        mute = []
        for _ in range(4):
            peer = machine.connect()
            peer.sock.settimeout(1.0)
            try:
                for _ in range(200):
                    peer.send_raw(b'{"v":1,"id":1,"call":"vm.stat"}\n')
            except OSError:
                pass
            mute.append(peer)
        sender = machine.connect()
        sender.send_raw(b'{"v":1,"id":1,"call":"vm.stat"}\n', fds=[0])
        self.assertTrue(sender.is_closed())
        self.assertEqual(machine.connect().call("vm.stat")["state"], "running")
        self.assertEqual(machine.type("a"), b"a")


class Tools(VmCase):

    def test_a_machine_is_looked_at_paused_and_ended(self):
        machine = self.machine()
        stat = self.vm("stat", machine)
        self.assertEqual(stat.returncode, 0, stat.stderr)
        self.assertIn(f"machine  {machine.name}, pid {machine.process.pid}, running\n", stat.stdout)
        self.assertEqual(json.loads(self.vm("stat", machine, "--json").stdout)["pid"], machine.process.pid)
        self.assertIn("memory-backend-memfd", self.vm("map", machine).stdout)
        self.assertEqual(json.loads(self.vm("map", machine, "--json").stdout)["regions"][0]["size"], 32 << 20)
        self.assertEqual(self.vm("pause", machine).stdout, "paused\n")
        self.assertEqual(self.vm("pause", machine).stdout, "paused already\n")
        self.assertEqual(json.loads(self.vm("resume", machine, "--json").stdout),
                         {"state": "running", "changed": True})
        self.assertEqual(self.vm("power-button", machine).returncode, 0)
        self.assertEqual(machine.type("p"), b"\x01")
        stopped = self.vm("stop", machine)
        self.assertEqual((stopped.returncode, stopped.stderr), (0, ""))
        self.assertEqual(machine.wait_end(), 0)
        gone = self.vm("stat", machine)
        self.assertEqual(gone.returncode, 1)
        self.assertIn(f"no machine '{machine.name}' runs", gone.stderr)

    def test_dirty_prints_each_page_once(self):
        machine = self.machine()
        self.assertEqual(self.vm("dirty", machine, "harvest").returncode, 1)
        self.assertEqual(self.vm("dirty", machine, "on").returncode, 0)
        machine.type("ad")
        lines = [line.split() for line in self.vm("dirty", machine, "harvest").stdout.splitlines()]
        self.assertEqual(typed([[int(first, 16), int(count)] for first, count in lines]),
                         [[page_of(key), 4096] for key in "ad"])
        machine.type("d")
        for wanted in ([[page_of("d"), 4096]], []):
            told = json.loads(self.vm("dirty", machine, "harvest", "--json").stdout)
            self.assertEqual(typed(told["ranges"]), wanted)
        self.assertEqual(self.vm("dirty", machine, "off").returncode, 0)

    def test_a_share_is_attached_and_detached(self):
        self.serve_quick(size="64K")
        machine = Machine(self, f"ctl-{os.getpid()}", "--share-control", self.path("sock.control")).begin()
        done = self.vm("attach", machine, "mailbox", "--at", hex(SHARE_AT))
        self.assertEqual(done.stdout, "mailbox is at 0x40000000, 65536 bytes (64K), slot 3\n", done.stderr)
        machine.type("S")
        self.assertIn("mailbox, by an operator, 64K at 0x40000000, slot 3", self.vm("stat", machine).stdout)
        self.assertEqual(self.vm("detach", machine, "mailbox").returncode, 0)
        self.assertEqual(self.vm("detach", machine, "mailbox").returncode, 1)

    def test_wrong_words_are_told(self):
        machine = self.machine()
        self.assertEqual(self.vm("attach", machine, "mailbox", "--at", "-1").returncode, 2)
        self.assertEqual(self.vm("dirty", machine, "perhaps").returncode, 2)
        self.assertEqual(self.run_tool("vm", "stat").returncode, 2)
        self.assertEqual(self.run_tool("vm", "fly").returncode, 2)
        for verb in ("list", "stat", "map", "pause", "resume", "stop", "power-button", "attach", "detach", "dirty"):
            self.assertIn("Exit codes: 0 done, 1 ", self.run_tool("vm", verb, "--help").stdout, verb)
        for name in ("../x", "a/b", "..", ""):
            refused = self.run_tool("vm", "stop", name)
            self.assertEqual(refused.returncode, 1, name)
            self.assertIn("no name of a machine", refused.stderr)

    def test_a_socket_that_is_served_is_not_taken(self):
        machine = self.machine()
        other = Machine(self, f"other-{os.getpid()}", control=machine.control)
        self.assertEqual(other.wait_end(), 64)
        self.assertEqual(machine.connect().call("vm.stat")["name"], machine.name)

    def test_a_machine_that_does_not_answer_is_a_matter_of_time(self):
        machine = self.machine()
        os.kill(machine.process.pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            late = self.run_tool("vm", "stat", machine.name, "--control", machine.control, timeout=PATIENCE)
            self.assertEqual(late.returncode, 3, late.stderr)
            self.assertGreater(time.monotonic() - began, 5)
        finally:
            os.kill(machine.process.pid, signal.SIGCONT)


class List(VmCase):
    """In the folder where machines are looked for: that of this user."""

    def setUp(self):
        super().setUp()
        self.environment = {"XDG_RUNTIME_DIR": self.directory}
        self.folder = "/run/guestmem" if os.geteuid() == 0 else self.path("guestmem")
        if not os.path.isdir(self.folder):
            os.mkdir(self.folder)

    def listed(self):
        done = self.run_tool("vm", "list", "--json", environment=self.environment, timeout=PATIENCE)
        self.assertEqual(done.returncode, 0, done.stderr)
        return {one["name"]: one for one in json.loads(done.stdout)["vms"]}

    def socket_of(self, name):
        return os.path.join(self.folder, f"vm-{name}.control")

    def test_machines_that_run_are_listed_and_killed_ones_are_cleared_away(self):
        name = f"listed-{os.getpid()}"
        machine = Machine(self, name, control=self.socket_of(name)).begin()
        self.assertEqual(self.listed()[name], {"name": name, "pid": machine.process.pid, "state": "running",
                                               "memory": 32 << 20})
        machine.connect().call("vm.pause")
        line = self.run_tool("vm", "list", environment=self.environment).stdout
        self.assertRegex(line, rf"(?m)^{name} +{machine.process.pid} paused +32M$")
        machine.process.kill()
        machine.wait_end()
        self.assertTrue(is_socket(self.socket_of(name)))
        self.assertNotIn(name, self.listed())
        self.assertFalse(is_socket(self.socket_of(name)))

    def test_what_is_no_machines_socket_is_left_alone(self):
        name = f"file-{os.getpid()}"
        others = [self.socket_of(name), os.path.join(self.folder, f"vm-{name}.share")]
        self.addCleanup(lambda: [os.remove(path) for path in others if os.path.lexists(path)])
        with open(others[0], "wb"):
            pass
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(others[1])
        self.assertNotIn(name, self.listed())
        self.assertTrue(all(os.path.lexists(path) for path in others))

    def test_one_that_does_not_answer_is_listed_as_such(self):
        name = f"mute-{os.getpid()}"
        self.addCleanup(lambda: os.path.lexists(self.socket_of(name)) and os.remove(self.socket_of(name)))
        with socket.socket(socket.AF_UNIX) as mute:
            mute.bind(self.socket_of(name))
            mute.listen()
            self.assertEqual(self.listed()[name], {"name": name, "state": "no answer"})
            self.assertTrue(is_socket(self.socket_of(name)))


if __name__ == "__main__":
    main()
