# SPDX-License-Identifier: Apache-2.0
"""Hot unplug of the ivshmem device after a peer has left.

A server that sends disconnect notices makes QEMU free the peer's table twice: QEMU aborts when the device is
unplugged. With stable ids nothing is sent after the handshake, and QEMU stays alive.
"""

import e2e_case
import guest_mailbox as mailbox
import share_service
from processes import wait_until

VM_SLOT = 1
EJECT_TIMEOUT = 60


class DeviceDelTest(e2e_case.E2eCase):
    def test_qemu_survives_device_del_after_a_peer_left_and_device_add(self):
        self.start_service(share_service.Share("mailbox", slots=4, vms={"host": 0, "guest": VM_SLOT}))
        # Both peers are there when QEMU joins, and both leave while it runs: the first may be anybody.
        leaver = self.connect_peer("host")
        other = self.connect_peer()
        guest = self.start_guest("guest", "counter", "guest", hotplug=True, qmp=self.folder / "qmp.sock")
        with guest.connect_qmp() as qmp:
            guest.wait_for(f"^ready: slot {VM_SLOT},", e2e_case.BOOT_TIMEOUT)
            self.assert_kick_arrives(leaver, 1)
            leaver.close()
            other.close()
            wait_until(lambda: self.service.count_joined() == 1, 10, "the service has seen the peers leave")
            for cycle in (1, 2):
                self.unplug(guest, qmp)
                self.plug_in(guest, qmp)
                self.leave_once_more(cycle)
            self.stop(guest)

    def unplug(self, guest, qmp):
        seen = len(guest.lines)
        qmp.execute("device_del", {"id": "shm"})
        while qmp.wait_event("DEVICE_DELETED", EJECT_TIMEOUT)["data"].get("device") != "shm":
            pass
        guest.wait_for("^removed: ", EJECT_TIMEOUT, since=seen)
        self.assertTrue(qmp.execute("query-status")["running"])
        # QEMU keeps the connection of an unplugged device: it goes with its chardev.
        qmp.execute("chardev-remove", {"id": "shm-socket"})
        wait_until(lambda: self.service.count_joined() == 0, 10, "the service has seen the device leave")
        self.assertTrue(guest.is_running(), guest.tail())

    def plug_in(self, guest, qmp):
        seen = len(guest.lines)
        path = str(self.service.socket("guest"))
        qmp.execute("chardev-add", {"id": "shm-socket", "backend": {"type": "socket", "data": {
            "addr": {"type": "unix", "data": {"path": path}}, "server": False}}})
        qmp.execute("device_add", {"driver": "ivshmem-doorbell", "id": "shm", "chardev": "shm-socket",
                                   "vectors": 2, "bus": "shm-port"})
        guest.wait_for(f"^ready: slot {VM_SLOT},", EJECT_TIMEOUT, since=seen)

    def leave_once_more(self, sequence):
        peer = self.connect_peer("host")
        self.assert_kick_arrives(peer, 10 + sequence)
        peer.close()
        wait_until(lambda: self.service.count_joined() == 1, 10, "the service has seen the peer leave")

    def assert_kick_arrives(self, peer, sequence):
        record = mailbox.Record(peer.map(), VM_SLOT)
        try:
            record.send(0, sequence)
            peer.kick(VM_SLOT, 0)
            wait_until(lambda: record.seen(0) == sequence, 20, f"interrupt for kick {sequence}")
        finally:
            record.release()

    def stop(self, guest):
        peer = self.connect_peer("host")
        record = mailbox.Record(peer.map(), VM_SLOT)
        record.command(mailbox.STOP)
        record.release()
        peer.kick(VM_SLOT, 0)
        self.assert_clean_end(guest)
        peer.close()
        self.assert_service_ends()


if __name__ == "__main__":
    e2e_case.main()
