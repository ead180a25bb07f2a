# SPDX-License-Identifier: Apache-2.0
"""A share that is kept alive by a connection without a place in it (share.hold)."""

import errno
import socket

from control_peer import ControlError
from ivshmem_peer import receive_message, select_readable
from kept_service import KeptCase
from service import main, share_config, wait_until

SIZE = 65536


class HoldCase(KeptCase):
    def setUp(self):
        super().setUp()
        self.config = self.write_config(share_config(4, 2) + """
[[vm]]
name = "vm"
socket = "@/vm"
rules = [ { deny = "secret*" }, { allow = "given", may = ["attach"] }, { allow = "*" } ]
""")
        self.service = self.start(self.config)

    def hold(self, share="region", control="control", **arguments):
        """The stream that holds it, when the memory is there."""
        call = {"share": share, "create": True, "size": SIZE, "slots": 16, **arguments}
        with self.control(control) as peer:
            reply, fds = peer.call_with_fds("share.hold", call)
        self.assertEqual(len(fds), 1)
        stream = socket.socket(fileno=fds[0])
        self.addCleanup(stream.close)
        self.assertTrue(select_readable(stream, 10.0))
        message = receive_message(stream)
        self.assertEqual((message.value, message.fd), (0, None))
        return stream, reply

    def refusal(self, **arguments):
        with self.assertRaises(ControlError) as caught:
            self.hold(**arguments)
        return caught.exception

    def shares(self):
        return {share["name"]: share for share in self.control().call("share.list")["shares"]}

    def assert_goes(self, share="region"):
        self.assertTrue(wait_until(lambda: share not in self.shares()))


class Life(HoldCase):
    def test_it_is_there_with_all_its_places_until_the_stream_is_closed(self):
        stream, reply = self.hold()
        self.assertEqual(reply, {"size": SIZE, "extent": SIZE, "slots": 16, "created": True})
        share = self.shares()["region"]
        self.assertEqual((share["peers"], share["holders"], share["stage"]), (0, 1, "ready"))
        sessions = [self.session(self.control(), "region") for _ in range(16)]
        self.assertEqual(sorted(session.slot for session in sessions), list(range(16)))
        for session in sessions:
            session.close()
        self.assertTrue(wait_until(lambda: self.shares()["region"]["peers"] == 0))
        stream.close()
        self.assert_goes()
        self.finish_all(self.service)

    def test_bytes_stay_while_it_is_held_and_are_zero_in_the_next_one(self):
        stream, _ = self.hold()
        for expected in (b"\0\0\0\0", b"kept"):
            session = self.session(self.control(), "region")
            memory = session.peer.map()
            self.assertEqual(memory[:4], expected)
            memory[:4] = b"kept"
            session.close()
        stream.close()
        self.assert_goes()
        self.hold()
        self.assertEqual(self.session(self.control(), "region").peer.map()[:4], b"\0\0\0\0")

    def test_a_share_of_the_file_can_be_held_and_stays_afterwards(self):
        stream, reply = self.hold("mailbox")
        self.assertEqual((reply["created"], reply["slots"]), (False, 4))
        stream.close()
        self.assertTrue(wait_until(lambda: self.shares()["mailbox"]["holders"] == 0))

    def test_a_holder_that_speaks_is_closed(self):
        stream, _ = self.hold()
        stream.send(b"x")
        self.assert_goes()
        self.assertTrue(select_readable(stream, 5.0))


class Rights(HoldCase):
    def test_a_vm_holds_what_it_may_attach_to_and_makes_what_it_may_create(self):
        self.assertEqual(self.refusal(share="secret-1", control="vm").errno, errno.EACCES)
        self.assertEqual(self.refusal(share="given", control="vm").errno, errno.EACCES)
        self.hold("given")
        self.hold("given", control="vm")
        self.hold("other", control="vm")
        self.assertEqual(self.shares()["other"]["maker"], "vm")
        self.hold("secret-1")
        self.assertEqual(self.refusal(share="secret-1", control="vm").errno, errno.EACCES)

    def reload(self, vm_rules):
        with open(self.config, encoding="utf-8") as file:
            text = file.read()
        self.write_config(text[:text.index("rules = ")] + f"rules = [ {vm_rules} ]\n")
        self.control().call("share.reload")

    def test_who_loses_its_right_holds_it_no_more(self):
        stream, _ = self.hold(control="vm")
        other, _ = self.hold("other")
        self.reload('{ deny = "*" }')
        self.assert_goes()
        self.assertTrue(select_readable(stream, 5.0))
        self.assertEqual(stream.recv(8), b"")
        self.assertFalse(select_readable(other, 0.05))
        self.assertIn("other", self.shares())

    def test_who_made_it_holds_it_by_the_right_to_make_it(self):
        self.reload('{ allow = "*", may = ["create"] }')
        stream, _ = self.hold(control="vm")
        self.reload('{ allow = "reg*", may = ["create"] }')
        self.assertFalse(select_readable(stream, 0.05))
        self.assertIn("region", self.shares())

    def test_nobody_holds_a_share_that_the_file_has_no_more(self):
        stream, _ = self.hold("mailbox")
        with open(self.config, encoding="utf-8") as file:
            text = file.read()
        self.write_config(text.replace('name = "mailbox"', 'name = "another"'))
        self.control().call("share.reload")
        self.assertTrue(select_readable(stream, 5.0))
        self.assertEqual(stream.recv(8), b"")
        self.assert_goes("mailbox")

    def test_what_is_not_there_is_not_made_unasked_or_without_a_size(self):
        self.assertEqual(self.refusal(create=False).errno, errno.ENOENT)
        self.assertEqual(self.refusal(size=0).errno, errno.EINVAL)
        self.assertEqual(self.refusal(share="a/b").errno, errno.EINVAL)
        self.assertNotIn("region", self.shares())


class TakeOver(HoldCase):
    def test_it_survives_a_killed_service(self):
        stream, _ = self.hold()
        session = self.session(self.control(), "region")
        session.peer.map()[:4] = b"kept"
        session.close()
        for _ in range(2):
            self.service = self.follow(self.service, self.config)
            self.assertEqual(self.shares()["region"]["holders"], 1)
            self.assertFalse(select_readable(stream, 0.05), "it has heard something, or was closed")
            session = self.session(self.control(), "region")
            self.assertEqual(session.peer.map()[:4], b"kept")
            session.close()
        stream.close()
        self.assert_goes()
        self.finish_all(self.service)

    def test_a_holder_that_left_meanwhile_holds_nothing(self):
        stream, _ = self.hold()
        self.kill(self.service)
        stream.close()
        self.service = self.start(self.config)
        self.assert_goes()
        self.finish_all(self.service)


if __name__ == "__main__":
    main()
