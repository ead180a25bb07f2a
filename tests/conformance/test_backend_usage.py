# SPDX-License-Identifier: Apache-2.0
"""`guestmem backend usage` against a reader of smaps of its own: of this process, of a real QEMU by its number and by
its QMP socket; and against sockets whose owner means harm."""

import contextlib
import ctypes
import fcntl
import json
import mmap
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

PROGRAM = os.environ["GUESTMEM"]
QEMU = shutil.which("qemu-system-x86_64")
KIB = 1024
MIB = 1024 * KIB
PAGE = 4096

GREETING = {"QMP": {"version": {"qemu": {"micro": 0, "minor": 1, "major": 9}, "package": ""}, "capabilities": ["oob"]}}
HEAD = f"{'Block Name':>24} {'PSize':>8}  {'Offset':>18} {'Used':>18} {'Total':>18} {'HVA':>18} {'RO':>3}\r\n"


def usage(*words, **options):
    return subprocess.run([PROGRAM, "backend", "usage", *map(str, words)], capture_output=True, text=True, check=False,
                          timeout=30, **options)


def said(*words):
    done = usage(*words, "--json")
    assert done.returncode == 0, done
    return json.loads(done.stdout)


def smaps(pid):
    """(first address, size, permissions, rest of the head, {key: bytes}) of each mapping."""
    found = []
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if head := re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \d+ *(.*)\n", line):
                base, behind = int(head[1], 16), int(head[2], 16)
                found.append((base, behind - base, head[3], head[4], {}))
            elif value := re.match(r"(\w+): +(\d+) kB\n", line):
                found[-1][4][value[1]] = int(value[2]) * KIB
    return found


def expected(facts, size):
    """The figures of a mapping without huge pages of hugetlbfs."""
    return {
        "mapped_bytes": size,
        "resident_bytes": facts["Rss"],
        "shared_bytes": facts["Shared_Clean"] + facts["Shared_Dirty"],
        "private_bytes": facts["Private_Clean"] + facts["Private_Dirty"],
        "proportional_bytes": facts["Pss"],
        "swapped_bytes": facts["Swap"],
        "huge_bytes": facts["AnonHugePages"] + facts["ShmemPmdMapped"] + facts["FilePmdMapped"],
        "file_bytes": facts["Rss"] - facts["Anonymous"],
        "anonymous_bytes": facts["Anonymous"],
        "untouched_bytes": max(size - facts["Rss"] - facts["Swap"], 0),
        "is_exact": True,
    }


def address_of(mapping):
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))


class UsageCase(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory(prefix="gm-usage-")
        self.addCleanup(folder.cleanup)
        self.folder = folder.name

    def path(self, name):
        return os.path.join(self.folder, name)

    def assert_row(self, row, found):
        """A row of the JSON says what smaps says of the mapping at its address."""
        [(_, size, permissions, _, facts)] = [one for one in found if one[0] == row["address"]]
        self.assertEqual({key: row[key] for key in expected(facts, size)}, expected(facts, size), row["name"])
        self.assertEqual(row["permissions"], permissions)

    def assert_total(self, answer):
        for key, value in answer["total"].items():
            if key.endswith("_bytes"):
                self.assertEqual(value, sum(row[key] for row in answer["rows"]), key)

    def assert_fails(self, done, code, *words):
        self.assertEqual((done.returncode, done.stdout), (code, ""), done)
        self.assertRegex(done.stderr, r"\Aguestmem: [ -~]+\n\Z")
        for word in words:
            self.assertIn(word, done.stderr)


@contextlib.contextmanager
def huge_pages(count):
    """Some huge pages of 2 MiB more; yields whether there are. Tests that run at the same time take turns."""
    path = "/sys/kernel/mm/hugepages/hugepages-2048kB/"
    with contextlib.ExitStack() as undo:
        try:
            lock = undo.enter_context(open("/tmp/guestmem-huge-pages.lock", "a", encoding="ascii"))
            fcntl.flock(lock, fcntl.LOCK_EX)
            pool = undo.enter_context(open(path + "nr_hugepages", "r+", encoding="ascii", buffering=1))
            before = int(pool.read())
            pool.write(f"{before + count}\n")
            undo.callback(pool.write, f"{before}\n")
            with open(path + "free_hugepages", encoding="ascii") as free:
                is_there = int(free.read()) >= count
        except OSError:
            is_there = False
        yield is_there


class Holder:
    """A process that maps what a guest's memory may be, and sleeps."""

    SCRIPT = """
import mmap, os, sys
folder = sys.argv[1]
def touched(mapping, pages):
    for page in range(pages):
        mapping[page * 4096] = 1
    return mapping
memfd = os.memfd_create("guest ram")
os.ftruncate(memfd, 1 << 20)
def private(size, advice):
    # The advice keeps it apart from other anonymous memory.
    mapping = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapping.madvise(mmap.MADV_NOHUGEPAGE)
    mapping.madvise(advice)
    return touched(mapping, 5)
kept = [
    private(32 << 20, mmap.MADV_DONTDUMP),
    private(2 << 20, mmap.MADV_DONTFORK),
    touched(mmap.mmap(-1, 3 << 20, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS), 6),
    touched(mmap.mmap(memfd, 1 << 20), 7),
]
for name in ("a\\nb", "gone"):
    with open(folder + "/" + name, "w+b") as file:
        file.truncate(20 << 20)
        kept.append(touched(mmap.mmap(file.fileno(), 20 << 20, mmap.MAP_PRIVATE), 8))
        kept.append(mmap.mmap(file.fileno(), 64 << 10, mmap.MAP_SHARED, mmap.PROT_READ))
os.unlink(folder + "/gone")
print(flush=True)
sys.stdin.read()
"""

    def __init__(self, folder):
        self.process = subprocess.Popen([shutil.which("python3"), "-c", self.SCRIPT, folder], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
        assert self.process.stdout.readline() == b"\n"
        self.pid = self.process.pid

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait(timeout=30)


class OfAProcess(UsageCase):
    def setUp(self):
        super().setUp()
        self.holder = Holder(self.folder)
        self.addCleanup(self.holder.close)

    def test_the_rule_shows_what_may_be_a_guests(self):
        answer = said(self.holder.pid)
        self.assertEqual((answer["pid"], answer["rule"]), (self.holder.pid, "guest memory"))
        names = sorted(row["name"].replace(self.folder, "") for row in answer["rows"])
        self.assertEqual(names, ["/a\nb", "/gone (deleted)", "anonymous", "memfd:guest ram", "shared anonymous"])
        found = smaps(self.holder.pid)
        for row in answer["rows"]:
            self.assert_row(row, found)
        self.assert_total(answer)

    def test_pages_are_counted_as_what_they_are(self):
        rows = {(row["name"].replace(self.folder, ""), row["permissions"]): row
                for row in said(self.holder.pid, "--min", "64K")["rows"]}
        self.assertEqual(rows["memfd:guest ram", "rw-s"]["file_bytes"], 7 * PAGE)
        self.assertEqual(rows["shared anonymous", "rw-s"]["file_bytes"], 6 * PAGE)
        self.assertEqual(rows["/gone (deleted)", "rw-p"]["anonymous_bytes"], 8 * PAGE)
        self.assertEqual(rows["/a\nb", "rw-p"]["anonymous_bytes"], 8 * PAGE)
        self.assertEqual(rows["/a\nb", "r--s"]["resident_bytes"], 0)

    def test_min_is_the_least_size_of_what_nobody_else_is_shown(self):
        def sizes(least):
            return {row["mapped_bytes"] for row in said(self.holder.pid, "--min", least)["rows"]}
        self.assertTrue({2 * MIB, 32 * MIB} <= sizes("2M"))
        self.assertTrue({2 * MIB, 64 * KIB} <= sizes("64K"))
        self.assertFalse({2 * MIB, 64 * KIB} & sizes("2049K"))
        self.assertEqual(sizes("1G"), {MIB, 3 * MIB}, "what is shared and writable always is")

    def test_all_shows_every_mapping(self):
        answer = said(self.holder.pid, "--all")
        found = smaps(self.holder.pid)
        self.assertEqual(answer["rule"], "all mappings")
        self.assertEqual(answer["total"]["mapped_bytes"], sum(one[1] for one in found))
        self.assertEqual(answer["total"]["resident_bytes"], sum(one[4]["Rss"] for one in found))
        self.assertIn("[stack]", [row["name"] for row in answer["rows"]])

    def test_pages_of_hugetlbfs_are_counted(self):
        with huge_pages(3) as is_there:
            if not is_there:
                self.skipTest("this machine has no huge pages to give")
            memfd = os.memfd_create("huge", os.MFD_HUGETLB | os.MFD_HUGE_2MB)
            os.ftruncate(memfd, 6 * MIB)
            with mmap.mmap(memfd, 6 * MIB) as mapping:
                os.close(memfd)
                mapping[0] = mapping[3 * MIB] = 1
                [row] = [row for row in said(os.getpid())["rows"] if row["name"] == "memfd:huge"]
        figures = {key: value for key, value in row.items() if value and key.endswith("_bytes")}
        self.assertEqual(figures, {"mapped_bytes": 6 * MIB, "resident_bytes": 4 * MIB, "private_bytes": 4 * MIB,
                                   "proportional_bytes": 4 * MIB, "huge_bytes": 4 * MIB, "file_bytes": 4 * MIB,
                                   "untouched_bytes": 2 * MIB, "page_bytes": 2 * MIB})

    def test_the_table_has_sizes_for_people_and_a_total(self):
        done = usage(self.holder.pid)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        lines = done.stdout.splitlines()
        self.assertEqual(lines[0], f"process {self.holder.pid}: guest memory")
        self.assertEqual(lines[1].split(), "MAP MAPPED RESIDENT SHARED PRIVATE PSS SWAPPED HUGE FILE ANON UNTOUCHED "
                                           "NAME".split())
        [memfd] = [line for line in lines if "memfd:" in line]
        self.assertEqual(memfd.split(maxsplit=11),
                         ["rw-s", "1M", "28K", "0", "28K", "28K", "0", "0", "28K", "0", "996K", "memfd:guest ram"])
        self.assertTrue(lines[-1].endswith(" total"))
        self.assertIn(r"a\x0ab", done.stdout, "a line end in a name is none of the table")

    def test_a_process_that_is_not_there_is_an_error(self):
        self.assert_fails(usage(2**22 + 1), 1, "there is no such process")
        self.assert_fails(usage(0), 1, "there is no such process")
        self.assert_fails(usage(2**70), 1, "there is no such process")
        zombie = subprocess.Popen(["true"])
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        self.assert_fails(usage(zombie.pid), 1, f"process {zombie.pid}: it ")
        zombie.wait()

    def test_somebody_elses_process_is_an_error_that_says_what_is_needed(self):
        if os.geteuid() != 0:
            self.skipTest("only root can become another user")
        program = shutil.copy(PROGRAM, self.path("guestmem"))
        os.chmod(self.folder, 0o755)
        done = subprocess.run([program, "backend", "usage", str(self.holder.pid)], capture_output=True, text=True,
                              check=False, user=65534, group=65534, extra_groups=[])
        self.assert_fails(done, 1, "root (CAP_SYS_PTRACE)")

    def test_wrong_words_are_told(self):
        for words in ((), (self.holder.pid, "--min", "x"), (self.holder.pid, 1), (self.holder.pid, "--mine")):
            done = usage(*words)
            self.assertEqual((done.returncode, done.stdout), (2, ""), done)
            self.assertTrue(done.stderr.startswith("guestmem: "))

    def test_help_has_an_example_and_the_exit_codes(self):
        done = usage("--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("guestmem backend usage 4711", done.stdout)
        self.assertIn("Exit codes:", done.stdout)


@unittest.skipUnless(QEMU, "there is no qemu-system-x86_64")
class OfQemu(UsageCase):
    def setUp(self):
        super().setUp()
        self.socket = self.path("qmp")
        with open(self.path("dimm"), "wb") as file:
            file.write(b"x" * 8 * MIB)
        self.process = subprocess.Popen([
            QEMU, "-machine", "pc,accel=tcg,memory-backend=ram0", "-m", "64M,slots=3,maxmem=1G", "-nodefaults",
            "-display", "none", "-S", "-qmp", f"unix:{self.socket},server=on,wait=off",
            "-object", "memory-backend-memfd,id=ram0,size=64M",
            "-object", f"memory-backend-file,id=dimm0,size=8M,share=on,mem-path={self.path('dimm')}",
            "-device", "pc-dimm,memdev=dimm0",
            "-object", "memory-backend-ram,id=full,size=6M,prealloc=on", "-device", "pc-dimm,memdev=full",
            "-object", "memory-backend-memfd,id=idle,size=5M"])
        self.addCleanup(self.end)
        for _ in range(300):
            # It listens and greets before its memory is whole, and answers after.
            with contextlib.suppress(ConnectionRefusedError, FileNotFoundError):
                self.tell()
                return
            time.sleep(0.1)
        self.fail("QEMU does not listen")

    def end(self):
        self.process.kill()
        self.process.wait(timeout=30)

    def tell(self, *human):
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(self.socket)
            lines = stream.makefile("rw")
            self.assertIn("QMP", json.loads(lines.readline()))
            commands = [("qmp_capabilities", {})]
            commands += [("human-monitor-command", {"command-line": command}) for command in human]
            for command, arguments in commands:
                print(json.dumps({"execute": command, "arguments": arguments}), file=lines, flush=True)
                self.assertIn("return", json.loads(lines.readline()))

    def is_old(self):
        """Whether its list of RAM blocks has no addresses."""
        version = subprocess.run([QEMU, "--version"], capture_output=True, text=True, check=True).stdout
        major, minor = re.search(r"version (\d+)\.(\d+)", version).groups()
        return (int(major), int(minor)) < (8, 1)

    def test_its_socket_names_the_ram_blocks(self):
        answer = said(self.socket)
        self.assertEqual((answer["pid"], answer["rule"]), (self.process.pid, "RAM blocks"))
        rows = {row["name"]: row for row in answer["rows"]}
        sizes = {name: rows[name]["mapped_bytes"] for name in ("ram0", "dimm0", "full", "idle")}
        self.assertEqual(sizes, {"ram0": 64 * MIB, "dimm0": 8 * MIB, "full": 6 * MIB, "idle": 5 * MIB})
        for name in sizes:
            self.assertEqual(rows[name]["backend"], name)
        self.assertEqual([name for name in sizes if rows[name]["is_placed_by_size"]],
                         ["idle"] if self.is_old() else [])
        self.assertEqual((rows["pc.bios"]["backend"], rows["pc.bios"]["mapped_bytes"]), ("", 256 * KIB))
        self.assertEqual(rows["full"]["anonymous_bytes"], 6 * MIB)
        found = smaps(self.process.pid)
        for name in (*sizes, "pc.bios"):
            self.assert_row(rows[name], found)
        self.assert_total(answer)

    def test_its_number_shows_the_same_bytes(self):
        blocks = said(self.socket)["rows"]
        self.process.send_signal(signal.SIGSTOP)  # else its threads need more stack meanwhile
        by_pid = {row["address"]: row for row in said(self.process.pid, "--min", "1M")["rows"]}
        for row in blocks:
            if row["backend"]:
                same = by_pid[row["address"]]
                self.assertEqual({key: same[key] for key in same if key.endswith("_bytes")},
                                 {key: row[key] for key in row if key.endswith("_bytes")})
        found = smaps(self.process.pid)
        for row in by_pid.values():
            self.assert_row(row, found)

    def test_pages_that_somebody_else_maps_too_are_shared(self):
        self.tell("xp /1xb 0x100000000")  # reads where the first DIMM is: QEMU has its page
        row = {row["name"]: row for row in said(self.socket)["rows"]}["dimm0"]
        self.assertGreater(row["private_bytes"], 0)
        self.assertEqual((row["shared_bytes"], row["file_bytes"]), (0, row["resident_bytes"]))
        with open(self.path("dimm"), "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
            self.assertEqual(mapping[0:8 * MIB:PAGE], b"x" * (8 * MIB // PAGE))
            row = {row["name"]: row for row in said(self.socket)["rows"]}["dimm0"]
            self.assertEqual((row["shared_bytes"], row["private_bytes"]), (row["resident_bytes"], 0))
            self.assert_row(row, smaps(self.process.pid))

    def test_what_has_no_address_is_told(self):
        done = usage(self.socket)
        self.assertEqual(done.returncode, 0)
        unplaced = said(self.socket)["unplaced"]
        self.assertEqual(bool(done.stderr), bool(unplaced))
        for block in unplaced:
            self.assertIn(f"'{block['name']}'", done.stderr)
            self.assertLess(block["size_bytes"], MIB)

    def test_while_another_client_is_there_the_rule_of_processes_is_used(self):
        with socket.socket(socket.AF_UNIX) as other:
            other.connect(self.socket)
            self.assertIn(b"QMP", other.recv(4096))
            answer = said(self.socket)
        self.assertEqual((answer["pid"], answer["rule"]), (self.process.pid, "guest memory"))
        self.assertIn("memfd:memory-backend-memfd", [row["name"] for row in answer["rows"]])

    def test_all_needs_no_qmp(self):
        self.process.send_signal(signal.SIGSTOP)
        answer = said(self.socket, "--all")
        self.process.send_signal(signal.SIGCONT)
        self.assertEqual((answer["pid"], answer["rule"]), (self.process.pid, "all mappings"))


class Peer:
    """A listening socket of this process; `talk` gets each connection."""

    def __init__(self, path, talk):
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(path)
        self.listener.listen(1)
        self.talk = talk
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        with contextlib.suppress(OSError):
            stream, _ = self.listener.accept()
            with stream:
                stream.settimeout(20)
                self.talk(stream)

    def close(self):
        self.listener.close()
        self.thread.join(timeout=30)


def wait_for_the_end(stream):
    while stream.recv(65536):
        pass


def qmp(answers):
    """A talk: greets, and answers the commands in turn with what `answers` has for them (bytes, or the return)."""
    def talk(stream):
        lines = stream.makefile("rwb")
        lines.write(json.dumps(GREETING).encode() + b"\r\n")
        lines.flush()
        for line in lines:
            request = json.loads(line)
            name = request.get("arguments", {}).get("command-line", request["execute"])
            answer = answers.get(name, {})
            if not isinstance(answer, bytes):
                answer = json.dumps({"return": answer, "id": request["id"]}).encode() + b"\r\n"
            lines.write(answer)
            lines.flush()
    return talk


def block(name, size, address, used=0x1000):
    return f"{name:>24} {'4 KiB':>8}  {0:#018x} {used:#018x} {size:#018x} {address:#018x} {'rw':>3}\r\n"


class OfSockets(UsageCase):
    def ask(self, talk, *words):
        path = self.path(f"socket{len(os.listdir(self.folder))}")
        peer = Peer(path, talk)
        begin = time.monotonic()
        try:
            done = usage(path, *words)
        finally:
            peer.close()
        self.assertLess(time.monotonic() - begin, 12)
        return done

    def assert_process_rule(self, done):
        self.assertEqual((done.returncode, done.stderr), (0, ""), done)
        answer = json.loads(done.stdout)
        self.assertEqual((answer["pid"], answer["rule"]), (os.getpid(), "guest memory"))

    def test_a_socket_that_is_none_is_an_error(self):
        with open(self.path("file"), "w", encoding="utf-8"):
            pass
        self.assert_fails(usage(self.path("file")), 1, "is no socket")
        self.assert_fails(usage(self.folder), 1, "is no socket")
        self.assert_fails(usage(self.path("none")), 1, "there is no such socket")
        self.assert_fails(usage(self.path("a\x1b[2J")), 1, r"a\x1b[2J")
        self.assert_fails(usage(""), 1, "there is no such socket")
        os.mkfifo(self.path("pipe"))
        self.assert_fails(usage(self.path("pipe")), 1, "connect to")
        with socket.socket(socket.AF_UNIX) as stale:
            stale.bind(self.path("stale"))
        self.assert_fails(usage(self.path("stale")), 1, "Connection refused")

    def test_who_is_no_qemu_is_shown_as_a_process(self):
        kept = mmap.mmap(-1, 24 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        self.addCleanup(kept.close)
        read_end, write_end = os.pipe()
        talks = {
            "silent": wait_for_the_end,
            "gone": lambda stream: None,
            "binary": lambda stream: (stream.send(bytes(256)), wait_for_the_end(stream)),
            "descriptors": lambda stream: (socket.send_fds(stream, [bytes(8)], [read_end, write_end]),
                                           wait_for_the_end(stream)),
            "other JSON": lambda stream: (stream.send(b'{"hello": 1}\n'), wait_for_the_end(stream)),
            "no JSON": lambda stream: (stream.send(b'{"QMP": \n'), wait_for_the_end(stream)),
            "no end": lambda stream: (stream.send(b'{"QMP": '), wait_for_the_end(stream)),
            "no end, gone": lambda stream: stream.send(b'{"QMP": '),
            "endless": flood,
        }
        for name, talk in talks.items():
            with self.subTest(name):
                self.assert_process_rule(self.ask(talk, "--json"))
        os.close(read_end)
        os.close(write_end)

    def test_the_share_service_is_shown_as_a_process(self):
        path = self.path("mailbox")
        service = subprocess.Popen([PROGRAM, "share", "serve", "--quick", "mailbox", "--size", "4M", "--socket", path],
                                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while not os.path.exists(path + ".control"):
                self.assertIsNone(service.poll())
                time.sleep(0.05)
            for name in (path, path + ".control"):
                answer = said(name)
                self.assertEqual((answer["pid"], answer["rule"]), (service.pid, "guest memory"))
        finally:
            service.terminate()
            service.wait(timeout=30)

    def test_a_full_queue_ends_in_time(self):
        with socket.socket(socket.AF_UNIX) as listener, contextlib.ExitStack() as clients:
            listener.bind(self.path("full"))
            listener.listen(0)
            for _ in range(8):
                client = clients.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(self.path("full"))
            self.assert_fails(usage(self.path("full")), 3, "nobody takes connections")

    def test_a_qemu_that_tells_addresses_is_believed_when_they_are_mapped(self):
        kept = mmap.mmap(-1, 4 * MIB, mmap.MAP_SHARED | mmap.MAP_ANONYMOUS)
        for page in range(9):
            kept[page * PAGE] = 1
        table = HEAD + block("/objects/ram0", 4 * MIB, address_of(kept)) + block("bad\x1b[2J", MIB, address_of(kept))
        backends = [{"id": "ram0", "size": 4 * MIB}, {"size": MIB}]
        talk = qmp({"info ramblock": table, "query-memdev": backends})
        answer = json.loads(self.ask(talk, "--json").stdout)
        ram, part = answer["rows"]
        self.assertEqual((ram["name"], ram["backend"], answer["unplaced"]), ("/objects/ram0", "ram0", []))
        self.assert_row(ram, smaps(os.getpid()))
        self.assertEqual(ram["file_bytes"], 9 * PAGE)
        self.assertEqual((part["is_exact"], part["mapped_bytes"]), (False, MIB))
        done = self.ask(talk)
        self.assertIn(r"~ bad\x1b[2J", done.stdout)
        self.assertIn("  /objects/ram0 ram0\n", done.stdout)

    def test_an_older_qemu_that_lies_about_addresses_is_not_believed(self):
        table = HEAD.replace("HVA", "").replace("RO", "") + block("ram0", MIB, 0).replace("0x0000000000000000  rw", "")
        tree = ('FlatView #0\r\n AS "memory", root: system\r\n'
                "  0000000000000000-00000000000fffff (prio 0, ram): ram0\r\n")
        for host in ("0x1000", "0x0", "0xffffffffffffffff", "0xfffffffffffff000", "0x7fffffffffff"):
            with self.subTest(host):
                done = self.ask(qmp({"info ramblock": table, "query-memdev": [], "info mtree -f": tree,
                                     "gpa2hva 0x0": f"Host virtual address for 0x0 (ram0) is {host}\r\n"}))
                self.assert_fails(done, 1, "does not have it at")
        for text in ("No memory is mapped at address 0x0\r\n", "Host virtual address for 0x0 (ram1) is 0x1000\r\n",
                     "Host virtual address for 0x0 (ram0) is x\r\n", "", "\x1b[2J"):
            with self.subTest(text):
                done = self.ask(qmp({"info ramblock": table, "query-memdev": [], "info mtree -f": tree,
                                     "gpa2hva 0x0": text}), "--json")
                self.assertEqual(json.loads(done.stdout)["unplaced"],
                                 [{"name": "ram0", "backend": "", "size_bytes": MIB}], done)

    def test_a_qemu_that_breaks_the_protocol_is_an_error(self):
        good = HEAD + block("ram0", MIB, 0x1000)
        deep = b"[" * 100000 + b"\r\n"
        answers = {
            "closes": {"qmp_capabilities": b""},
            "no JSON": {"qmp_capabilities": b"{\r\n"},
            "a list": {"qmp_capabilities": b"[]\r\n"},
            "deep": {"qmp_capabilities": deep},
            "bytes": {"qmp_capabilities": b"\xff\xfe\0\x1b[2J\r\n"},
            "an error": {"qmp_capabilities": b'{"error": {"class": "x", "desc": "\\u001b[2J"}, "id": 1}\r\n'},
            "another id": {"qmp_capabilities": b'{"return": {}, "id": 7}\r\n'},
            "no id": {"qmp_capabilities": b'{"return": {}}\r\n'},
            "events": {"qmp_capabilities": b'{"event": "STOP"}\r\n' * 300000},
            "one line": {"qmp_capabilities": b"x" * 5 * MIB},
            "a number": {"info ramblock": 7},
            "no table": {"info ramblock": "unknown command\r\n"},
            "an empty text": {"info ramblock": ""},
            "a torn line": {"info ramblock": HEAD + "ram0 4 KiB 0x0 0x0\r\n"},
            "a text as a size": {"info ramblock": HEAD + "ram0 4 KiB 0x0 0x0 0xz 0x0 rw\r\n"},
            "a size beyond 2^64": {"info ramblock": HEAD + "ram0 4 KiB 0x0 0x0 0x10000000000000000 0x0 rw\r\n"},
            "no size": {"info ramblock": HEAD + block("ram0", 0, 0x1000)},
            "too many blocks": {"info ramblock": HEAD + block("ram0", MIB, 0x1000) * 513},
            "not mapped": {"info ramblock": good, "query-memdev": []},
            "a wrap": {"info ramblock": HEAD + block("ram0", 2**64 - 1, 2**64 - 1), "query-memdev": []},
            "memdev is none": {"info ramblock": good, "query-memdev": {}},
            "a backend of text": {"info ramblock": good, "query-memdev": ["x"]},
            "a negative size": {"info ramblock": good, "query-memdev": [{"id": "a", "size": -1}]},
            "an id that is none": {"info ramblock": good, "query-memdev": [{"id": 7, "size": 1}]},
        }
        for name, one in answers.items():
            with self.subTest(name):
                if name == "closes":
                    done = self.ask(lambda stream: stream.send(json.dumps(GREETING).encode() + b"\r\n"))
                else:
                    done = self.ask(qmp(one))
                self.assert_fails(done, 1, "process" if name in ("not mapped", "a wrap", "an id that is none")
                                  else "QEMU")

    def test_a_qemu_that_falls_silent_is_waited_for_not_long(self):
        self.assert_fails(self.ask(qmp({"info ramblock": b""})), 3, "no answer")


def flood(stream):
    with contextlib.suppress(OSError):
        while True:
            stream.sendall(b"{" * 65536)


if __name__ == "__main__":
    unittest.main(verbosity=2)
