# SPDX-License-Identifier: Apache-2.0
"""What the tests of `guestmem run` have in common: a folder, machines with payloads, a service, host programs."""

import os
import sys
import unittest
from pathlib import Path

import e2e_case
import host_shm
import processes
import qemu
import share_service
import vmm
from kept_service import keepers_of  # of tests/conformance, by the path that e2e_case has added
from processes import Process, wait_until

PATIENCE = 60
# A rally gives up before the test does, with its own words.
RALLY = "timeout=40000"


def main():
    reason = vmm.reason_to_skip(e2e_case.environment("GUESTMEM_BUILD"))
    if reason:
        print(f"SKIPPED: {reason}")
        sys.exit(e2e_case.SKIPPED)
    e2e_case.main()


class VmmCase(unittest.TestCase):
    def setUp(self):
        self.program = e2e_case.environment("GUESTMEM")
        self.build = Path(e2e_case.environment("GUESTMEM_BUILD"))
        with processes.undisturbed():
            self.folder = share_service.make_folder("guestmem-vmm-")
            self.addCleanup(share_service.remove_folder, self.folder)
        self.addCleanup(self.end_keepers)
        self.addCleanup(processes.stop_all)
        self.service = None

    def end_keepers(self):
        for pid in keepers_of(str(self.folder)):
            os.kill(pid, 9)

    def payload(self, name):
        return self.build / "guests" / f"{name}.elf"

    def serve(self, *texts, words=()):
        """A service with a share "mbox" of 16 slots, and what the texts say."""
        texts = (vmm.share_text(self.folder), *texts)
        self.service = vmm.Service(self.program, self.folder, "".join(texts), words)
        return self.service

    def name_of(self, name):
        """A machine that serves itself has a socket of its name: two test runs must not meet."""
        return f"{name}-{os.getpid()}"

    def start(self, name, payload, options="", vdevs="", control=None, **words):
        text = vmm.text_of(self.name_of(name), self.payload(payload), options, vdevs, **words)
        return vmm.Vm(self.program, self.folder, name, text, control or (self.service and self.service.control))

    def run_text(self, text, *words):
        """Runs a file that is not the usual one, with options before it."""
        file = self.folder / "vm.qvmconf"
        file.write_text(text)
        return Process("vm", [self.program, "run", *words, file])

    def finish(self, vm, status=vmm.PASSED):
        """Its report; every check has passed when it should."""
        self.assertEqual(vm.wait(PATIENCE), status, vm.tail(100))
        lines = [line.text for line in vm.lines]
        checks = [line for line in lines if line.startswith(("ok ", "fail "))]
        self.assertIn(f"done {len(checks)}", lines, vm.tail(100))
        return lines

    def wait_attached(self, vm):
        """Who is active, as the guest's `vdev shmem` saw it first."""
        line = vm.wait_for("^shmem idx [0-9]+ active ", PATIENCE)
        return int(line.text.split()[4], 16)

    def host(self, name, control=None, size_pages=16):
        """A host program in the region."""
        client = host_shm.HostShm(self.library(), control or self.service.control, name, size_pages)
        self.addCleanup(client.close)
        return client

    def session(self, name):
        """A host program in the share that hears every doorbell."""
        client = host_shm.HostSession(self.library(), self.service.control, name)
        self.addCleanup(client.close)
        return client

    def library(self):
        return host_shm.load_library(self.build / "lib" / "libguestmem-share.so.1")

    def start_qemu(self, name, options, share="mbox"):
        """The ivshmem payload in an emulating QEMU that comes in by the share's own socket."""
        path = qemu.escape(self.folder / f"{share}.sock")
        return Process(name, [
            qemu.PROGRAM, "-accel", "tcg", "-machine", "q35", "-m", "64", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-chardev", f"socket,id=share,path={path}",
            "-device", "ivshmem-doorbell,chardev=share,vectors=2",
            "-kernel", self.payload("ivshmem"), "-append", options])

    def finish_qemu(self, guest):
        self.assertEqual(guest.wait(PATIENCE), 33, guest.tail(100))
        return guest.output()

    def wait_until(self, question, what, timeout=PATIENCE):
        return wait_until(question, timeout, what)
