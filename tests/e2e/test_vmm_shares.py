# SPDX-License-Identifier: Apache-2.0
"""Several machines of `guestmem run`, QEMUs and host programs in one share: they kick one another, come, leave, die."""

import json
import os
import signal
import unittest

import host_shm
import vmm
import vmm_case
from host_shm import HostShm

EVERYBODY = 16
SHMEM = "vdev shmem\n"
SHMEM_MSI = "msi=1"


def door(folder, vm, rules):
    """A VM's own control socket, and what its rules allow; the file's text and the socket."""
    path = folder / f"{vm}.control"
    return f"[[vm]]\nname = {json.dumps(vm)}\nsocket = {json.dumps(str(path))}\nrules = [ {rules} ]\n", path


class TwoMachinesTest(vmm_case.VmmCase):
    def rally(self, payload, options, vdevs, pong_options=None, pong_vdevs=None):
        pong = self.start("pong", payload, f"role=pong {vmm_case.RALLY} {pong_options or options}",
                          pong_vdevs or vdevs)
        ping = self.start("ping", payload, f"role=ping {vmm_case.RALLY} {options}", vdevs)
        self.assertIn("ok rally: every ping is answered", self.finish(ping))
        self.assertIn("ok rally: every ping comes", self.finish(pong))

    def test_they_play_over_shmem_by_line_by_message_and_over_mmio(self):
        self.serve()
        mmio = f"loc={vmm.SHMEM_LOC:#x} intr=10"
        self.rally("shmem", "", SHMEM)
        self.rally("shmem", SHMEM_MSI, SHMEM, mmio, vmm.shmem_mmio())

    def test_they_play_over_ivshmem_by_interrupts_and_by_polling(self):
        self.serve()
        for options in ("vector=0", "vector=1", "mode=poll"):
            with self.subTest(options):
                self.rally("ivshmem", options, vmm.ivshmem("mbox"))

    def test_a_shmem_guest_is_told_which_ivshmem_guest_has_kicked(self):
        self.serve()
        self.start("pong", "ivshmem", f"role=pong {vmm_case.RALLY}", vmm.ivshmem("mbox"))
        ping = self.start("ping", "shmem", "role=ping name=mbox timeout=2000", SHMEM)
        self.assertIn("ok rally: every ping is answered", self.finish(ping))


class HostProgramTest(vmm_case.VmmCase):
    def test_a_host_program_serves_and_answers_a_shmem_guest(self):
        self.serve()
        for role, play in (("pong", host_shm.ping), ("ping", host_shm.pong)):
            with self.subTest(role):
                host = self.host("payload")
                guest = self.start(role, "shmem", f"role={role} rounds=50 {vmm_case.RALLY}", SHMEM)
                peer = play(host, 50)
                self.assertNotEqual(peer, 1 << host.idx)
                self.finish(guest)
                host.wait_until(lambda s: s.active == 1 << s.idx, vmm_case.PATIENCE, "the guest has left")
                host.close()

    def test_a_host_program_serves_and_answers_an_ivshmem_guest(self):
        self.serve()
        for role, play in (("pong", host_shm.ping), ("ping", host_shm.pong)):
            with self.subTest(role):
                host = self.session("mbox")
                guest = self.start(role, "ivshmem", f"role={role} rounds=50 {vmm_case.RALLY}", vmm.ivshmem("mbox"))
                play(host, 50)
                self.finish(guest)
                host.close()

    def test_a_host_program_finds_the_machine_that_serves_itself(self):
        guest = self.start("alone", "shmem", f"role=pong rounds=50 {vmm_case.RALLY}", SHMEM)
        self.wait_attached(guest)
        runtime = "/run/guestmem" if os.geteuid() == 0 else os.path.join(
            os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}"), "guestmem")
        host = self.host("payload", os.path.join(runtime, f"vm-{self.name_of('alone')}.share"))
        host_shm.ping(host, 50)
        self.finish(guest)

    def test_a_created_region_is_there_before_the_guest_asks_and_has_its_size(self):
        self.serve()
        self.start("maker", "echo", "", f"{SHMEM}    create TEST1,0xf0000\n").wait_for("listens", vmm_case.PATIENCE)
        self.assertEqual(self.host("TEST1", size_pages=1).pages, 240)


class ThreeKindsTest(vmm_case.VmmCase):
    """QEMU's guest, a machine's guest and a host program, all in one share at the same time."""

    def test_all_pairs_kick_one_another_over_ivshmem(self):
        self.serve()
        host = self.session("mbox")
        # Three rallies, each at a place of its own: machine and QEMU, host and machine, host and QEMU.
        qemu = self.start_qemu("qemu ping", f"role=ping {vmm_case.RALLY}")
        ours = self.start("pong", "ivshmem", f"role=pong {vmm_case.RALLY}", vmm.ivshmem("mbox"))
        other = self.start("other", "ivshmem", f"role=pong offset=0x1000 rounds=50 {vmm_case.RALLY}",
                           vmm.ivshmem("mbox"))
        emulated = self.start_qemu("qemu pong", f"role=pong offset=0x2000 rounds=50 {vmm_case.RALLY}")
        bits = {host_shm.ping(host, 50, 0x1000), host_shm.ping(host, 50, 0x2000)}
        self.assertEqual(len(bits | {1 << host.idx}), 3)
        self.assertIn("ok rally: every ping is answered", self.finish_qemu(qemu))
        self.finish(ours)
        self.finish(other)
        self.finish_qemu(emulated)
        host.wait_until(lambda s: s.active == 1 << s.idx, vmm_case.PATIENCE, "all guests have left")

    def test_a_shmem_client_s_notice_is_a_ring_of_vector_0_for_qemu_and_for_ivshmem(self):
        self.serve()
        host = self.host("mbox")
        options = f"role=pong rounds=1 {vmm_case.RALLY}"
        for start in (lambda: self.start_qemu("qemu", options),
                      lambda: self.start("pong", "ivshmem", options, vmm.ivshmem("mbox"))):
            guest = start()
            host.set_word(host_shm.PING_NUMBER, 0)
            host.set_word(host_shm.PING_PLACE, host.idx + 1)
            host.wait_until(lambda s: s.word(host_shm.PONG_PLACE), vmm_case.PATIENCE, "pong is there")
            host.set_word(host_shm.PING_NUMBER, 1)
            # The guest answers when it was rung, not when it sees the number.
            while host.word(host_shm.PONG_NUMBER) != 1 and guest.is_running():
                host.poke(1 << (host.word(host_shm.PONG_PLACE) or 1) - 1)
                host.wait(host_shm.AGAIN_MS)
            self.assertEqual(guest.wait(vmm_case.PATIENCE) & 31, 1 if guest.name == "qemu" else 16, guest.tail())

    def test_a_shmem_guest_is_told_that_a_qemu_guest_has_kicked(self):
        self.serve()
        self.start_qemu("qemu pong", f"role=pong {vmm_case.RALLY}")
        ours = self.start("ping", "shmem", "role=ping name=mbox timeout=5000", SHMEM)
        self.assertIn("ok rally: every ping is answered", self.finish(ours))


class FullTest(vmm_case.VmmCase):
    def test_client_17_is_refused_whoever_it_is(self):
        self.serve()
        hosts = [self.host("payload") for _ in range(EVERYBODY - 1)]
        guest = self.start("sixteenth", "shmem", f"role=pong rounds=1 {vmm_case.RALLY}", SHMEM)
        self.assertEqual(self.wait_attached(guest), 0xFFFF)
        with self.assertRaisesRegex(host_shm.Refused, "held|busy|slot"):
            HostShm(self.library(), self.service.control, "payload")
        late = self.start("late", "shmem", "role=single name=other full=payload", SHMEM)
        self.assertIn("ok shmem: client 17", self.finish(late))
        host_shm.ping(hosts[0], 1)
        self.finish(guest)


    def test_16_clients_fit_beside_the_machine_whose_file_creates_the_region(self):
        self.serve()
        self.start("maker", "echo", "", f"{SHMEM}    create region,0x4000\n").wait_for("listens", vmm_case.PATIENCE)
        hosts = [self.host("region", size_pages=1) for _ in range(EVERYBODY)]
        self.assertEqual({host.idx for host in hosts}, set(range(EVERYBODY)))
        self.assertEqual({host.pages for host in hosts}, {4})
        with self.assertRaisesRegex(host_shm.Refused, "held|busy|slot"):
            HostShm(self.library(), self.service.control, "region")


class RightsTest(vmm_case.VmmCase):
    def ask(self, name, options="", vdevs=SHMEM, control=None):
        """A guest that is denied secret-1; what the machine says besides."""
        guest = self.start(name, "shmem", f"role=single denied=secret-1 {options}", vdevs, control)
        self.assertIn("ok shmem: a denied name", self.finish(guest))
        refusals = [line.text for line in guest.lines if "guestmem: " in line.text and "'secret-1'" in line.text
                    and "no share" not in line.text]
        self.assertEqual(len(refusals), 1, guest.tail(100))
        return refusals[0]

    def test_the_machine_s_own_file_denies_create_and_attach(self):
        self.serve()
        denies = f"{SHMEM}    deny secret*\n"
        self.assertIn("deny 'secret*'", self.ask("create", vdevs=denies))
        self.host("secret-1")
        self.assertIn("deny 'secret*'", self.ask("attach", vdevs=denies))

    def test_the_service_denies_create_and_attach_what_the_file_allows(self):
        text, control = door(self.folder, "guest", '{ deny = "secret*" }')
        self.serve(text)
        allows = f"{SHMEM}    allow *\n"
        self.ask("create", vdevs=allows, control=control)
        self.host("secret-1")
        self.ask("attach", vdevs=allows, control=control)

    def test_who_may_attach_and_not_create_gets_in_where_the_region_is(self):
        text, control = door(self.folder, "guest",
                             '{ allow = "given", may = ["attach", "notify"] }, { allow = "*" }')
        self.serve(text)
        refused = self.start("early", "shmem", "role=watch name=given", SHMEM, control)
        self.assertTrue(any(line.startswith("fail shmem: attached") for line in self.finish(refused, vmm.FAILED)))
        host = self.host("given")
        guest = self.start("later", "shmem", f"role=pong rounds=10 name=given {vmm_case.RALLY}", SHMEM, control)
        host_shm.ping(host, 10)
        self.finish(guest)

    def test_a_create_line_that_the_service_refuses_fails_the_start(self):
        text, control = door(self.folder, "guest", '{ deny = "secret*" }')
        self.serve(text)
        vm = self.start("maker", "hello", "", f"{SHMEM}    create secret-1,0x1000\n", control)
        self.assertEqual(vm.wait(vmm_case.PATIENCE), vmm.NOT_STARTED, vm.tail())
        self.assertIn("secret-1", vm.output())


class DeathTest(vmm_case.VmmCase):
    def test_the_others_see_a_killed_machine_leave(self):
        self.serve()
        host = self.host("payload")
        watcher = self.start("watcher", "shmem", "role=watch events=1000 timeout=40000", SHMEM)
        without = self.wait_attached(watcher)
        victim = self.start("victim", "shmem", f"role=pong {vmm_case.RALLY}", SHMEM)
        everybody = self.wait_attached(victim)
        self.assertEqual((without.bit_count(), everybody.bit_count(), without & everybody), (2, 3, without))
        host.wait_until(lambda s: s.active == everybody, vmm_case.PATIENCE, "the host sees the victim")
        watcher.wait_for(f"^event notified 0x0 active {everybody:#x}$", vmm_case.PATIENCE)
        victim.kill()
        host.wait_until(lambda s: s.active == without, vmm_case.PATIENCE, "the host sees the victim leave")
        watcher.wait_for(f"^event notified 0x0 active {without:#x}$", vmm_case.PATIENCE)
        watcher.send_signal(signal.SIGTERM)
        self.assertEqual(watcher.wait(vmm_case.PATIENCE), vmm.ENDED, watcher.tail())

    def play_on_without_service(self, payload, vdevs, name):
        service = self.serve(words=["--keeper"])
        host = self.host(name)
        play = f"name={name} rounds=1000000000 {vmm_case.RALLY}"
        players = [self.start(role, payload, f"role={role} {play}", vdevs) for role in ("pong", "ping")]

        def wait_for_rounds(count):
            start = host.word(host_shm.PONG_NUMBER)
            self.wait_until(lambda: host.word(host_shm.PONG_NUMBER) >= start + count, f"{count} more rounds")

        wait_for_rounds(20)
        service.kill()
        wait_for_rounds(200)
        service = self.serve(words=["--keeper"])
        wait_for_rounds(20)
        with self.assertRaises(AssertionError):
            service.wait_for("error: ", 0)
        late = self.start("late", "shmem", f"role=watch events=0 name={name}", SHMEM)
        self.finish(late)
        for player in players:
            player.send_signal(signal.SIGTERM)
            self.assertEqual(player.wait(vmm_case.PATIENCE), vmm.ENDED, player.tail())
        host.wait_until(lambda s: s.active == 1 << s.idx, vmm_case.PATIENCE, "the players have left")

    def test_machines_with_shmem_play_on_when_the_service_is_killed_and_comes_back(self):
        self.play_on_without_service("shmem", SHMEM, "mbox")

    def test_machines_with_ivshmem_play_on_when_the_service_is_killed_and_comes_back(self):
        self.play_on_without_service("ivshmem", vmm.ivshmem("mbox"), "mbox")

    def test_a_machine_ends_when_its_service_is_gone_for_good(self):
        service = self.serve()
        player = self.start("pong", "shmem", f"role=pong {vmm_case.RALLY}", SHMEM)
        self.wait_attached(player)
        service.kill()
        player.send_signal(signal.SIGTERM)
        self.assertEqual(player.wait(vmm_case.PATIENCE), vmm.ENDED, player.tail())


if __name__ == "__main__":
    vmm_case.main()
