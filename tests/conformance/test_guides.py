# SPDX-License-Identifier: Apache-2.0
"""The commands of docs/guide/share*.md, run in their order, and what the pages show of their output.

A fenced block says by its first line what becomes of it. Folders of the host become folders below a temporary one,
users and groups that a page invents become nobody and nogroup.

    toml file=PATH    is written there, and has to be a configuration that `share serve --check` takes
    toml check        only has to be one
    sh start          a service: it has to become ready, and ends by SIGTERM when the page has ended
    sh run            has to end with 0; `fails`: with another code; `until`: is repeated until it shows what follows
    text, xml         what the block before printed, whole; `log`: lines that the services' log has, or will have;
                      `example`: nothing of ours
    all others        no command of guestmem or QEMU is in them: nobody would run it

In what a page shows `<pid>` and `<uid>` stand for one word each; widths of gaps do not count.
"""

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest
from pathlib import Path
from xml.etree import ElementTree

from service import main, need_root, program, wait_until

SOURCE = Path(os.environ.get("GUESTMEM_SOURCE") or Path(__file__).resolve().parents[2])
GUIDE = SOURCE / "docs" / "guide"
QEMU = "qemu-system-x86_64"
SECONDS = 60
FOLDERS = ("/etc/guestmem", "/run/guestmem", "/var/lib/guestmem")
USERS = ("alice", "qemu-linux", "qemu-rtos", "libvirt-qemu", "guestmem-share")
GROUPS = ("operators", "kvm")
OURS = re.compile(r"\bguestmem (?:share|backend|template)\b|qemu-system")


class Block:
    def __init__(self, info, text, line):
        words = info.split()
        self.kind = words[0] if words else ""
        self.words = words[1:]
        self.text = text
        self.line = line


def blocks_of(page):
    """The fenced blocks of a page, in order."""
    found = re.finditer(r"^```([^\n`]*)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    return [Block(match.group(1).strip(), match.group(2), page.count("\n", 0, match.start()) + 1) for match in found]


def pattern_of(shown):
    """A regular expression for what a page shows."""
    words = [re.escape(word).replace("<pid>", r"\d+").replace("<uid>", r"\d+") for word in shown.split()]
    return r"\s+".join(words)


def has_printed(shown, printed):
    return re.fullmatch(r"\s*" + pattern_of(shown) + r"\s*", printed) is not None


def end_group(pid, number):
    try:
        os.killpg(pid, number)
    except ProcessLookupError:
        pass


class Page:
    """One page that is walked through, with all that it starts."""

    def __init__(self, test, name):
        self.test = test
        self.name = name
        self.blocks = blocks_of((GUIDE / name).read_text(encoding="utf-8"))
        self.folder = tempfile.mkdtemp(prefix="guestmem-")
        test.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        # Other users have to reach the sockets: their own modes decide.
        os.chmod(self.folder, 0o755)
        for folder in (*FOLDERS, "/bin"):
            os.makedirs(self.folder + folder)
        os.symlink(program(), self.folder + "/bin/guestmem")
        self.environment = {
            **{key: value for key, value in os.environ.items() if key not in ("NOTIFY_SOCKET", "LISTEN_FDS")},
            "PATH": f"{self.folder}/bin:{os.environ['PATH']}", "LC_ALL": "C",
            # Where the tools of root look: a default that the temporary folder has replaced.
            "GUESTMEM_SHARE_CONTROL": f"{self.folder}/run/guestmem/share.control"}
        self.services = []
        test.addCleanup(self.end_everything)

    def here(self, text):
        """What stands on the page, with the folders and users of this run."""
        for folder in FOLDERS:
            text = text.replace(folder, self.folder + folder)
        text = text.replace("/tmp/ivshmem_socket", self.folder + "/run/guestmem/ivshmem_socket")
        for names, own in ((USERS, "nobody"), (GROUPS, "nogroup")):
            for name in names:
                text = text.replace(f'"{name}"', f'"{own}"')
        return text

    def at(self, block, what):
        return f"docs/guide/{self.name}:{block.line}: {what}"

    def log(self):
        return "".join(Path(service.log).read_text(encoding="utf-8", errors="replace") for service in self.services)

    def run(self, block):
        """(exit code, standard output and error) of a block; everything that it waits for is over then."""
        process = subprocess.Popen(["bash", "-euo", "pipefail", "-c", self.here(block.text)], cwd=self.folder,
                                   stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                   env=self.environment, start_new_session=True, text=True, errors="replace")
        try:
            printed, _ = process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            end_group(process.pid, signal.SIGKILL)
            printed, _ = process.communicate()
            self.test.fail(self.at(block, f"not over after {SECONDS} s; it said:\n{printed}"))
        return process.returncode, printed

    def check_config(self, block, path):
        Path(path).write_text(self.here(block.text), encoding="utf-8")
        done = subprocess.run([program(), "share", "serve", "--config", path, "--check"], capture_output=True,
                              text=True, timeout=SECONDS, env=self.environment)
        self.test.assertEqual((done.returncode, done.stderr), (0, ""), self.at(block, "a configuration with mistakes"))

    def start(self, block):
        log = f"{self.folder}/log.{len(self.services)}"
        with open(log, "wb") as file:
            process = subprocess.Popen(["bash", "-c", "exec " + self.here(block.text)], cwd=self.folder,
                                       stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=self.environment,
                                       start_new_session=True)
        process.log = log
        self.services.append(process)
        read = Path(log).read_text
        wait_until(lambda: ": ready: " in read() or process.poll() is not None, SECONDS)
        self.test.assertIn(": ready: ", read(), self.at(block, "the service is not ready"))

    def walk(self):
        ran = printed = None
        for block in self.blocks:
            if block.kind == "toml" and block.words:
                target = block.words[0].removeprefix("file=")
                self.check_config(block, f"{self.folder}/check.toml" if target == "check" else self.here(target))
            elif block.kind == "sh" and "start" in block.words:
                self.start(block)
            elif block.kind == "sh" and "run" in block.words:
                ran = block
                code, printed = self.run(block)
                wanted = "fails" in block.words
                self.test.assertEqual(code != 0, wanted, self.at(block, f"exit code {code}; it said:\n{printed}"))
            elif block.kind in ("text", "xml") and "example" not in block.words:
                printed = self.compare(block, ran, printed)
                if block.kind == "xml":
                    ElementTree.fromstring(block.text)
            else:
                self.test.assertNotRegex(block.text, OURS, self.at(block, "nobody runs this command"))

    def compare(self, block, ran, printed):
        shown = self.here(block.text)
        if "log" in block.words:
            for line in shown.splitlines():
                is_there = wait_until(lambda line=line: re.search(pattern_of(line), self.log()), SECONDS)
                self.test.assertTrue(is_there, self.at(block, f"the log has no line '{line}':\n{self.log()}"))
            return printed
        if "until" in ran.words:
            deadline = time.monotonic() + SECONDS
            while not has_printed(shown, printed) and time.monotonic() < deadline:
                time.sleep(0.05)
                printed = self.run(ran)[1]
        self.test.assertTrue(has_printed(shown, printed), self.at(block, f"shown:\n{shown}\nprinted:\n{printed}"))
        return printed

    def end_services(self):
        """SIGTERM ends them with 0; earlier ones may have left to a later one, or the page has killed them."""
        for service in self.services:
            is_killed = service.poll() == -signal.SIGKILL
            if service.poll() is None:
                service.terminate()
            self.test.assertIn(service.wait(SECONDS), (0, -signal.SIGKILL if is_killed else 0),
                               f"{self.name}:\n{self.log()}")
        self.test.assertTrue(wait_until(lambda: not self.processes(), SECONDS),
                             f"{self.name}: processes are left: {self.processes()}")

    def processes(self):
        """Numbers of what this page has started and named by its folder: keepers, machines."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.folder.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
            except OSError:
                pass
        return found

    def end_everything(self):
        for service in self.services:
            if service.poll() is None:
                service.kill()
            service.wait()
        for pid in self.processes():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass


class Guides(unittest.TestCase):
    def walk(self, name):
        page = Page(self, name)
        page.walk()
        page.end_services()
        return page

    def assert_runs(self, name, *words):
        """A page whose blocks lost their words would be found right without being run."""
        page = self.walk(name)
        run = "".join(block.text for block in page.blocks if {"run", "start"} & set(block.words))
        for word in words:
            self.assertIn(word, run, f"docs/guide/{name} runs it")

    @need_root
    def test_the_guide_to_serving(self):
        self.assert_runs("share.md", "share serve", "share check", "share stat", "share ring")

    @need_root
    @unittest.skipUnless(shutil.which(QEMU), f"{QEMU} is not installed")
    def test_the_guide_for_qemu(self):
        self.assert_runs("share-qemu.md", QEMU, "attach-line", "share serve", "share reload", "--upgrade", "kill -9")

    @need_root
    @unittest.skipUnless(shutil.which(QEMU), f"{QEMU} is not installed")
    def test_the_guide_for_libvirt(self):
        self.assert_runs("share-libvirt.md", QEMU, "attach-line", "--libvirt", "share serve")

    @need_root
    @unittest.skipUnless(shutil.which(QEMU), f"{QEMU} is not installed")
    def test_the_guide_for_zephyr(self):
        self.assert_runs("share-zephyr.md", QEMU, "attach-line", "share serve", "share send")

    @need_root
    def test_the_guide_for_qnx(self):
        self.assert_runs("share-qnx.md", "share serve", "share check")


class Reading(unittest.TestCase):
    """The reader of pages finds what is wrong."""

    def test_blocks_have_kinds_words_and_lines(self):
        page = "# a\n\n```sh run fails\nx\n```\ntext ```no``` block\n```toml file=/b\ny = 1\nz = 2\n```\n"
        self.assertEqual([(block.kind, block.words, block.text, block.line) for block in blocks_of(page)],
                         [("sh", ["run", "fails"], "x\n", 3), ("toml", ["file=/b"], "y = 1\nz = 2\n", 7)])

    def test_output_is_compared_whole(self):
        self.assertTrue(has_printed("a  b <pid>\nc\n", "a b 12\n   c\n"))
        for printed in ("a b 12\n", "a b 12\nc\nd\n", "x a b 12\nc\n", "a b p\nc\n", ""):
            self.assertFalse(has_printed("a b <pid>\nc\n", printed), printed)

    def test_what_a_page_shows_is_no_pattern(self):
        self.assertFalse(has_printed("a.c*", "abccc"))


if __name__ == "__main__":
    main()
