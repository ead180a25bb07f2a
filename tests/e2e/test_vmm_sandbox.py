# SPDX-License-Identifier: Apache-2.0
"""What a running machine has given up, as the kernel says it: each of its threads, and its memory."""

import re
from pathlib import Path

import vmm
import vmm_case
from processes import Process

NONE = "0" * 16
WAITING = "role=pong timeout=40000"


def status_of(thread):
    lines = (thread / "status").read_text().splitlines()
    return {key: value.strip() for key, value in (line.split(":", 1) for line in lines if ":" in line)}


def flags_of(pid, pattern):
    """The flags of the mappings whose line fits."""
    found = []
    fits = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        if re.match("^[0-9a-f]+-[0-9a-f]+ ", line):
            fits = re.search(pattern, line) is not None
        elif fits and line.startswith("VmFlags:"):
            found.append(line.split()[1:])
    return found


class SandboxTest(vmm_case.VmmCase):
    def start_waiting(self, *words):
        """A machine with every kind of thread: its own share service, and a guest that waits in a share."""
        text = vmm.text_of(self.name_of("walled"), self.payload("shmem"), WAITING, "vdev shmem\n")
        file = self.folder / "walled.qvmconf"
        file.write_text(text)
        machine = Process("walled", [self.program, "run", *words, file])
        self.wait_attached(machine)
        return machine

    def threads_of(self, machine):
        return list(Path(f"/proc/{machine.pid}/task").iterdir())

    def has_filter(self, machine):
        return not any("no filter of system calls and no fence" in line.text for line in machine.lines)

    def test_every_thread_is_filtered_and_without_rights(self):
        machine = self.start_waiting()
        threads = self.threads_of(machine)
        self.assertGreaterEqual(len(threads), 5)
        for thread in threads:
            status = status_of(thread)
            self.assertEqual(status["NoNewPrivs"], "1", thread)
            for capabilities in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
                self.assertEqual(status[capabilities], NONE, (thread, capabilities))
            self.assertEqual(status["Seccomp"], "2" if self.has_filter(machine) else "0", thread)

    def test_guest_memory_is_in_no_child_and_no_core_file(self):
        machine = self.start_waiting()
        ram = flags_of(machine.pid, "memfd:ram")
        share = flags_of(machine.pid, "memfd:payload")
        self.assertTrue(ram and share)
        for flags in ram + share:
            self.assertIn("dc", flags)
            self.assertIn("dd", flags)

    def test_guest_memory_is_in_core_files_where_that_is_asked_for(self):
        machine = self.start_waiting("--dump-guest-memory")
        ram = flags_of(machine.pid, "memfd:ram")
        self.assertTrue(ram)
        for flags in ram:
            self.assertIn("dc", flags)
            self.assertNotIn("dd", flags)
        self.assertIn("WARNING: --dump-guest-memory", machine.tail(100))

    def test_without_the_sandbox_it_says_so(self):
        machine = self.start_waiting("--no-sandbox")
        self.assertIn("WARNING: --no-sandbox", machine.tail(100))
        for thread in self.threads_of(machine):
            self.assertEqual(status_of(thread)["Seccomp"], status_of(Path("/proc/self"))["Seccomp"], thread)

    def test_descriptors_are_closed_on_exec(self):
        machine = self.start_waiting()
        for info in Path(f"/proc/{machine.pid}/fdinfo").iterdir():
            if int(info.name) < 3:
                continue
            flags = int(re.search(r"^flags:\s+([0-7]+)$", info.read_text(), re.MULTILINE)[1], 8)
            self.assertTrue(flags & 0o2000000, info)


if __name__ == "__main__":
    vmm_case.main()
