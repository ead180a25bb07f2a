# SPDX-License-Identifier: Apache-2.0
"""A small service manager that speaks systemd's descriptor store and socket activation.

usage: service_manager_peer.py [--store-max N] [--silent] [--listen NAME=PATH]... [--lives N] -- PROGRAM WORDS...

Runs the program as the main process of a service with Restart=on-failure, at most N lives (default 10). Between two
lives it keeps what the program has stored (sd_notify(3): FDSTORE, FDSTOREREMOVE, FDNAME, FDPOLL, BARRIER) and passes it
on with the listening sockets ($LISTEN_FDS, $LISTEN_PID, $LISTEN_FDNAMES). --silent leaves $FDSTORE out, as systemd
before 254 does. The last line is "lives L, stored S, status C"; it ends with the program's last status.

Tests use ServiceManager: start(), restart_if_failed(), names(), close().
"""

import argparse
import array
import fcntl
import os
import select
import signal
import socket
import struct
import sys
import tempfile
import threading

FIRST_FD = 3
MAX_FDS_PER_MESSAGE = 253
MAX_MESSAGE_BYTES = 4096
# One string of an environment: 32 pages (MAX_ARG_STRLEN).
MAX_STRING_BYTES = 128 * 1024


class Stored:
    def __init__(self, name, fd, is_polled):
        self.name = name
        self.fd = fd
        self.is_polled = is_polled

    def has_hung_up(self):
        poll = select.poll()
        poll.register(self.fd, 0)
        return any(events & (select.POLLHUP | select.POLLERR) for _, events in poll.poll(0))


class ServiceManager:
    def __init__(self, arguments, *, store_max=4096, tells_store=True, listeners=(), environment=None):
        """listeners: (name, path) of stream sockets."""
        self.arguments = list(map(str, arguments))
        self.store_max = store_max
        self.tells_store = tells_store
        self.environment = dict(os.environ if environment is None else environment)
        self.folder = tempfile.mkdtemp(prefix="guestmem-manager-")
        self.path = os.path.join(self.folder, "notify")
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self.notify.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        self.notify.bind(self.path)
        self.listeners = []
        for name, path in listeners:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
            listener.bind(path)
            listener.listen(16)
            self.listeners.append((name, listener))
        self.lock = threading.Lock()
        self.store = []
        self.messages = []  # the texts, in order
        self.refused = 0  # descriptors beyond the limit
        self.is_ready = threading.Event()
        self.pid = None
        self.lives = 0
        self.wake_read, self.wake_write = os.pipe()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def names(self):
        with self.lock:
            return sorted(stored.name for stored in self.store)

    def start(self):
        """One life of the program; returns its process number."""
        with self.lock:
            for stored in [one for one in self.store if one.is_polled and one.has_hung_up()]:
                self._drop(stored)
            passed = [(name, listener.fileno()) for name, listener in self.listeners]
            passed += [(stored.name, stored.fd) for stored in self.store]
            self.is_ready.clear()
            self.lives += 1
            # Held until the number is known: its first message would be a stranger's.
            self.pid = os.fork()
            if self.pid == 0:
                self._become_program(passed)
        return self.pid

    def wait(self):
        """The end of this life: a status, or minus a signal."""
        _, status = os.waitpid(self.pid, 0)
        # What it sent before its end is worked on before its next life.
        probe = threading.Event()
        self._wake(probe)
        probe.wait(20)
        return os.waitstatus_to_exitcode(status)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)

    def run(self, lives):
        """Restart=on-failure; returns the last status."""
        status = -1
        while status != 0 and self.lives < lives:
            self.start()
            status = self.wait()
        return status

    def close(self):
        self._wake(None)
        self.thread.join(20)
        for stored in list(self.store):
            self._drop(stored)
        for _, listener in self.listeners:
            path = listener.getsockname()
            listener.close()
            os.unlink(path)
        self.notify.close()
        os.close(self.wake_read)
        os.close(self.wake_write)
        os.unlink(self.path)
        os.rmdir(self.folder)

    # The program's side of the fork.

    def _become_program(self, passed):
        try:
            environment = dict(self.environment, NOTIFY_SOCKET=self.path)
            for key in ("LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "FDSTORE"):
                environment.pop(key, None)
            if self.tells_store and self.store_max:
                environment["FDSTORE"] = str(self.store_max)
            if passed:
                environment["LISTEN_FDS"] = str(len(passed))
                environment["LISTEN_PID"] = str(os.getpid())
                environment["LISTEN_FDNAMES"] = ":".join(name for name, _ in passed)
                if len(environment["LISTEN_FDNAMES"]) + len("LISTEN_FDNAMES=") >= MAX_STRING_BYTES:
                    raise OSError("the names do not fit into the environment")
            # First above all targets, then to their places.
            above = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, FIRST_FD + len(passed)) for _, fd in passed]
            for index, fd in enumerate(above):
                os.dup2(fd, FIRST_FD + index)
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            os.execvpe(self.arguments[0], self.arguments, environment)
        except BaseException as problem:  # the child must never return into the tests
            os.write(2, f"service manager: {problem}\n".encode())
        os._exit(127)

    # The thread that works on messages.

    def _wake(self, event):
        self._probe = event
        os.write(self.wake_write, b"x")

    def _run(self):
        poll = select.poll()
        poll.register(self.notify, select.POLLIN)
        poll.register(self.wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            while self._take_one():
                pass
            if self.wake_read in ready:
                os.read(self.wake_read, 1)
                if self._probe is None:
                    return
                self._probe.set()

    def _take_one(self):
        numbers = array.array("i")
        room = socket.CMSG_SPACE(MAX_FDS_PER_MESSAGE * numbers.itemsize) + socket.CMSG_SPACE(12)
        flags = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        try:
            text, parts, _, _ = self.notify.recvmsg(MAX_MESSAGE_BYTES, room, flags)
        except BlockingIOError:
            return False
        sender = None
        for level, kind, data in parts:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers.frombytes(data[:len(data) - len(data) % numbers.itemsize])
            elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
                sender = struct.unpack("3i", data)[0]
        with self.lock:
            fds = list(numbers)
            if sender == self.pid:  # NotifyAccess=main
                fds = self._work_on(text.decode(errors="replace"), fds)
            for fd in fds:
                os.close(fd)
        return True

    def _work_on(self, text, fds):
        """Returns the descriptors that are not stored; a barrier's is one of them, and closing it is the answer."""
        self.messages.append(text)
        lines = text.split("\n")
        values = dict(line.split("=", 1) for line in lines if "=" in line)
        if "READY=1" in lines:
            self.is_ready.set()
        if "FDSTOREREMOVE=1" in lines:
            for stored in [one for one in self.store if one.name == values.get("FDNAME")]:
                self._drop(stored)
        elif "FDSTORE=1" in lines:
            while fds and len(self.store) < self.store_max:
                self.store.append(Stored(values.get("FDNAME", "stored"), fds.pop(0), values.get("FDPOLL") != "0"))
            self.refused += len(fds)
        return fds

    def _drop(self, stored):
        self.store.remove(stored)
        os.close(stored.fd)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--store-max", type=int, default=4096)
    parser.add_argument("--silent", action="store_true")
    parser.add_argument("--listen", action="append", default=[])
    parser.add_argument("--lives", type=int, default=10)
    parser.add_argument("program", nargs="+")
    options = parser.parse_args()
    manager = ServiceManager(options.program, store_max=options.store_max, tells_store=not options.silent,
                             listeners=[tuple(one.split("=", 1)) for one in options.listen])
    status = manager.run(options.lives)
    print(f"lives {manager.lives}, stored {len(manager.store)}, status {status}", flush=True)
    manager.close()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())
