# SPDX-License-Identifier: Apache-2.0
"""The share service as the end-to-end tests and the demo run it: in a folder of its own, foreground."""

import json
import os
import shutil
import signal
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from processes import Process

# A socket path has at most 107 bytes; names below the work folder need less than this.
MAX_FOLDER_BYTES = 70


@dataclass(frozen=True)
class Share:
    """A share and the VMs that have a fixed slot in it; with classic ids one socket serves everybody."""
    name: str
    size: str = "4M"
    vectors: int = 2
    slots: int = 4
    ids: str = "stable"
    vms: dict = field(default_factory=dict)  # name of the VM: slot


def make_folder(prefix):
    """A new folder for sockets and files, with a path short enough for sockets."""
    base = tempfile.gettempdir()
    return Path(tempfile.mkdtemp(prefix=prefix, dir=base if len(os.fsencode(base)) < MAX_FOLDER_BYTES else "/tmp"))


def configuration(folder, share):
    """The service's configuration file as text."""
    def text(value):
        return json.dumps(str(value))  # what it escapes, it escapes as TOML does
    lines = ["[control]", f"path = {text(folder / 'control.sock')}", "",
             "[[share]]", f"name = {text(share.name)}", f"size = {text(share.size)}",
             f"vectors = {share.vectors}", f"slots = {share.slots}", f"ids = {text(share.ids)}",
             f"socket = {text(folder / 'share.sock')}"]
    for name, slot in share.vms.items():
        lines += ["", "[[vm]]", f"name = {text(name)}", "[[vm.attach]]", f"share = {text(share.name)}",
                  f"slot = {slot}", f"socket = {text(folder / (name + '.sock'))}"]
    return "\n".join(lines) + "\n"


class Service(Process):
    def __init__(self, program, folder, share, on_line=None):
        self.program = program
        self.folder = folder
        self.share = share
        self.control = folder / "control.sock"
        file = folder / "guestmem.toml"
        file.write_text(configuration(folder, share))
        # SIGTERM, not SIGKILL, when the test dies: the service removes its sockets.
        super().__init__("service", [program, "share", "serve", "--config", file], on_line=on_line,
                         death_signal=signal.SIGTERM)

    def wait_ready(self, timeout=30):
        return self.wait_for(r"info: ready: ", timeout)

    def socket(self, vm=None):
        return self.folder / (f"{vm}.sock" if vm else "share.sock")

    def tool(self, *words, timeout=30):
        """Runs `guestmem share WORDS` against this service; what it prints."""
        command = [self.program, "share", *map(str, words), "--control", str(self.control)]
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))}: exit status {done.returncode}\n{done.stderr}")
        return done.stdout

    def count_joined(self):
        peers = json.loads(self.tool("stat", self.share.name, "--json"))["peers"]
        return sum(1 for peer in peers if peer["state"] == "joined")


def remove_folder(folder):
    shutil.rmtree(folder, ignore_errors=True)
