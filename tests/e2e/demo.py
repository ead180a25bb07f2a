#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Two virtual machines talk through memory that guestmem serves.

Starts the share service, boots two guests, sends a message from the host to guest A, which passes it on to
guest B. Each guest takes a real MSI-X interrupt through VFIO and prints the message. The exit status is 0
only when both did, both powered off by themselves and the service ended cleanly.

Environment: GUESTMEM (the program), GUESTMEM_BUILD (the preset's build folder, which has guests/agent),
GUESTMEM_SOURCE (the source folder). Without them the dev preset of this source tree is used.
"""

import signal
signal.signal(signal.SIGINT, signal.SIG_DFL)  # no traceback while the imports run; main() listens later

import argparse
import os
import platform
import sys
import threading
import time
from pathlib import Path

import guest_image
import processes
import qemu
import share_service

MESSAGE = "hello world"
EXPECTED = f"received IRQ and full message: {MESSAGE}"
SHARE = share_service.Share("mailbox", size="4M", vectors=2, slots=4, vms={"a": 0, "b": 1})
BOOT_TIMEOUT = 120
MESSAGE_TIMEOUT = 30
END_TIMEOUT = 60

COLORS = {"A": "36", "B": "35", "host": "32", "error": "31"}
WIDTH = 4


class Screen:
    """What the demo prints: prefixed lines, and on a terminal a last line that shows what it waits for."""

    def __init__(self, stream):
        self._stream = stream
        self._is_terminal = stream.isatty()
        self._has_colors = self._is_terminal and "NO_COLOR" not in os.environ
        self._lock = threading.Lock()
        self._waiting = None
        self._since = 0.0
        self._stop = threading.Event()
        if self._is_terminal:
            self._ticker = threading.Thread(target=self._tick, daemon=True)
            self._ticker.start()

    def line(self, who, text):
        with self._lock:
            prefix = f"{who:<{WIDTH}} |"
            if self._has_colors and who in COLORS:
                prefix = f"\x1b[{COLORS[who]}m{prefix}\x1b[0m"
            self._erase()
            print(f"{prefix} {text}" if text else prefix, file=self._stream, flush=True)
            self._draw()

    def plain(self, text=""):
        with self._lock:
            self._erase()
            print(text, file=self._stream, flush=True)
            self._draw()

    def wait(self, what):
        """Shows on a terminal what is being waited for; None for nothing."""
        with self._lock:
            self._erase()
            self._waiting, self._since = what, time.monotonic()
            self._draw()

    def close(self):
        self._stop.set()
        if self._is_terminal:
            self._ticker.join()
        self.wait(None)

    def _tick(self):
        while not self._stop.wait(0.25):
            with self._lock:
                self._erase()
                self._draw()

    def _erase(self):
        if self._is_terminal and self._waiting:
            self._stream.write("\r\x1b[K")

    def _draw(self):
        if self._is_terminal and self._waiting:
            self._stream.write(f"     ... {self._waiting} ({time.monotonic() - self._since:.0f} s)")
            self._stream.flush()


class Demo:
    def __init__(self, program, build, source, screen):
        self._program = program
        self._build = build
        self._source = source
        self._screen = screen
        self._folder = share_service.make_folder("guestmem-demo-")
        self._service = None
        self._guests = {}
        self._times = []

    def host(self, text):
        self._screen.line("host", text)

    def run(self):
        started = time.monotonic()
        self._screen.wait("preparing the guests' kernel and initramfs")
        image = guest_image.prepare(self._build, self._source, self.host)
        self._note("set-up", time.monotonic() - started)
        self._start_service()
        self._boot(image)
        self._talk()
        self._end()
        self._screen.wait(None)
        self._summary(time.monotonic() - started)

    def _note(self, what, seconds):
        self._times.append((what, seconds))

    def _start_service(self):
        self._screen.wait("the service starts")
        self.host(f"guestmem share serve --config {self._folder / 'guestmem.toml'}")
        self._service = share_service.Service(self._program, self._folder, SHARE,
                                              on_line=lambda _, line: self.host(line.text))
        self._service.wait_ready()

    def _boot(self, image):
        def show(guest, line):
            self._screen.line(guest.name, line.text)
        kind = qemu.accelerator()
        self.host(f"booting A (slot 0) and B (slot 1) in QEMU, accelerator {kind}")
        self._screen.wait("the guests are booting")
        for name, agent in (("A", "relay 1 0"), ("B", "listen")):
            self._guests[name] = qemu.Guest(name, image, agent, self._service.socket(name.lower()), on_line=show)
        for name, slot in (("A", 0), ("B", 1)):
            guest = self._guests[name]
            ready = guest.wait_for(f"^ready: slot {slot},", BOOT_TIMEOUT)
            self._note(f"{name}: start to listening", ready.time - guest.started)

    def _talk(self):
        self._screen.wait("the message is on its way")
        self.host(f'guestmem share send mailbox 0 0 --message "{MESSAGE}"')
        sent = time.monotonic()
        self._service.tool("send", SHARE.name, 0, 0, "--message", MESSAGE)
        arrived = {}
        for name in ("A", "B"):
            line = self._guests[name].wait_for("^received IRQ and full message:", MESSAGE_TIMEOUT)
            if line.text != EXPECTED:
                raise AssertionError(f"{name} has printed '{line.text}', expected '{EXPECTED}'")
            arrived[name] = line.time
        if arrived["B"] < sent:
            raise AssertionError("B has printed the message before it was sent")
        self._note("host to A, command included", arrived["A"] - sent)
        self._note("A to B", arrived["B"] - arrived["A"])

    def _end(self):
        self._screen.wait("the guests power off")
        for name, guest in self._guests.items():
            status = guest.wait(END_TIMEOUT)
            if status != 0:
                raise AssertionError(f"QEMU of {name} has ended with status {status}:\n{guest.tail()}")
            guest.wait_for("^agent ended with status 0$", 0)
            self._note(f"{name}: start to power-off", guest.ended - guest.started)
        self._screen.wait("the service ends")
        status = self._service.stop()
        if status != 0:
            raise AssertionError(f"the service has ended with status {status} on SIGTERM, expected 0")

    def _summary(self, total):
        self._screen.plain()
        self._screen.plain(f"Both guests have received '{MESSAGE}' by MSI-X and powered off; the service has ended.")
        for what, seconds in [*self._times, ("all", total)]:
            shown = f"{seconds * 1000:8.1f} ms" if seconds < 1 else f"{seconds:8.1f} s"
            self._screen.plain(f"  {what:<28} {shown}")

    def clean_up(self):
        processes.stop_all()
        share_service.remove_folder(self._folder)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    source = Path(os.environ.get("GUESTMEM_SOURCE") or Path(__file__).resolve().parents[2])
    build = Path(os.environ.get("GUESTMEM_BUILD") or source / "build" / "dev")
    program = Path(os.environ.get("GUESTMEM") or build / "bin" / "guestmem")
    return program, build, source


def main():
    program, build, source = arguments()
    screen = Screen(sys.stdout)
    if platform.machine() != "x86_64":
        screen.line("error", f"the guests are x86-64 machines; this host is {platform.machine()}")
        return 1
    if not os.access(program, os.X_OK):
        screen.line("error", f"{program}: not there; ./dev demo builds it")
        return 1
    processes.exit_on_signals()
    demo = None
    try:
        with processes.undisturbed():
            demo = Demo(program, build, source, screen)
        demo.run()
        return 0
    except KeyboardInterrupt:
        screen.wait(None)
        screen.line("host", "interrupted")
        return 130
    except (AssertionError, OSError, guest_image.ImageError) as error:
        screen.wait(None)
        for line in str(error).splitlines():
            screen.line("error", line)
        return 1
    finally:
        processes.ignore_signals()
        if demo:
            demo.clean_up()
        screen.close()


if __name__ == "__main__":
    sys.exit(main())
