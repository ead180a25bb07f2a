# SPDX-License-Identifier: Apache-2.0
"""The systemd units and snippets: what systemd says of them, and what the service relies on."""

import os
import re
import shutil
import subprocess
import tempfile
import unittest
from pathlib import Path

from service import main

SOURCE = Path(os.environ["GUESTMEM_SOURCE"]) / "packaging"
BUILD = os.environ["GUESTMEM_BUILD"]
PROGRAM = os.environ["GUESTMEM"]
TIMEOUT = 60
UNITS = ("guestmem-share.service", "guestmem-share.socket")


def read_unit(name):
    """Section -> key -> list of values: a key may stand there more than once."""
    sections = {}
    section = None
    for line in (SOURCE / name).read_text().splitlines():
        if found := re.fullmatch(r"\[(\w+)\]", line):
            section = sections.setdefault(found.group(1), {})
        elif line and not line.startswith("#"):
            key, value = line.split("=", 1)
            section.setdefault(key, []).append(value)
    return sections


def need_program(name):
    return unittest.skipUnless(shutil.which(name), f"{name} is not installed")


class Units(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def assert_verified(self, paths):
        environment = dict(os.environ, SYSTEMD_UNIT_PATH=f"{self.folder}:", SYSTEMD_LOG_LEVEL="warning")
        done = subprocess.run(["systemd-analyze", "verify", "--man=no", "--recursive-errors=no", *map(str, paths)],
                              capture_output=True, text=True, timeout=TIMEOUT, env=environment)
        # Units of the host may have complaints of their own.
        own = [line for line in done.stderr.splitlines() if "guestmem" in line]
        self.assertEqual(own, [])
        self.assertEqual(done.returncode, 0, done.stderr)

    def copy_units(self):
        paths = []
        for name in UNITS:
            text = (SOURCE / name).read_text().replace("/usr/bin/guestmem", PROGRAM)
            paths.append(self.folder / name)
            paths[-1].write_text(text)
        return paths

    @need_program("systemd-analyze")
    def test_systemd_accepts_the_units(self):
        self.assert_verified(self.copy_units())

    @need_program("systemd-analyze")
    def test_systemd_complains_of_a_unit_that_is_wrong(self):
        paths = self.copy_units()
        paths[0].write_text(paths[0].read_text().replace("ProtectSystem=strict", "ProtectSystm=strict"))
        with self.assertRaises(AssertionError):
            self.assert_verified(paths)

    def test_the_service_is_restarted_and_its_descriptors_are_kept(self):
        service = read_unit("guestmem-share.service")["Service"]
        self.assertEqual(service["Type"], ["notify"])
        self.assertEqual(service["Restart"], ["always"])
        self.assertEqual(service["NotifyAccess"], ["main"])
        self.assertEqual(service["RuntimeDirectory"], ["guestmem"])
        self.assertEqual(service["RuntimeDirectoryPreserve"], ["yes"])
        # A share of 1,000 slots with 4 vectors and a connection for each.
        self.assertGreaterEqual(int(service["FileDescriptorStoreMax"][0]), 3 + 1000 * (4 + 2) + 1000)
        self.assertGreater(int(service["LimitNOFILE"][0]), int(service["FileDescriptorStoreMax"][0]))
        self.assertEqual(read_unit("guestmem-share.service")["Unit"]["StartLimitIntervalSec"], ["0"])

    def test_the_service_is_hardened(self):
        service = read_unit("guestmem-share.service")["Service"]
        for key, value in {"ProtectSystem": "strict", "PrivateNetwork": "yes", "RestrictAddressFamilies": "AF_UNIX",
                           "NoNewPrivileges": "yes", "MemoryDenyWriteExecute": "yes",
                           "RestrictNamespaces": "yes", "SystemCallArchitectures": "native"}.items():
            self.assertEqual(service[key], [value], key)
        self.assertTrue(service["SystemCallFilter"][0].startswith("@system-service"))
        self.assertNotIn("root", service["User"])

    def test_what_the_service_asks_the_kernel_is_not_hidden_from_it(self):
        service = read_unit("guestmem-share.service")["Service"]
        for key in ("PrivateUsers", "ProtectProc", "ProcSubset", "PrivateIPC"):
            self.assertNotIn(key, service)

    def test_user_and_folders_are_the_same_everywhere(self):
        service = read_unit("guestmem-share.service")["Service"]
        socket = read_unit("guestmem-share.socket")["Socket"]
        user = service["User"][0]
        self.assertEqual(socket["SocketUser"], [user])
        self.assertRegex((SOURCE / "guestmem-share.sysusers.conf").read_text(), rf"(?m)^u {user} ")
        folders = re.findall(r"(?m)^d (\S+) \d+ (\S+)", (SOURCE / "guestmem-share.tmpfiles.conf").read_text())
        self.assertIn(("/run/guestmem", user), folders)
        self.assertIn(("/var/lib/guestmem", user), folders)
        self.assertEqual(socket["ListenStream"], ["/run/guestmem/share.control"])

    @need_program("systemd-sysusers")
    def test_systemd_accepts_the_user(self):
        done = subprocess.run(["systemd-sysusers", f"--root={self.folder}", "--dry-run",
                               str(SOURCE / "guestmem-share.sysusers.conf")],
                              capture_output=True, text=True, timeout=TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("guestmem-share", done.stdout + done.stderr)

    @need_program("cmake")
    def test_they_are_installed_with_the_path_of_the_program(self):
        done = subprocess.run(["cmake", "--install", BUILD, "--component", "systemd",
                               "--prefix", str(self.folder / "prefix")],
                              capture_output=True, text=True, timeout=TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        prefix = self.folder / "prefix"
        unit = (prefix / "lib/systemd/system/guestmem-share.service").read_text()
        self.assertIn(f"ExecStart={prefix}/bin/guestmem share serve", unit)
        self.assertNotIn("/usr/bin/guestmem", unit)
        for path in ("lib/systemd/system/guestmem-share.socket", "lib/sysusers.d/guestmem-share.conf",
                     "lib/tmpfiles.d/guestmem-share.conf"):
            self.assertTrue((prefix / path).is_file(), path)


if __name__ == "__main__":
    main()
