# SPDX-License-Identifier: Apache-2.0
"""The freestanding payloads of guests/payload under QEMU, whose devices they were not written with.

What a payload says about a machine counts only when it is right about a machine that somebody else has made.
"""

import re
import unittest
from pathlib import Path

import e2e_case
import processes
import qemu
import share_service
from processes import Process

PASSED = 33
FAILED = 35
PATIENCE = 60

# QEMU wires the timer to pin 2 of its I/O APIC.
CHIPS_OF_QEMU = "pit=2"


class PayloadCase(unittest.TestCase):
    def setUp(self):
        self.program = e2e_case.environment("GUESTMEM")
        self.payloads = Path(e2e_case.environment("GUESTMEM_BUILD")) / "guests"
        with processes.undisturbed():
            self.folder = share_service.make_folder("guestmem-payloads-")
            self.addCleanup(share_service.remove_folder, self.folder)
        self.addCleanup(processes.stop_all)

    def start(self, payload, options="", machine="q35", arguments=(), name=None):
        return Process(name or payload, [
            qemu.PROGRAM, "-accel", "tcg", "-machine", machine, "-m", "64", "-nodefaults", "-no-user-config",
            "-display", "none", "-no-reboot", "-chardev", "stdio,id=out,signal=off", "-serial", "chardev:out",
            "-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-debugcon", f"file:{self.folder / 'debug'}",
            "-kernel", self.payloads / f"{payload}.elf", "-append", options, *arguments])

    def finish(self, guest, status=PASSED):
        self.assertEqual(guest.wait(PATIENCE), status, guest.tail(100))
        lines = [line.text for line in guest.lines]
        checks = [line for line in lines if re.match("(ok|fail) ", line)]
        self.assertEqual(lines[-1], f"done {len(checks)}", guest.tail(100))
        return lines

    def run_payload(self, *arguments, status=PASSED, **options):
        return self.finish(self.start(*arguments, **options), status)


class HelloTest(PayloadCase):
    def test_the_first_act_is_a_byte_and_the_options_arrive(self):
        for machine in ("pc", "q35", "microvm"):
            with self.subTest(machine):
                lines = self.run_payload("hello", "color=blue size=0x10", machine)
                self.assertIn("hello from a payload", lines)
                self.assertIn("options: color=blue size=0x10", lines)
                self.assertEqual((self.folder / "debug").read_bytes(), b"H")

    def test_output_can_go_to_the_debug_port(self):
        guest = self.start("hello", "out=debug")
        self.assertEqual(guest.wait(PATIENCE), PASSED, guest.tail())
        self.assertEqual(guest.lines, [])
        self.assertEqual((self.folder / "debug").read_text().splitlines()[-1], "done 1")


class ChipsTest(PayloadCase):
    def test_the_chips_of_a_pc_are_right(self):
        # A microvm has neither speaker port nor keyboard controller.
        for machine, skipped in (("pc", ""), ("q35", ""), ("microvm", "skip=speaker,keyboard")):
            with self.subTest(machine):
                lines = self.run_payload("chips", f"{CHIPS_OF_QEMU} {skipped}", machine)
                self.assertGreaterEqual(len(lines), 40)

    def test_a_missing_chip_is_a_failure(self):
        lines = self.run_payload("chips", "skip=ioapic,pic,serial,pit,rtc timeout=200", "microvm", status=FAILED)
        self.assertIn("fail keyboard: the self test passes: expected 0x55 got 0xff", lines)

    def test_an_interrupt_on_another_pin_is_missed(self):
        skipped = "skip=ioapic,pic,serial,speaker,rtc,keyboard"
        lines = self.run_payload("chips", f"pit=3 timeout=200 {skipped}", status=FAILED)
        self.assertIn("fail pit: a count of channel 0 ends with an interrupt: expected true got false", lines)

    def test_the_keyboard_controller_resets_the_machine(self):
        guest = self.start("chips", "skip=ioapic,pic,serial,pit,rtc end=reset")
        self.assertEqual(guest.wait(PATIENCE), 0, guest.tail())  # -no-reboot turns a reset into the end
        self.assertEqual(guest.lines[-1].text, "reset")


class MemoryTest(PayloadCase):
    def test_ram_is_kept_on_both_sides_of_4_gib_and_rom_is_not_written(self):
        lines = self.run_payload("memory", "every=0x8000000 rom=0xfffff000:4096", arguments=("-m", "3G"))
        self.assertIn("ok memory: ROM is not written", lines)
        self.assertTrue(any(line.startswith("memory 0x100000000 size 0x40000000 type 1") for line in lines), lines)

    def test_rom_that_is_ram_is_a_failure(self):
        lines = self.run_payload("memory", "rom=0x2000000:4096", status=FAILED)
        self.assertEqual(sum(line.startswith("fail memory: ROM is not written") for line in lines), 2)


class HostileTest(PayloadCase):
    def test_nonsense_follows_from_its_seed(self):
        checksums = []
        for seed in (7, 7, 8):
            lines = self.run_payload("hostile", f"seed={seed} aligned=1 parts=pci,bars,ioapic,holes", "pc")
            checksums += [line for line in lines if line.startswith("hostile is done")]
        self.assertEqual(len(checksums), 3)
        self.assertEqual(checksums[0], checksums[1])
        self.assertNotEqual(checksums[0], checksums[2])

    def test_nonsense_at_ports_ends_with_a_report(self):
        """The serial port says nonsense, too; what comes after it is readable again."""
        guest = self.start("hostile", "aligned=1 parts=ports", "microvm,acpi=off")
        self.assertEqual(guest.wait(PATIENCE), PASSED, guest.tail())
        self.assertEqual([line.text for line in guest.lines[-2:]], ["ok hostile: the machine lives", "done 1"])


class MeasureTest(PayloadCase):
    def test_every_way_out_has_a_time(self):
        plain = ("-object", "memory-backend-ram,id=shm,size=1M,share=on", "-device", "ivshmem-plain,memdev=shm")
        lines = self.run_payload("measure", "count=100", arguments=plain)
        for name in ("port_write", "port_read", "mmio_write", "mmio_read", "ivshmem_register_read"):
            self.assertTrue(any(re.fullmatch(rf"measure {name} best_ns \d+ mean_ns \d+", line) for line in lines),
                            f"{name}: {lines}")


class ShmemTest(PayloadCase):
    def test_a_machine_without_the_device_is_a_failure(self):
        lines = self.run_payload("shmem", status=FAILED)
        self.assertIn("fail shmem: a PCI device 1c05:0001 is there: expected true got false", lines)

    def test_memory_is_no_factory_page(self):
        lines = self.run_payload("shmem", "loc=0x2000000", status=FAILED)
        self.assertTrue(any(line.startswith("fail shmem: the signature:") for line in lines), lines)


class IvshmemTest(PayloadCase):
    def doorbell(self, vm):
        path = qemu.escape(self.service.socket(vm))
        return ("-chardev", f"socket,id=share,path={path}", "-device", "ivshmem-doorbell,chardev=share,vectors=2")

    def serve(self):
        share = share_service.Share("rally", size="1M", vms={"one": 0, "two": 1})
        self.service = share_service.Service(self.program, self.folder, share)
        self.service.wait_ready()

    def test_plain_memory_is_kept(self):
        plain = ("-object", "memory-backend-ram,id=shm,size=1M,share=on", "-device", "ivshmem-plain,memdev=shm")
        for machine in ("pc", "q35"):
            with self.subTest(machine):
                lines = self.run_payload("ivshmem", "", machine, plain)
                self.assertIn("ok ivshmem: the last word is kept", lines)

    def test_a_guest_rings_itself_by_every_vector(self):
        self.serve()
        lines = self.run_payload("ivshmem", "role=single", arguments=self.doorbell("two"))
        self.assertEqual(lines.count("ok ivshmem: a ring of the own doorbell comes back"), 2)
        self.assertTrue(any(line.startswith("ivshmem slot 1 vectors 2") for line in lines), lines)

    def test_two_guests_play_by_interrupts_and_by_polling(self):
        self.serve()
        for options in ("vector=0", "vector=1", "mode=poll"):
            with self.subTest(options):
                pong = self.start("ivshmem", f"role=pong {options}", arguments=self.doorbell("two"), name="pong")
                ping = self.start("ivshmem", f"role=ping {options}", arguments=self.doorbell("one"), name="ping")
                self.assertIn("ok rally: every ping is answered", self.finish(ping))
                self.assertIn("ok rally: every ping comes", self.finish(pong))

    def test_a_ping_that_nobody_answers_is_a_failure(self):
        self.serve()
        lines = self.run_payload("ivshmem", "role=ping timeout=300", status=FAILED, arguments=self.doorbell("one"))
        self.assertIn("fail rally: pong is there: expected true got false", lines)


if __name__ == "__main__":
    e2e_case.main()
