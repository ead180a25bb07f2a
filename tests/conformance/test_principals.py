# SPDX-License-Identifier: Apache-2.0
"""Which VM a caller of the common control socket is: by its group, by its cgroup; a service that drops to its user."""

import os
import pwd

from control_peer import ControlError, ControlPeer
from kept_service import Session
from service import NOBODY, is_instrumented, main, need_root, run_as
from test_rights import OTHER, RightsCase, config, vm

STRANGER = 65532


def unified_folder():
    """Where the unified hierarchy is mounted and groups can be made; None where neither."""
    with open("/proc/mounts", encoding="utf-8") as file:
        places = [words[1] for words in map(str.split, file) if words[2] == "cgroup2"]
    return next((place for place in places if os.access(place, os.W_OK)), None)


def run_as_child(uid, gid, function, enter=lambda: None):
    """run_as() with a group of its own, after enter() as root."""
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read_end)
            enter()
            os.setgroups([])
            os.setresgid(gid, gid, gid)
            os.setresuid(uid, uid, uid)
            os.write(write_end, str(function()).encode())
        except BaseException as problem:  # the child must never return into the test runner
            os.write(write_end, f"{type(problem).__name__}: {problem}".encode())
        os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        text = pipe.read().decode()
    os.waitpid(child, 0)
    return text


class PrincipalsCase(RightsCase):
    def attach_to_both(self):
        """What a caller of the common socket gets of "mailbox" and "secret"."""
        said = []
        with ControlPeer(self.path("control")) as control:
            for share in ("mailbox", "secret"):
                try:
                    with Session(control, share) as session:
                        said.append(str(session.slot))
                except ControlError as refusal:
                    said.append(refusal.message)
        return "; ".join(said)

    def stranger(self, uid):
        return "; ".join([f"uid {uid} may list and stat, but is not an operator of this service"] * 2)


class Groups(PrincipalsCase):
    @need_root
    def test_a_vm_is_known_by_its_group_whatever_the_user(self):
        self.serve_rights(vm("linux", ['{ allow = "mail*" }'], who=f"{{ group = {NOBODY} }}", socket=False))
        self.assertEqual(run_as(NOBODY, self.attach_to_both), "0; vm 'linux' may not attach to share 'secret'")
        self.assertEqual(run_as(OTHER, self.attach_to_both), self.stranger(OTHER))
        self.assertEqual(run_as_child(STRANGER, NOBODY, self.attach_to_both),
                         "0; vm 'linux' may not attach to share 'secret'")

    @need_root
    def test_user_and_group_have_to_fit_both(self):
        self.serve_rights(vm("linux", who=f"{{ user = {NOBODY}, group = {OTHER} }}", socket=False))
        self.assertEqual(run_as_child(NOBODY, OTHER, self.attach_to_both), "0; 0")
        self.assertEqual(run_as_child(NOBODY, NOBODY, self.attach_to_both), self.stranger(NOBODY))
        self.assertEqual(run_as_child(OTHER, OTHER, self.attach_to_both), self.stranger(OTHER))


class ControlGroups(PrincipalsCase):
    def setUp(self):
        super().setUp()
        folder = unified_folder()
        if folder is None:
            self.skipTest("no unified hierarchy of control groups that can be written to")
        self.groups = os.path.join(folder, os.path.basename(self.directory))
        try:
            for name in ("", "linux-1", "qnx"):
                os.mkdir(os.path.join(self.groups, name))
                self.addCleanup(os.rmdir, os.path.join(self.groups, name))
        except OSError as problem:
            self.skipTest(f"no control group can be made: {problem}")

    def run_in(self, group, uid=NOBODY):
        """attach_to_both() of another uid in that control group."""
        def enter():
            with open(os.path.join(self.groups, group, "cgroup.procs"), "w", encoding="ascii") as file:
                file.write(str(os.getpid()))

        return run_as_child(uid, uid, self.attach_to_both, enter)

    @need_root
    def test_a_vm_is_known_by_its_control_group(self):
        pattern = f"/{os.path.basename(self.directory)}/linux*"
        self.serve_rights(vm("linux", ['{ allow = "mail*" }'], who=f'{{ cgroup = "{pattern}" }}', socket=False))
        self.assertEqual(self.run_in("linux-1"), "0; vm 'linux' may not attach to share 'secret'")
        self.assertEqual(self.run_in("linux-1", OTHER), "0; vm 'linux' may not attach to share 'secret'")
        self.assertEqual(self.run_in("qnx"), self.stranger(NOBODY))
        self.assertEqual(run_as(NOBODY, self.attach_to_both), self.stranger(NOBODY))

    @need_root
    def test_user_and_control_group_have_to_fit_both(self):
        pattern = f"/{os.path.basename(self.directory)}/linux*"
        self.serve_rights(vm("linux", who=f'{{ user = {NOBODY}, cgroup = "{pattern}" }}', socket=False))
        self.assertEqual(self.run_in("linux-1"), "0; 0")
        self.assertEqual(self.run_in("linux-1", OTHER), self.stranger(OTHER))
        self.assertEqual(self.run_in("qnx"), self.stranger(NOBODY))


class OwnUser(PrincipalsCase):
    @need_root
    def test_a_service_that_drops_to_a_user_serves_and_can_do_no_more_than_that_user(self):
        # An account that exists: the service takes its groups from the list of accounts.
        own = next((user for user in pwd.getpwall() if user.pw_uid not in (0, NOBODY)), None)
        if own is None:
            self.skipTest("no account but root and nobody")
        os.chown(self.directory, own.pw_uid, own.pw_gid)
        self.open_to_everybody()
        text = f'user = "{own.pw_name}"\n' + config(vm("linux", ['{ allow = "mail*" }'], who=f"{{ user = {NOBODY} }}",
                                                 socket=False))
        service = self.serve(["--config", self.write_config(text)])
        with open(f"/proc/{service.pid}/status", encoding="ascii") as file:
            status = dict(line.split(":", 1) for line in file)
        self.assertEqual(status["Uid"].split(), [str(own.pw_uid)] * 4)
        self.assertEqual(status["Gid"].split(), [str(own.pw_gid)] * 4)
        for key in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
            self.assertEqual(int(status[key], 16), 0, key)
        self.assertEqual(int(status["NoNewPrivs"]), 1)
        if not is_instrumented():
            self.assertEqual(int(status["Seccomp"]), 2, "a filter")
        self.assertEqual(run_as(NOBODY, self.attach_to_both), "0; vm 'linux' may not attach to share 'secret'")
        self.assertEqual(run_as(own.pw_uid, self.attach_to_both), "7; 3", "its own user is the host")
        self.assertEqual(run_as(STRANGER, self.attach_to_both), self.stranger(STRANGER))


if __name__ == "__main__":
    main()
