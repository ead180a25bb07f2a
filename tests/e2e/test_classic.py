# SPDX-License-Identifier: Apache-2.0
"""Classic ids with real QEMUs: ids in order of arrival, notices of who comes and goes, messages exchanged."""

import e2e_case
import guest_mailbox as mailbox
import share_service
from processes import wait_until

MESSAGE = "hello by order of arrival"


class ClassicTest(e2e_case.E2eCase):
    def test_two_guests_exchange_a_message_and_a_host_peer_sees_them_leave(self):
        self.start_service(share_service.Share("mailbox", ids="classic"))
        relay = self.start_guest("relay", "relay 1 1")
        wait_until(lambda: self.service.count_joined() == 1, 60, "the first guest has joined")
        listener = self.start_guest("listener", "listen")
        wait_until(lambda: self.service.count_joined() == 2, 60, "the second guest has joined")
        host = self.connect_peer()
        self.assertEqual(host.id, 2)
        self.assertEqual({peer: len(events) for peer, events in host.eventfds.items()}, {0: 2, 1: 2, 2: 2})
        relay.wait_for("^ready: slot 0,", e2e_case.BOOT_TIMEOUT)
        listener.wait_for("^ready: slot 1,", e2e_case.BOOT_TIMEOUT)

        mailbox.set_message(host.map(), MESSAGE)
        host.kick(0, 0)

        for guest in (relay, listener):
            guest.wait_for(f"^received IRQ and full message: {MESSAGE}$", 30)
            self.assert_clean_end(guest)
        wait_until(lambda: self.service.count_joined() == 1, 10, "the service has seen the guests leave")
        while not host.is_quiet(0):
            host.next_message()
        self.assertEqual(sorted(host.decoder.gone), [0, 1], "the host peer was told that both guests have left")
        self.assertEqual(set(host.eventfds), {0, 1, 2}, "nobody else has come")
        self.assertEqual(self.connect_peer().id, 3, "ids are not used again")
        self.assert_service_ends()


if __name__ == "__main__":
    e2e_case.main()
