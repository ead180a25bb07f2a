# SPDX-License-Identifier: Apache-2.0
"""A client of the control protocol: a second implementation.

Requests and replies are JSON objects, one per line, at most 64 KiB, over an AF_UNIX stream:

    {"v":1,"id":7,"call":"share.stat","args":{"share":"mailbox"}}
    {"v":1,"id":7,"result":{...},"fds":1}
    {"v":1,"id":7,"error":{"code":"not_found","errno":2,"message":"..."}}

Descriptors travel by SCM_RIGHTS on the first byte of the reply that announces them.
"""

import array
import json
import os
import select
import socket
import time

from ivshmem_peer import connect

MAX_LINE_BYTES = 64 * 1024
MAX_FDS = 16


class ControlError(Exception):
    """The service answered with an error."""

    def __init__(self, error):
        self.code = error.get("code")
        self.errno = error.get("errno")
        self.message = error.get("message")
        super().__init__(f"{self.code} (errno {self.errno}): {self.message}")


class ControlBroken(Exception):
    """The reply is not one that the protocol allows, or there is none."""


def pending_of(stat):
    """The pending kicks of a share.stat result: a list per slot with a count per vector.
    For stable ids."""
    entries = stat["pending"]
    if [entry["slot"] for entry in entries] != list(range(stat["slots"])):
        raise ControlBroken(f"pending does not name every slot once, in order: {entries!r}")
    return [entry["kicks"] for entry in entries]


class ControlPeer:
    """One connection to the control socket."""

    def __init__(self, path, timeout=5.0):
        self.timeout = timeout
        self.sock = connect(path, timeout)
        self._buffer = b""
        self._next_id = 1
        # Descriptors and the offset in the whole stream at which they may have come.
        self._fds = []

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def send_raw(self, data, fds=()):
        """Sends bytes as they are, with descriptors on the first one."""
        if fds:
            rights = array.array("i", fds)
            sent = self.sock.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            data = data[sent:]
        if data:
            self.sock.sendall(data)

    def send_request(self, call, args=None, version=1, request_id=None):
        if request_id is None:
            request_id = self._next_id
            self._next_id += 1
        request = {"v": version, "id": request_id, "call": call}
        if args is not None:
            request["args"] = args
        self.send_raw(json.dumps(request).encode() + b"\n")
        return request_id

    def read_reply(self, timeout=None):
        """One reply as (dictionary, [fds]). Raises ControlBroken at the end of the stream."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while b"\n" not in self._buffer:
            if len(self._buffer) > MAX_LINE_BYTES:
                raise ControlBroken(f"a reply is longer than {MAX_LINE_BYTES} bytes")
            self._receive(deadline)
        line, self._buffer = self._buffer.split(b"\n", 1)
        try:
            reply = json.loads(line)
        except ValueError as problem:
            raise ControlBroken(f"reply is not JSON: {line[:200]!r}") from problem
        self._check(reply)
        wanted = reply.get("fds", 0)
        if wanted > len(self._fds):
            raise ControlBroken(f"{wanted} descriptors announced, {len(self._fds)} came")
        fds, self._fds = self._fds[:wanted], self._fds[wanted:]
        if not self._buffer and self._fds:
            raise ControlBroken(f"{len(self._fds)} descriptors came unannounced")
        return reply, fds

    def _receive(self, deadline):
        poller = select.poll()
        poller.register(self.sock, select.POLLIN)
        left = max(0.0, deadline - time.monotonic())
        if not poller.poll(int(left * 1000 + 0.5)):
            raise ControlBroken("no reply in time")
        item = array.array("i").itemsize
        data, ancillary, flags, _ = self.sock.recvmsg(
            65536, socket.CMSG_SPACE(MAX_FDS * item), socket.MSG_CMSG_CLOEXEC)
        for level, kind, payload in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                fds = array.array("i")
                fds.frombytes(payload[:len(payload) - len(payload) % item])
                self._fds.extend(fds)
        if flags & socket.MSG_CTRUNC:
            raise ControlBroken("descriptors were cut off")
        if not data:
            raise ControlBroken("the service closed the connection")
        self._buffer += data

    @staticmethod
    def _check(reply):
        if not isinstance(reply, dict):
            raise ControlBroken(f"reply is not an object: {reply!r}")
        if reply.get("v") != 1:
            raise ControlBroken(f"reply of version {reply.get('v')!r}")
        if ("result" in reply) == ("error" in reply):
            raise ControlBroken(f"reply has neither or both of result and error: {reply!r}")
        if "error" in reply:
            error = reply["error"]
            if not (isinstance(error, dict) and isinstance(error.get("code"), str) and
                    isinstance(error.get("errno"), int) and
                    isinstance(error.get("message"), str) and error["message"]):
                raise ControlBroken(f"malformed error: {error!r}")
        elif not isinstance(reply["result"], dict):
            raise ControlBroken(f"result is not an object: {reply!r}")
        fds = reply.get("fds", 0)
        if not isinstance(fds, int) or isinstance(fds, bool) or fds < 0:
            raise ControlBroken(f"malformed fds: {fds!r}")

    def call_with_fds(self, call, args=None):
        """One call; returns (result, [fds]) or raises ControlError."""
        request_id = self.send_request(call, args)
        reply, fds = self.read_reply()
        if reply.get("id") != request_id:
            raise ControlBroken(f"reply to {reply.get('id')!r}, asked {request_id}")
        if "error" in reply:
            raise ControlError(reply["error"])
        return reply["result"], fds

    def call(self, call, args=None):
        """One call that gives no descriptors; returns the result."""
        result, fds = self.call_with_fds(call, args)
        if fds:
            for fd in fds:
                os.close(fd)
            raise ControlBroken(f"{call} gave {len(fds)} descriptors")
        return result

    def call_for_fd(self, call, args=None):
        """One call that gives exactly one descriptor; returns (result, fd)."""
        result, fds = self.call_with_fds(call, args)
        if len(fds) != 1:
            raise ControlBroken(f"{call} gave {len(fds)} descriptors, expected 1")
        return result, fds[0]

    def attach(self, share):
        """share.attach: (slot, socket of an ivshmem stream)."""
        result, fd = self.call_for_fd("share.attach", {"share": share})
        return result["slot"], socket.socket(fileno=fd)

    def stat(self, share):
        return self.call("share.stat", {"share": share})

    def is_closed(self, timeout=5.0):
        """True when the service closes the connection in time; drops what comes before."""
        deadline = time.monotonic() + timeout
        try:
            while True:
                self._receive(deadline)
                self._buffer = b""
        except ControlBroken as problem:
            return "closed" in str(problem)
        except ConnectionError:
            return True

    def close(self):
        self.sock.close()
        for fd in self._fds:
            os.close(fd)
        self._fds = []
