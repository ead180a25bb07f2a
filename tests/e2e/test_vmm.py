# SPDX-License-Identifier: Apache-2.0
"""`guestmem run` with the payloads: the machine, its file, its console, and `vdev shmem` and `vdev ivshmem` alone.

What several machines, QEMUs and host programs do together is in test_vmm_shares.py. GUESTMEM_LONG=1 adds a long run of
the hostile payload, with the program of build/asan where that is built.
"""

import os
import signal
import unittest
from pathlib import Path

import vmm
import vmm_case
from processes import Process

# As in QNX's documentation, with another file to load.
CLUSTER = """system cluster
ram 1024M
cpu
cpu
load /emmc/QNX_cluster.ifs
vdev ioapic
    loc 0xf8000000
    intr apic
    name myioapic
vdev ser8250
    intr myioapic:4
vdev timer8254
    intr myioapic:0
vdev mc146818
vdev shmem
vdev pckeyboard
"""
WITH_REGION = """system cluster
ram 192M
cpu
load /emmc/QNX_cluster.ifs
vdev ioapic
    loc 0xf8000000
    intr apic
    name myioapic
vdev ser8250
    intr myioapic:4
vdev timer8254
    intr myioapic:0
vdev mc146818
vdev shmem
    loc 0x10000000
    intr myioapic:10
    create TEST1,0xf0000
    deny secret*
    allow *
"""
LONG_SEEDS = 20
LONG_COUNT = 100000


class MachineTest(vmm_case.VmmCase):
    def test_the_first_act_is_a_byte_and_the_options_arrive(self):
        vm = self.start("hello", "hello", "color=blue size=0x10")
        lines = self.finish(vm)
        self.assertIn("options: ioapic=0xf8000000 color=blue size=0x10", lines)
        self.assertIn("Hhello from a payload", lines)

    def test_the_chips_are_right(self):
        self.assertGreaterEqual(len(self.finish(self.start("chips", "chips"))), 40)

    def test_the_keyboard_controller_resets_the_machine(self):
        vm = self.start("reset", "chips", "skip=ioapic,pic,serial,pit,rtc end=reset")
        self.assertEqual(vm.wait(vmm_case.PATIENCE), vmm.GUEST_RESET, vm.tail())

    def test_ram_is_kept_on_both_sides_of_4_gib(self):
        lines = self.finish(self.start("memory", "memory", "every=0x8000000", ram="3200M"))
        self.assertTrue(any(line.startswith("memory 0x100000000 size ") for line in lines), lines)

    def test_every_way_out_has_a_time(self):
        lines = self.finish(self.start("measure", "measure", "count=100 shmem=1", "vdev shmem\n"))
        for name in ("port_write", "mmio_write", "attach_to_data", "notify_to_interrupt"):
            self.assertTrue(any(line.startswith(f"measure {name} best_ns ") for line in lines), f"{name}: {lines}")


class DocumentedFilesTest(vmm_case.VmmCase):
    """The files of QNX's documentation, as they are written."""

    def run_file(self, text, payload, options):
        image = self.folder / "QNX_cluster.ifs"
        image.write_bytes(self.payload(payload).read_bytes())
        text = text.replace("/emmc/QNX_cluster.ifs", str(image)).replace("system cluster", "system "
                                                                         + self.name_of("cluster"))
        return self.finish(self.run_text(text + f'cmdline "ioapic=0xf8000000 {options}"\n'))

    def test_two_processors_and_a_pci_shmem(self):
        lines = self.run_file(CLUSTER, "shmem", "role=single")
        self.assertIn("ok shmem: a PCI device 1c05:0001 is there", lines)

    def test_a_created_region_at_a_place(self):
        lines = self.run_file(WITH_REGION, "shmem",
                              "role=single loc=0x10000000 intr=10 existing=TEST1 existing_pages=240 denied=secret-1")
        for check in ("shmem: a region that exists", "shmem: its size", "shmem: a denied name"):
            self.assertIn(f"ok {check}", lines)


class ShmemAloneTest(vmm_case.VmmCase):
    def check_device(self, options, vdevs):
        lines = self.finish(self.start("single", "shmem", f"role=single denied=secret-1 {options}", vdevs))
        for check in ("a denied name", "client 17 is one too many", "sixteen clients", "a slash is illegal",
                      "no name is illegal", "32 bytes without a NUL are illegal", "the name can be used again",
                      "the first is told that the second went"):
            self.assertIn(f"ok shmem: {check}", lines)

    def test_over_pci_with_its_line(self):
        self.check_device("", "vdev shmem\n    deny secret*\n")

    def test_over_pci_with_messages(self):
        self.check_device("msi=1", "vdev shmem\n    deny secret*\n")

    def test_over_mmio(self):
        self.check_device(f"loc={vmm.SHMEM_LOC:#x} intr=10", vmm.shmem_mmio() + "    deny secret*\n")

    def test_an_ivshmem_guest_rings_itself_by_every_vector(self):
        lines = self.finish(self.start("one", "ivshmem", "role=single", vmm.ivshmem("mbox")))
        self.assertEqual(lines.count("ok ivshmem: a ring of the own doorbell comes back"), 2)

    def test_a_plain_ivshmem_is_memory_alone(self):
        lines = self.finish(self.start("plain", "ivshmem", "role=single",
                                       "vdev ivshmem\n    share mbox\n    size 1M\n    mode plain\n"))
        self.assertIn("ok ivshmem: the last word is kept", lines)


class WrongFileTest(vmm_case.VmmCase):
    def refuse(self, text, status=vmm.WRONG_CONFIGURATION):
        vm = self.run_text(text)
        self.assertEqual(vm.wait(vmm_case.PATIENCE), status, vm.tail())
        return [line.text for line in vm.lines]

    def test_all_mistakes_are_said_at_once_with_a_caret_each(self):
        lines = self.refuse("system one\nram 64Q\ncpu\nvdev nonsense\nvdev ser8250\nlaod x\n"
                            "vdev shmem\n    create a/b,0x1000\n")
        for place in ("vm.qvmconf:2:5: ", "vm.qvmconf:4:6: ", "vm.qvmconf:6:1: ", "vm.qvmconf:8:12: "):
            self.assertTrue(any(place in line for line in lines), f"{place}: {lines}")
        self.assertEqual(sum(line.strip(" |") == "^" for line in lines), 4, lines)

    def test_mistakes_that_two_lines_make_together_are_said_at_once_too(self):
        lines = self.refuse("system one\nram 64M\ncpu\nvdev ser8250\n    intr nobody:4\n"
                            "vdev ser8250\n    loc 0x70\n")
        for place in ("vm.qvmconf:5:10: ", "vm.qvmconf:7:9: "):
            self.assertTrue(any(place in line for line in lines), f"{place}: {lines}")

    def test_a_place_in_ram_names_both_lines(self):
        text = vmm.text_of("one", self.payload("hello"), vdevs="vdev shmem\n    loc 0x1000000\n")
        lines = "\n".join(self.refuse(text))
        self.assertRegex(lines, "vm.qvmconf:[0-9]+:[0-9]+: error: .*0x1000000")
        self.assertRegex(lines, r"ram 64M|vm.qvmconf:2|line 2")

    def test_a_file_that_is_not_there_is_an_error_of_the_configuration(self):
        lines = "\n".join(self.refuse("system one\nram 64M\ncpu\nload /nowhere/at.all\n"))
        self.assertIn("vm.qvmconf:4:6: ", lines)
        self.assertIn("/nowhere/at.all", lines)

    def test_a_region_that_this_host_has_no_room_for_fails_the_start(self):
        text = vmm.text_of(self.name_of("huge"), self.payload("hello"), vdevs="vdev shmem\n    create HUGE,512G\n")
        lines = self.refuse(text, vmm.NOT_STARTED)
        self.assertEqual([line for line in lines if "hello" in line and "payload" in line], [], lines)
        self.assertIn("HUGE", "\n".join(lines))

    def test_explain_makes_nothing(self):
        text = vmm.text_of(self.name_of("plan"), self.payload("hello"), vdevs="vdev shmem\n    create HUGE,512G\n")
        vm = self.run_text(text, "--explain")
        self.assertEqual(vm.wait(vmm_case.PATIENCE), 0, vm.tail())
        self.assertIn("HUGE", vm.output())


class EndTest(vmm_case.VmmCase):
    def test_signals_end_the_machine(self):
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            with self.subTest(number):
                vm = self.start("echo", "echo", vdevs="vdev shmem\n")
                vm.wait_for("^echo listens$", vmm_case.PATIENCE)
                vm.send_signal(number)
                self.assertEqual(vm.wait(vmm_case.PATIENCE), vmm.ENDED, vm.tail())

    def test_a_machine_that_was_killed_can_start_again(self):
        """What it has left behind is its own service's socket."""
        for _ in range(2):
            vm = self.start("echo", "echo", vdevs="vdev shmem\n")
            vm.wait_for("^echo listens$", vmm_case.PATIENCE)
            vm.kill()
        vm = self.start("echo", "shmem", "role=single", vdevs="vdev shmem\n")
        self.finish(vm)


class HostileTest(vmm_case.VmmCase):
    def run_hostile(self, program, seed, count, patience=vmm_case.PATIENCE):
        """A guest may end its own machine; the program must say how, and neither crash nor hang."""
        text = vmm.text_of(self.name_of("hostile"), self.payload("hostile"), f"seed={seed} count={count}",
                           "vdev shmem\n    create there,0x10000\n" + vmm.ivshmem("mbox"))
        file = self.folder / "hostile.qvmconf"
        file.write_text(text)
        vm = Process(f"hostile-{seed}", vmm.command(program, file))
        status = vm.wait(patience)
        self.assertIn(status, (vmm.PASSED, vmm.ENDED, vmm.GUEST_RESET, 7, 50), f"seed {seed}: {vm.tail(60)}")
        complaints = "ERROR: AddressSanitizer|LeakSanitizer|runtime error:|check failed|GM_CHECK"
        self.assertNotRegex(vm.output(), complaints, f"seed {seed}")
        return status

    def test_nonsense_leaves_the_machine_alive(self):
        ends = [self.run_hostile(self.program, seed, 5000) for seed in (1, 2, 3)]
        self.assertIn(vmm.PASSED, ends, "every guest has ended its own machine")

    @unittest.skipUnless(os.environ.get("GUESTMEM_LONG") == "1", "GUESTMEM_LONG=1 asks for it")
    def test_much_nonsense_under_the_address_sanitizer(self):
        asan = Path(os.environ["GUESTMEM_SOURCE"]) / "build" / "asan" / "bin" / "guestmem"
        program = asan if asan.exists() else self.program
        first = int(os.environ.get("GUESTMEM_TEST_SEED", "1000"))
        print(f"{program}, {LONG_SEEDS} seeds from {first} on (GUESTMEM_TEST_SEED)", flush=True)
        for seed in range(first, first + LONG_SEEDS):
            self.run_hostile(program, seed, LONG_COUNT, patience=600)


if __name__ == "__main__":
    vmm_case.main()
