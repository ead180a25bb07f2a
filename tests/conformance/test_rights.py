# SPDX-License-Identifier: Apache-2.0
"""Who a client is, what it may do, what it is told when it may not, and what it keeps when it may no more."""

import ctypes
import errno
import mmap
import os
import re
import signal
import subprocess

import ivshmem_peer
from control_peer import ControlError, ControlPeer
from ivshmem_peer import Peer, identity_of
from kept_service import SENDER_BYTES, KeptCase, Session, mapping_fails, seals_of
from service import NOBODY, main, need_root, program, run_as, wait_until

OTHER = 65533

HEAD = """
[control]
path = "@/control"
mode = "0666"

[limits]
{limits}

[[share]]
name = "mailbox"
size = "64K"
vectors = 2
slots = 8
socket = "@/sock"

[[share]]
name = "secret"
size = "4K"
vectors = 1
slots = 4
socket = "@/secret.sock"
"""


def vm(name, rules=None, *, who=None, socket=True, limits=None, attach=(), mode="0666"):
    """A [[vm]]; `attach` are (share, slot) with a door at NAME-SHARE."""
    lines = ["", "[[vm]]", f'name = "{name}"']
    if socket:
        lines += [f'socket = "@/{name}"', f'mode = "{mode}"']
    if who:
        lines.append(f"who = {who}")
    if rules is not None:
        lines += ["rules = [", *(f"  {rule}," for rule in rules), "]"]
    if limits:
        lines.append(f"limits = {limits}")
    for share, slot in attach:
        lines += ["[[vm.attach]]", f'share = "{share}"', f"slot = {slot}", f'socket = "@/{name}-{share}"',
                  'mode = "0666"']
    return "\n".join(lines) + "\n"


def config(*vms, limits=""):
    return HEAD.format(limits=limits) + "".join(vms)


class RightsCase(KeptCase):
    def refusal_of(self, function):
        with self.assertRaises(ControlError) as caught:
            function()
        return caught.exception

    def assert_refused(self, control, text, share, **arguments):
        refusal = self.refusal_of(lambda: Session(control, share, **arguments))
        self.assertEqual((refusal.code, refusal.errno, refusal.message), ("permission_denied", errno.EACCES, text))

    def serve_rights(self, *vms, limits="", **options):
        self.open_to_everybody()
        self.config = self.write_config(config(*vms, limits=limits))
        return self.serve(["--config", self.config], **options)

    def reload(self, *vms):
        """By the tool; its lines."""
        self.write_config(config(*vms))
        done = self.run_tool("share", "reload", "--control", self.path("control"))
        self.assertEqual(done.returncode, 0, done.stderr)
        return done.stdout.splitlines()


class Principals(RightsCase):
    def test_the_socket_says_which_vm_it_is(self):
        self.serve_rights(vm("linux", ['{ allow = "mail*" }']), vm("qnx", ['{ allow = "secret" }']))
        linux, qnx = self.control("linux"), self.control("qnx")
        self.session(linux)
        self.assert_refused(linux, "vm 'linux' may not attach to share 'secret'", "secret")
        self.session(qnx, "secret")
        self.assert_refused(qnx, "vm 'qnx' may not attach to share 'mailbox'", "mailbox")
        peers = self.control().stat("mailbox")["peers"]
        self.assertEqual([peer["vm"] for peer in peers], ["linux"])

    @need_root
    def test_the_common_socket_knows_vms_by_their_uid(self):
        self.serve_rights(vm("linux", ['{ allow = "mail*" }'], who=f"{{ user = {NOBODY} }}", socket=False))

        def as_somebody():
            said = []
            with ControlPeer(self.path("control")) as control:
                for share in ("mailbox", "secret"):
                    try:
                        with Session(control, share) as session:
                            said.append(str(session.slot))
                    except ControlError as refusal:
                        said.append(refusal.message)
            return "; ".join(said)

        self.assertEqual(run_as(NOBODY, as_somebody), "0; vm 'linux' may not attach to share 'secret'")
        self.assertEqual(run_as(OTHER, as_somebody),
                         f"uid {OTHER} may list and stat, but is not an operator of this service; "
                         f"uid {OTHER} may list and stat, but is not an operator of this service")
        self.assertEqual(as_somebody(), "7; 3", "the host may everything, and takes the highest slot")

    @need_root
    def test_a_vms_socket_with_who_is_for_nobody_else(self):
        service = self.serve_rights(vm("linux", who=f"{{ user = {NOBODY} }}"))

        def attach():
            try:
                with ControlPeer(self.path("linux")) as control, Session(control, "mailbox") as session:
                    return str(session.slot)
            except ControlError as refusal:
                return f"{refusal.code}: {refusal.message}"

        self.assertEqual(run_as(NOBODY, attach), "0")
        self.assertEqual(run_as(OTHER, attach), "permission_denied: this socket is for somebody else")
        self.assertEqual(len(service.wait_for_lines(f"uid {OTHER} at the socket of vm 'linux'", 1)), 1, service.log())

    def test_vms_have_no_calls_of_the_host(self):
        self.serve_rights(vm("linux"))
        linux = self.control("linux")
        for call, arguments in (("share.memory", {"share": "mailbox"}), ("share.reload", {}), ("share.retire", {}),
                                ("share.ring", {"share": "mailbox", "peer": 0, "vector": 0})):
            refusal = self.refusal_of(lambda: linux.call(call, arguments))
            self.assertEqual((refusal.code, refusal.errno), ("permission_denied", errno.EACCES), call)

    def test_a_vm_sees_only_the_shares_that_it_may(self):
        self.serve_rights(vm("linux", ['{ allow = "mail*" }']))
        linux = self.control("linux")
        self.assertEqual([share["name"] for share in linux.call("share.list")["shares"]], ["mailbox"])
        refusals = [self.refusal_of(lambda: linux.stat(name)) for name in ("secret", "nowhere")]
        self.assertEqual([refusal.message for refusal in refusals],
                         ["vm 'linux' may not see share 'secret'", "vm 'linux' may not see share 'nowhere'"])

    def test_a_vm_gets_its_own_slot_and_not_anothers(self):
        self.serve_rights(vm("linux", attach=[("mailbox", 2)]), vm("qnx", attach=[("mailbox", 5)]))
        linux = self.control("linux")
        refusal = self.refusal_of(lambda: Session(linux, "mailbox", slot=5))
        self.assertEqual(refusal.code, "busy")
        self.assertEqual(self.session(linux).slot, 2)
        self.assertEqual(self.refusal_of(lambda: Session(linux, "mailbox")).code, "busy")


class Rights(RightsCase):
    def test_without_attach_there_is_no_way_in(self):
        service = self.serve_rights(vm("linux", ['{ allow = "mailbox", may = ["create", "notify"] }'],
                                       attach=[("mailbox", 1)]))
        self.assert_refused(self.control("linux"), "vm 'linux' may not attach to share 'mailbox'", "mailbox")
        sock = ivshmem_peer.connect(self.path("linux-mailbox"))
        self.addCleanup(sock.close)
        self.assertEqual(ivshmem_peer.read_refusal(sock), errno.EACCES)
        said = service.wait_for_lines("'mailbox': refused", 2)
        self.assertEqual(len(said), 2, "one line each")
        for line in said:
            self.assertRegex(line, f"allow 'mailbox' .{re.escape(self.config)}:[0-9]+")

    def test_without_create_a_name_that_is_free_stays_free(self):
        self.serve_rights(vm("linux", ['{ allow = "*", may = ["attach", "notify"] }']),
                          vm("maker", ['{ allow = "made-*" }']))
        linux, maker = self.control("linux"), self.control("maker")
        self.assert_refused(linux, "vm 'linux' may not create share 'made-it'", "made-it", create=True, size=4096)
        with Session(maker, "made-it", create=True, size=4096, slots=3) as made:
            made.join()
            self.assertTrue(made.reply["created"])
            shares = {share["name"]: share for share in self.control().call("share.list")["shares"]}
            self.assertEqual((shares["made-it"]["maker"], shares["made-it"]["origin"]), ("maker", "dynamic"))
            self.assertFalse(self.session(linux, "made-it", create=True, size=4096).reply["created"])
        self.assert_refused(maker, "vm 'maker' may not attach to share 'other'", "other", create=True, size=4096)

    def test_without_notify_nobodys_doorbell_comes_and_the_sender_page_is_read_only(self):
        self.serve_rights(vm("linux", ['{ allow = "*", may = ["attach"] }'], attach=[("mailbox", 3)]))
        session = self.session(self.control("linux"))
        self.assertFalse(session.reply["may_notify"])
        self.assertEqual(list(session.peer.eventfds), [3])
        self.assertTrue(mapping_fails(session.senders[0], SENDER_BYTES))
        session.close()
        self.assertTrue(wait_until(lambda: not self.control().stat("mailbox")["peers"]))
        with Peer(self.path("linux-mailbox"), slots=None, vectors=2) as peer:
            self.assertEqual(list(peer.eventfds), [3])
            with Peer(self.path("sock"), slots=8, vectors=2) as other:
                other.kick(3, 1)
                self.assertEqual(peer.wait(1), 1, "it is rung all the same")

    def test_the_first_rule_that_fits_decides(self):
        self.serve_rights(vm("linux", ['{ deny = "sec*" }', '{ allow = "secret" }', '{ allow = "mail[a-c]ox" }',
                                       '{ allow = "mail?ox" }']))
        linux = self.control("linux")
        self.session(linux)
        self.assert_refused(linux, "vm 'linux' may not attach to share 'secret'", "secret")

    def test_with_only_denies_the_rest_is_allowed(self):
        self.serve_rights(vm("linux", ['{ deny = "secret" }']))
        linux = self.control("linux")
        self.session(linux)
        self.assertTrue(self.session(linux, "anything", create=True, size=4096).reply["created"])
        self.assert_refused(linux, "vm 'linux' may not attach to share 'secret'", "secret")


class Refusals(RightsCase):
    def test_they_say_the_same_whether_the_share_exists_and_the_log_has_one_line_with_its_place(self):
        service = self.serve_rights(vm("linux", ['{ allow = "mail*" }', '{ deny = "s*" }']))
        linux = self.control("linux")
        for share in ("secret", "sesame", "nowhere"):
            for create in (False, True):
                self.assert_refused(linux, f"vm 'linux' may not attach to share '{share}'", share, create=create,
                                    size=4096)
        with open(self.config, encoding="utf-8") as file:
            line = 1 + [text.strip() for text in file].index('{ deny = "s*" },')
        for share in ("secret", "sesame"):
            said = service.wait_for_lines(f"'{share}': refused", 2)
            self.assertEqual(len(said), 2, service.log())
            for text in said:
                self.assertRegex(text, f"warning: .*vm 'linux' \\(pid {os.getpid()}, uid {os.geteuid()}\\)")
                self.assertIn(f"deny 's*' ({self.config}:{line})", text)
        self.assertIn("the implicit 'deny *'", service.wait_for_lines("'nowhere': refused", 2)[0])

    def test_a_name_with_control_characters_stays_one_harmless_line(self):
        service = self.serve_rights(vm("linux", ['{ allow = "mail*" }']))
        linux = self.control("linux")
        mark = len(service.log())
        for name in ("x\nguestmem-share: error: forged", "\x1b[31mred\x1b[0m", "\x00", "x" * 5000, "\u202eevil"):
            self.assertEqual(self.refusal_of(lambda: Session(linux, name)).code, "permission_denied")
        lines = service.log()[mark:].splitlines()
        self.assertEqual(len(lines), 5, lines)
        for line in lines:
            self.assertRegex(line, r"^guestmem-share: warning: [ -~]{1,400}$")


class Limits(RightsCase):
    def refusal(self, control, share, **arguments):
        refusal = self.refusal_of(lambda: Session(control, share, **arguments))
        self.assertEqual((refusal.code, refusal.errno), ("exhausted", errno.EDQUOT), refusal)
        return refusal.message

    def make(self, control, name, **arguments):
        return self.session(control, name, create=True, **{"size": 4096, "slots": 2, **arguments})

    def test_of_one_vm(self):
        self.serve_rights(vm("linux", limits='{ shares = 2, bytes = "64K", peers = 3, vectors = 16 }'), vm("qnx"))
        linux = self.control("linux")
        self.make(linux, "one", size=32768)
        self.assertIn("bytes", self.refusal(linux, "two", create=True, size=65536, slots=2))
        self.assertIn("doorbells", self.refusal(linux, "two", create=True, size=4096, slots=15))
        two = self.make(linux, "two")
        self.assertIn("shares", self.refusal(linux, "three", create=True, size=4096, slots=2))
        three = self.session(linux)
        self.assertIn("peers", self.refusal(linux, "mailbox"))
        self.make(self.control("qnx"), "three")
        three.close()
        two.close()
        self.assertTrue(wait_until(lambda: len(linux.call("share.list")["shares"]) == 4, 10))
        self.make(linux, "four").close()

    def test_in_all(self):
        self.serve_rights(vm("linux"), vm("qnx"), limits='shares = 2\nbytes = "128K"\npeers = 3\nvectors = 20')
        linux, qnx = self.control("linux"), self.control("qnx")
        self.make(linux, "one", size=65536)
        self.assertIn("bytes", self.refusal(qnx, "two", create=True, size=69632, slots=2))
        self.make(qnx, "two")
        self.assertIn("shares", self.refusal(qnx, "three", create=True, size=4096, slots=2))
        self.session(qnx)
        self.assertIn("peers", self.refusal(linux, "mailbox"))
        sock = ivshmem_peer.connect(self.path("sock"))
        self.addCleanup(sock.close)
        self.assertEqual(ivshmem_peer.read_refusal(sock), errno.EDQUOT)

    def test_what_cannot_be_made_is_said_and_counts_nothing(self):
        self.serve_rights(vm("linux", limits="{ shares = 1 }"))
        linux = self.control("linux")
        for arguments in ({"size": 0}, {"size": 1 << 50}, {"size": 4096, "slots": 0}, {"size": 4096, "slots": 100_000},
                          {"size": 4096, "vectors": 0}, {"size": 4096, "vectors": 4096}, {}):
            refusal = self.refusal_of(lambda: Session(linux, "new", create=True, **arguments))
            self.assertEqual(refusal.code, "invalid_argument", (arguments, refusal))
        self.make(linux, "new")


class ReadOnly(RightsCase):
    RULE = ['{ allow = "mailbox", read_only = true }']

    def test_a_read_only_session_cannot_map_the_memory_writable(self):
        self.serve_rights(vm("linux", self.RULE))
        writer = self.session(self.control())
        writer.peer.map()[:4] = b"safe"
        session = self.session(self.control("linux"))
        self.assertTrue(session.reply["read_only"])
        self.assertTrue(mapping_fails(session.peer.memory, 65536))
        with mmap.mmap(session.peer.memory, 65536, prot=mmap.PROT_READ) as memory:
            self.assertEqual(memory[:4], b"safe")
        for peer in self.control().stat("mailbox")["peers"]:
            self.assertEqual(peer["read_only"], peer["slot"] == session.slot)

    def test_a_caller_may_ask_for_less_than_it_may(self):
        self.serve_rights(vm("linux"))
        linux = self.control("linux")
        session = self.session(linux, read_only=True)
        self.assertTrue(session.reply["read_only"])
        self.assertTrue(mapping_fails(session.peer.memory, 65536))
        self.assertFalse(self.session(linux).reply["read_only"])

    @need_root
    def test_another_uid_finds_no_way_around_it(self):
        self.serve_rights(vm("linux", self.RULE, who=f"{{ user = {NOBODY} }}"))
        self.attack_as(NOBODY)

    @need_root
    def test_another_uid_than_that_of_a_plain_service_finds_none_either(self):
        os.chown(self.directory, OTHER, OTHER)
        self.serve_rights(vm("linux", self.RULE, who=f"{{ user = {NOBODY} }}"), uid=OTHER,
                          binary=self.public_program())
        self.attack_as(NOBODY)

    def attack_as(self, uid):
        writer = self.session(self.control())
        writer.peer.map()[:4] = b"safe"

        def attack():
            libc = ctypes.CDLL(None, use_errno=True)
            libc.mmap.restype = ctypes.c_void_p
            libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int,
                                  ctypes.c_long]
            libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
            won = []
            with ControlPeer(self.path("linux")) as control, Session(control, "mailbox") as session:
                session.join()
                others = [("presence", session.presence), ("senders", session.senders[1])]
                for name, fd in [("memory", session.peer.memory), *others]:
                    if not mapping_fails(fd, 4096):
                        won.append(f"{name}: mmap")
                    for flags in (os.O_RDWR, os.O_WRONLY):
                        try:
                            os.close(os.open(f"/proc/self/fd/{fd}", flags))
                            won.append(f"{name}: open {flags}")
                        except PermissionError:
                            pass
                    try:
                        os.write(fd, b"evil")
                        won.append(f"{name}: write")
                    except OSError:
                        pass
                    try:
                        os.ftruncate(fd, 0)
                        won.append(f"{name}: truncate")
                    except OSError:
                        pass
                    at = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, fd, 0)
                    if libc.mprotect(at, 4096, mmap.PROT_READ | mmap.PROT_WRITE) == 0:
                        won.append(f"{name}: mprotect")
                won += [] if session.reply["read_only"] else ["not read-only"]
            return "; ".join(won)

        self.assertEqual(run_as(uid, attack), "")
        self.assertEqual(writer.peer.map()[:4], b"safe")

    def test_the_pages_cannot_change_their_size(self):
        self.serve_rights()
        session = self.session(self.control())
        wanted = 0x2 | 0x4  # F_SEAL_SHRINK, F_SEAL_GROW
        for fd in (session.peer.memory, session.presence, *session.senders):
            self.assertEqual(seals_of(fd) & wanted, wanted)


class Reload(RightsCase):
    ALL = vm("linux", ['{ allow = "*" }'], attach=[("mailbox", 1)])
    NONE = vm("linux", ['{ deny = "mailbox" }'], attach=[("mailbox", 1)])

    def revoked(self):
        return {peer["slot"]: peer["revoked"] for peer in self.control().stat("mailbox")["peers"]}

    def test_who_loses_its_right_keeps_its_memory_and_hears_no_bell(self):
        service = self.serve_rights(self.ALL)
        host = self.session(self.control(), slot=7)
        session = self.session(self.control("linux"))
        session.peer.map()[:4] = b"mine"
        self.assertEqual(self.revoked(), {7: False, 1: False})
        changes = self.reload(self.NONE)
        self.assertEqual(len([line for line in changes if "has lost its right" in line]), 1, changes)
        self.assertEqual(self.revoked(), {7: False, 1: True})
        while session.hears_bell(0) or host.hears_bell(0):
            pass
        newcomer = self.join(slots=8)
        self.assertTrue(host.hears_bell(), "who has its right hears of it")
        self.assertFalse(session.hears_bell(0.2), "who has lost it does not")
        self.assert_stays(session.peer)
        host.peer.kick(1, 0)
        self.assertEqual(session.peer.wait(0), 1)
        session.peer.map()[4:8] = b"kept"
        self.assertEqual(newcomer.map()[:8], b"minekept")
        self.assert_refused(self.control("linux"), "vm 'linux' may not attach to share 'mailbox'", "mailbox")
        changes = self.reload(self.ALL)
        self.assertEqual(len([line for line in changes if "has its right again" in line]), 1, changes)
        newcomer.close()
        self.assertTrue(session.hears_bell(), "with its right it hears of the next change")
        session.close()
        self.assertTrue(wait_until(lambda: 1 not in self.revoked()))
        self.reload(self.NONE)
        sock = ivshmem_peer.connect(self.path("linux-mailbox"))
        self.addCleanup(sock.close)
        self.assertEqual(ivshmem_peer.read_refusal(sock), errno.EACCES)
        self.assertTrue(service.is_alive())

    def test_sighup_is_the_same(self):
        service = self.serve_rights(self.ALL)
        session = self.session(self.control("linux"))
        self.write_config(config(self.NONE))
        service.process.send_signal(signal.SIGHUP)
        self.assertTrue(wait_until(lambda: self.revoked() == {1: True}, 10), service.log())
        self.assert_stays(session.peer)

    def test_a_mistake_changes_nothing(self):
        service = self.serve_rights(self.ALL)
        session = self.session(self.control("linux"))
        self.write_config(config(self.NONE) + "nonsense = 1\n")
        done = self.run_tool("share", "reload", "--control", self.path("control"))
        self.assertEqual(done.returncode, 1)
        self.assertIn("nonsense", done.stderr)
        self.assertEqual(self.revoked(), {1: False})
        service.process.send_signal(signal.SIGHUP)
        self.assertTrue(service.wait_for_lines("reload: nothing has changed", 2), service.log())
        self.assert_stays(session.peer)
        self.assertEqual(len(self.control("linux").call("share.list")["shares"]), 2)

    def test_a_vm_that_is_gone_has_no_rights_and_no_socket(self):
        self.serve_rights(self.ALL)
        session = self.session(self.control("linux"))
        self.reload()
        self.assertFalse(os.path.lexists(self.path("linux")))
        self.assertFalse(os.path.lexists(self.path("linux-mailbox")))
        self.assertEqual(self.revoked(), {1: True})
        self.assert_stays(session.peer)

    def test_a_session_that_reads_only_from_now_on_is_revoked_and_its_successor_reads_only(self):
        self.serve_rights(self.ALL)
        session = self.session(self.control("linux"))
        memory = identity_of(session.peer.memory)
        self.reload(vm("linux", ['{ allow = "*", read_only = true }'], attach=[("mailbox", 1)]))
        self.assertEqual(self.revoked(), {1: True})
        session.close()
        self.assertTrue(wait_until(lambda: not self.revoked()))
        again = self.session(self.control("linux"))
        self.assertTrue(again.reply["read_only"])
        self.assertTrue(mapping_fails(again.peer.memory, 65536))
        self.assertEqual(identity_of(again.peer.memory), memory)

    def test_what_a_take_over_finds_changed_is_as_after_a_reload(self):
        self.open_to_everybody()
        path = self.write_config(config(self.ALL))
        service = self.start(path)
        session = self.session(self.control("linux"))
        self.kill(service)
        self.write_config(config(self.NONE))
        service = self.start(path)
        self.assertEqual(self.revoked(), {1: True})
        self.assert_stays(session.peer)
        self.write_config(config(self.ALL))
        service = self.follow(service, path)
        self.assertEqual(self.revoked(), {1: False})
        self.finish_all(service)

    def test_a_list_says_which_instance_it_is_and_who_keeps_it(self):
        path = self.write_config(config(self.ALL))
        service = self.start(path)

        def last_line():
            done = self.run_tool("share", "list", "--control", self.path("control"))
            self.assertEqual(done.returncode, 0, done.stderr)
            return done.stdout.splitlines()[-1]

        held = r"held by the keeper \(pid \d+\)$"
        self.assertRegex(last_line(), rf"^service {service.pid}, instance 1, {held}")
        service = self.follow(service, path)
        self.assertRegex(last_line(), rf"^service {service.pid}, instance 2, {held}")
        self.finish_all(service)


class LeastPrivilege(RightsCase):
    # Its own /run, so that no other service's run-time folder is touched.
    SCRIPT = """
        mount -t tmpfs none /run || exit 77
        "$0" share serve --config "$1" 2>/run/log & service=$!
        for turn in $(seq 400); do
            if grep -q ready: /run/log || ! kill -0 $service; then break; fi
            sleep 0.05
        done
        stat -c 'folder of %u' /run/guestmem
        kill -TERM $service; wait $service
        echo "ended with $?"
        ls /run/guestmem
        cat /run/log >&2
    """

    @need_root
    def test_the_runtime_folder_is_the_users_and_empty_at_the_end(self):
        path = self.write_config(f'user = "{NOBODY}"\n[[share]]\nname = "m"\nsize = "4K"\n')
        alone = ["unshare", "--mount", "--propagation", "private"]
        done = subprocess.run([*alone, "sh", "-c", self.SCRIPT, program(), path], capture_output=True,
                              text=True, timeout=60, check=False)
        if done.returncode == 77 or "unshare" in done.stderr:
            self.skipTest(f"no mounts of our own here: {done.stderr.strip()}")
        self.assertEqual(done.stdout.splitlines(), [f"folder of {NOBODY}", "ended with 0"], done.stderr)


if __name__ == "__main__":
    main()
