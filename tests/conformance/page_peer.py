# SPDX-License-Identifier: Apache-2.0
"""The protocol of pages as its document tells it: a second implementation, without compressed pages.

`Decoder` is the state machine, without I/O: it takes bytes and gives frames, or raises. `Client` asks a server,
`read_stream` reads a stream whole. Compressed pages are refused by the flags of both greetings.
"""

import socket
import struct
from typing import NamedTuple

PAGE = 4096
MAX_IMAGE = 1 << 46
MAX_DESCRIPTION = 1 << 20
MAX_STATE = 1 << 32
MAX_PIECE = 65536
MAGIC = b"GMPAGES\0"
ZSTD, WANTS_DESCRIPTION, WANTS_STATE = 1, 2, 4

JOIN, REQUEST = 1, 2
HELLO, DESCRIPTION, STATE, PAGES, ZEROS, DONE, ERROR, END = range(16, 24)
BODY_SIZES = {JOIN: (16, 16), REQUEST: (24, 24), HELLO: (56, 56), DESCRIPTION: (9, 65544), STATE: (9, 65544),
              PAGES: (25, 65560), ZEROS: (16, 16), DONE: (8, 8), ERROR: (4, 516), END: (16, 16)}
CODES = ("invalid_argument", "not_found", "already_exists", "busy", "permission_denied", "out_of_range", "exhausted",
         "unavailable", "timed_out", "corrupt", "unsupported", "io")


class Broken(Exception):
    """The other side breaks the protocol."""

    code = "corrupt"


class Unsupported(Broken):
    """The other side speaks another version, or with flags that are not known here."""

    code = "unsupported"


class Refused(Exception):
    """The other side has sent an error frame."""

    def __init__(self, code, text):
        self.code, self.text = code, text
        super().__init__(f"{code}: {text}")


class Frame(NamedTuple):
    """A frame and its fields, by kind: see Decoder."""

    kind: int
    fields: tuple


# XXH3 with 64 bits and the seed 0, by its specification.

_MASK = (1 << 64) - 1
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e")
_P32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_P64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def _u64(data, at):
    return int.from_bytes(data[at:at + 8], "little")


def _u32(data, at):
    return int.from_bytes(data[at:at + 4], "little")


def _fold(left, right):
    product = left * right
    return (product & _MASK) ^ (product >> 64)


def _finish(value):
    value &= _MASK
    value = ((value ^ value >> 37) * 0x165667919E3779F9) & _MASK
    return value ^ value >> 32


def _finish_short(value):
    value = ((value ^ value >> 33) * _P64[1]) & _MASK
    value = ((value ^ value >> 29) * _P64[2]) & _MASK
    return value ^ value >> 32


def _rotated(value, count):
    return ((value << count) | (value >> (64 - count))) & _MASK


def _mix(data, at, secret_at):
    return _fold(_u64(data, at) ^ _u64(_SECRET, secret_at), _u64(data, at + 8) ^ _u64(_SECRET, secret_at + 8))


def _sum_to_16(data):
    size = len(data)
    if size > 8:
        low = _u64(data, 0) ^ _u64(_SECRET, 24) ^ _u64(_SECRET, 32)
        high = _u64(data, size - 8) ^ _u64(_SECRET, 40) ^ _u64(_SECRET, 48)
        swapped = int.from_bytes(low.to_bytes(8, "little"), "big")
        return _finish(size + swapped + high + _fold(low, high))
    if size >= 4:
        value = _u32(data, size - 4) + (_u32(data, 0) << 32) ^ _u64(_SECRET, 8) ^ _u64(_SECRET, 16)
        value ^= _rotated(value, 49) ^ _rotated(value, 24)
        value = (value * 0x9FB21C651E98DF25) & _MASK
        value = ((value ^ (value >> 35) + size) * 0x9FB21C651E98DF25) & _MASK
        return value ^ value >> 28
    if size > 0:
        value = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        return _finish_short(value ^ _u32(_SECRET, 0) ^ _u32(_SECRET, 4))
    return _finish_short(_u64(_SECRET, 56) ^ _u64(_SECRET, 64))


def _sum_to_240(data):
    size = len(data)
    total = size * _P64[0]
    if size <= 128:
        for step in range((size - 1) // 32 + 1):
            total += _mix(data, 16 * step, 32 * step) + _mix(data, size - 16 * (step + 1), 32 * step + 16)
        return _finish(total)
    for step in range(8):
        total += _mix(data, 16 * step, 16 * step)
    total = _finish(total)
    for step in range(8, size // 16):
        total += _mix(data, 16 * step, 16 * (step - 8) + 3)
    return _finish(total + _mix(data, size - 16, 119))


def _add_stripe(lanes, words, secrets):
    for i in range(8):
        key = words[i] ^ secrets[i]
        lanes[i ^ 1] += words[i]
        lanes[i] = (lanes[i] + (key & 0xFFFFFFFF) * (key >> 32)) & _MASK


def _secret_words(at):
    return struct.unpack_from("<8Q", _SECRET, at)


def sum_of(data):
    """XXH3, 64 bits."""
    if len(data) <= 16:
        return _sum_to_16(data)
    if len(data) <= 240:
        return _sum_to_240(data)
    lanes = [_P32[2], _P64[0], _P64[1], _P64[2], _P64[3], _P32[1], _P64[4], _P32[0]]
    secrets = [_secret_words(8 * i) for i in range(16)]
    last = _secret_words(128)
    for number in range((len(data) - 1) // 64):
        _add_stripe(lanes, struct.unpack_from("<8Q", data, 64 * number), secrets[number % 16])
        if number % 16 == 15:
            lanes = [((lane & _MASK) ^ (lane & _MASK) >> 47 ^ last[i]) * _P32[0] & _MASK
                     for i, lane in enumerate(lanes)]
    _add_stripe(lanes, struct.unpack_from("<8Q", data, len(data) - 64), _secret_words(121))
    lanes = [lane & _MASK for lane in lanes]
    total = len(data) * _P64[0]
    for i in range(4):
        total += _fold(lanes[2 * i] ^ _u64(_SECRET, 11 + 16 * i), lanes[2 * i + 1] ^ _u64(_SECRET, 19 + 16 * i))
    return _finish(total)


# Frames to bytes.

def frame(kind, body):
    return struct.pack("<II", kind, len(body)) + body


def join(flags=0, version=1):
    return frame(JOIN, MAGIC + struct.pack("<II", version, flags))


def request(number, offset, size):
    return frame(REQUEST, struct.pack("<QQQ", number, offset, size))


def hello(image_bytes, identity, description_bytes=0, state_bytes=0, flags=0):
    return frame(HELLO, MAGIC + struct.pack("<IIQ16sIIQ", 1, flags, image_bytes, identity, PAGE, description_bytes,
                                            state_bytes))


def blob(kind, data):
    return frame(kind, struct.pack("<Q", sum_of(data)) + data)


def pages(offset, data):
    return frame(PAGES, struct.pack("<QIIQ", offset, len(data) // PAGE, 0, sum_of(data)) + data)


def zeros(offset, size):
    return frame(ZEROS, struct.pack("<QQ", offset, size))


def end(count, total):
    return frame(END, struct.pack("<QQ", count, total))


def is_part(offset, size, image_bytes):
    return size > 0 and offset % PAGE == 0 and size % PAGE == 0 and offset + size <= image_bytes


class Decoder:
    """Bytes to frames of one flow: "client", "server" or "stream".

    The fields: join (flags); request (number, offset, size); hello (image_bytes, id, description_bytes, state_bytes);
    description, state (bytes); pages (offset, bytes); zeros (offset, size); done (number); end (count, sum). An error
    frame raises Refused.
    """

    def __init__(self, flow):
        self.flow = flow
        self.data = b""
        self.image_bytes = None
        self.is_greeted = False
        self.is_over = False
        self.left = {DESCRIPTION: 0, STATE: 0}
        self.count = 0
        self.total = 0

    def feed(self, data):
        self.data += data

    def next(self):
        """The next whole frame, or None."""
        if len(self.data) < 8:
            return None
        kind, size = struct.unpack_from("<II", self.data)
        if kind not in BODY_SIZES:
            raise Broken(f"kind {kind}")
        self.check_turn(kind)
        smallest, largest = BODY_SIZES[kind]
        if not smallest <= size <= largest:
            raise Broken(f"{size} bytes in kind {kind}")
        if len(self.data) < 8 + size:
            return None
        body, self.data = self.data[8:8 + size], self.data[8 + size:]
        return Frame(kind, self.parse(kind, body))

    def check_turn(self, kind):
        if self.is_over or (kind in (JOIN, REQUEST)) != (self.flow == "client"):
            raise Broken(f"kind {kind} does not belong here")
        if kind == ERROR:
            return
        if (kind in (JOIN, HELLO)) == self.is_greeted:
            raise Broken("the greeting is missing, or comes twice")
        due = next((blob_kind for blob_kind, left in self.left.items() if left), None)
        if kind in (JOIN, HELLO, REQUEST):
            return
        if due is not None and kind != due or due is None and kind in self.left:
            raise Broken(f"kind {kind} where {due} is due")
        if kind == (DONE if self.flow == "stream" else END):
            raise Broken(f"kind {kind} in a {self.flow}")

    def parse(self, kind, body):
        if kind in (JOIN, HELLO):
            return self.parse_greeting(kind, body)
        if kind == REQUEST:
            number, offset, size = struct.unpack("<QQQ", body)
            if not is_part(offset, size, MAX_IMAGE):
                raise Broken("a request for no part")
            return number, offset, size
        if kind in self.left:
            data = body[8:]
            self.left[kind] -= len(data)
            if self.left[kind] < 0 or sum_of(data) != _u64(body, 0):
                raise Broken("a piece that is too long, or has another sum")
            return (data,)
        if kind == PAGES:
            return self.parse_pages(body)
        if kind == ZEROS:
            offset, size = struct.unpack("<QQ", body)
            if not is_part(offset, size, self.image_bytes):
                raise Broken("zeros of no part")
            self.add(offset, size, 0)
            return offset, size
        if kind == ERROR:
            self.is_over = True
            number = _u32(body, 0)
            text = "".join(chr(byte) if 32 <= byte < 127 else "?" for byte in body[4:])
            raise Refused(CODES[number - 1] if 1 <= number <= len(CODES) else "io", text)
        if kind == END:
            if struct.unpack("<QQ", body) != (self.count, self.total):
                raise Broken("an end with other sums")
            self.is_over = True
            return self.count, self.total
        return struct.unpack("<Q", body)

    def parse_greeting(self, kind, body):
        if body[:8] != MAGIC:
            raise Broken("no magic number")
        version, flags = struct.unpack_from("<II", body, 8)
        if version != 1 or flags & ~(7 if kind == JOIN else 1):
            raise Unsupported(f"version {version}, flags {flags:#x}")
        self.is_greeted = True
        if kind == JOIN:
            return (flags,)
        image_bytes, identity, page, description, state = struct.unpack_from("<Q16sIIQ", body, 16)
        if page != PAGE:
            raise Unsupported(f"pages of {page} bytes")
        if not is_part(0, image_bytes, MAX_IMAGE) or description > MAX_DESCRIPTION or state > MAX_STATE:
            raise Broken("sizes beyond the limits")
        self.image_bytes = image_bytes
        self.has_zstd = bool(flags & ZSTD)
        self.left = {DESCRIPTION: description, STATE: state}
        return image_bytes, identity, description, state

    def parse_pages(self, body):
        offset, count, encoding, said = struct.unpack_from("<QIIQ", body)
        data = body[24:]
        if count > 16 or not is_part(offset, count * PAGE, self.image_bytes):
            raise Broken("pages of no part")
        if encoding == 1 and self.has_zstd:
            raise NotImplementedError("compressed pages: ask for none")
        if encoding != 0 or len(data) != count * PAGE or sum_of(data) != said:
            raise Broken("another encoding, size or sum")
        self.count += count
        self.add(offset, len(data), said)
        return offset, data

    def add(self, offset, size, total):
        self.total = sum_of(struct.pack("<QQQQ", self.total, offset, size, total))


class Image:
    """What has come: bytes by page, each once."""

    def __init__(self):
        self.pages = {}

    def take(self, frame_):
        offset, what = frame_.fields
        data = what if frame_.kind == PAGES else bytes(what)
        for at in range(0, len(data), PAGE):
            if offset + at in self.pages:
                raise Broken(f"the page at {offset + at} comes twice")
            self.pages[offset + at] = data[at:at + PAGE]

    def bytes(self, image_bytes):
        if len(self.pages) * PAGE != image_bytes:
            raise Broken(f"{len(self.pages)} pages of {image_bytes} bytes have come")
        return b"".join(self.pages[at] for at in range(0, image_bytes, PAGE))


class Receiver:
    """Frames from `read(count)`, which gives no bytes at the end."""

    def __init__(self, read, flow):
        self.read, self.decoder = read, Decoder(flow)

    def next(self):
        while (found := self.decoder.next()) is None:
            data = self.read(65536)
            if not data:
                raise Broken("cut off")
            self.decoder.feed(data)
        return found

    def greeting(self):
        """(image_bytes, id, description, state)."""
        image_bytes, identity, description_bytes, state_bytes = self.next().fields
        blobs = {DESCRIPTION: b"", STATE: b""}
        while len(blobs[DESCRIPTION]) < description_bytes or len(blobs[STATE]) < state_bytes:
            found = self.next()
            blobs[found.kind] += found.fields[0]
        return image_bytes, identity, blobs[DESCRIPTION], blobs[STATE]


class Client:
    """A client of a server on a socket's path."""

    def __init__(self, path, flags=WANTS_DESCRIPTION | WANTS_STATE, timeout=20.0):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.socket.settimeout(timeout)
        self.socket.connect(path)
        self.socket.sendall(join(flags))
        self.receiver = Receiver(self.socket.recv, "server")
        self.image_bytes, self.id, self.description, self.state = self.receiver.greeting()
        self.number = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.socket.close()

    def ask(self, offset, size):
        self.number += 1
        self.socket.sendall(request(self.number, offset, size))
        return self.number

    def answer(self, number, offset, size):
        """The bytes of that part, whose frames have to be in order."""
        data = b""
        while (found := self.receiver.next()).kind != DONE:
            if found.fields[0] != offset + len(data):
                raise Broken("another part than the one that is due")
            data += found.fields[1] if found.kind == PAGES else bytes(found.fields[1])
        if found.fields != (number,) or len(data) != size:
            raise Broken("another answer than the one that is due")
        return data

    def fetch(self, offset, size):
        return self.answer(self.ask(offset, size), offset, size)


def read_stream(read):
    """(id, description, state, image) of a whole stream."""
    receiver = Receiver(read, "stream")
    image_bytes, identity, description, state = receiver.greeting()
    image = Image()
    while (found := receiver.next()).kind != END:
        image.take(found)
    return identity, description, state, image.bytes(image_bytes)
