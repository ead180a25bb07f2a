# SPDX-License-Identifier: Apache-2.0
"""`guestmem run` boots a stock Linux, which finds its devices, uses shared memory, and switches itself off.

One boot of an emulated host in which one guest runs: ./dev lab vmm-linux has the others.
"""

import re
import time
import unittest
from pathlib import Path

import e2e_case
import nested_linux
import processes
import share_service

# 10 to 15 s on a machine that does little else.
TIMEOUT = 540
SETUP = nested_linux.Setup("linux", parameters="window=1 hear=1")


class VmmLinuxTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        program = e2e_case.environment("GUESTMEM")
        build = Path(e2e_case.environment("GUESTMEM_BUILD"))
        source = Path(e2e_case.environment("GUESTMEM_SOURCE"))
        with processes.undisturbed():
            folder = share_service.make_folder("guestmem-vmm-")
            cls.addClassCleanup(share_service.remove_folder, folder)
        cls.addClassCleanup(processes.stop_all)
        cls.host = nested_linux.Host(program, build, source, folder, [SETUP], lambda text: print(text, flush=True))
        status = cls.host.wait(TIMEOUT)
        assert status == 0, f"the host ended with status {status}\n{cls.host.tail()}"
        cls.guest = cls.host.outcome(SETUP)

    def test_it_boots_from_a_bzimage_and_is_switched_off_by_acpi(self):
        self.assertEqual(self.guest.status, 0, self.host.tail())
        self.assertEqual(len(self.guest.found("kernel")), 1, self.host.tail())

    def test_it_has_both_processors_and_the_memory(self):
        self.assertEqual(self.guest.found("processors"), ["2"])
        kilobytes = int(self.guest.found("memory")[0].split()[0])
        self.assertTrue(190 << 10 < kilobytes < 256 << 10, kilobytes)

    def test_its_kernel_complains_of_nothing(self):
        self.assertEqual([text for text in self.guest.complaints() if not nested_linux.is_known(text)], [])

    def test_interrupts_come_through_the_io_apic_where_the_file_puts_it(self):
        interrupts = self.guest.interrupts()
        self.assertEqual({device: wiring for device, (wiring, _) in interrupts.items()},
                         {"i8042": "IO-APIC 1-edge", "ttyS0": "IO-APIC 4-edge", "rtc0": "IO-APIC 8-edge",
                          "acpi": "IO-APIC 9-fasteoi"})
        self.assertGreater(interrupts["i8042"][1], 0)
        self.assertGreater(interrupts["ttyS0"][1], 0)

    def test_it_finds_the_keyboard_the_serial_port_and_the_clock(self):
        self.assertEqual(self.guest.found("keyboard"), ["i8042 KBD port"])
        self.assertEqual(self.guest.found("serial"), ["uart:16550A port:000003F8 irq:4"])
        self.assertEqual(self.guest.found("clock"), ["kvm-clock"])
        name, seconds = self.guest.found("rtc")[0].rsplit(" ", 1)
        self.assertEqual(name, "rtc_cmos 00:00")
        self.assertLess(abs(int(seconds) - time.time()), 2 * TIMEOUT)

    def test_pci_devices_are_there_with_msi_and_msix(self):
        devices = self.guest.devices()
        self.assertEqual(set(devices), {"1b36:0008", "1c05:0001", "1af4:1110"})
        self.assertIn(0x05, devices["1c05:0001"][1], "vdev shmem has MSI")
        msix = devices["1af4:1110"][1][0x11]
        self.assertEqual(int.from_bytes(msix[2:4], "little") & 0x7ff, nested_linux.VECTORS - 1)
        # The same lines without an address are the sizes of the BARs.
        sizes = {}
        for line in self.guest.found("bar"):
            address, first, last = line.split()
            sizes.setdefault(address, []).append(int(last, 16) - int(first, 16) + 1)
        self.assertEqual(sizes[devices["1c05:0001"][0]], [4096])
        self.assertEqual(sizes[devices["1af4:1110"][0]][-1], nested_linux.SHARE_BYTES)

    def test_a_word_typed_on_the_console_arrives(self):
        self.assertEqual(self.guest.found("word"), ["swordfish"])

    def test_a_program_in_the_guest_answers_in_the_shared_memory_and_rings(self):
        said = self.host.output()
        self.assertIn("window: received: hello from the host.", self.guest.console)
        self.assertIn("host: read answer to: hello from the host.", said)
        self.assertIn("host: the wait for a ring ended with 0", said)

    def test_the_host_says_nothing_of_an_error(self):
        self.assertEqual(re.findall(r"^host: error: .*$", self.host.output(), re.MULTILINE), [])


if __name__ == "__main__":
    e2e_case.main()
