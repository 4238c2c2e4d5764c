"""HTTP/2 peers that hold what they hold: unfinished uploads, unread answers.

Each peer speaks just enough HTTP/2 to be taken for a gRPC client, answers
pings and settings, and obeys flow control: it sends only what the server has
granted. One thread serves all of them.
"""

import selectors
import socket
import struct
import threading

from benchmarks.load.messages import METHOD

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = (
    0, 1, 3, 4, 6, 7, 8,
)  # fmt: skip
ACK, END_STREAM, END_HEADERS = 1, 1, 4
INITIAL_WINDOW_SIZE = 4
FRAME = 16384
ZEROS = bytes(FRAME)


def frame(kind, flags, stream, payload=b""):
    head = struct.pack(">I", len(payload))[1:] + bytes([kind, flags])
    return head + struct.pack(">I", stream) + payload


def literal(name, value):
    """A header field that is neither indexed nor compressed (HPACK 6.2.2)."""
    return (
        bytes([0, len(name)])
        + name.encode()
        + bytes([len(value)])
        + (value.encode())
    )


def call_headers(authority):
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": METHOD,
        ":authority": authority,
        "content-type": "application/grpc",
        "te": "trailers",
    }
    return b"".join(literal(*field) for field in fields.items())


class Upload:
    """One call's body: `head`, then zeros up to `send` bytes of a message of
    `size` bytes; the stream is ended if that is all of it."""

    def __init__(self, size, send, head=b""):
        self.start = b"\0" + struct.pack(">I", size) + head
        self.left = 5 + send
        self.sent = 0
        self.ends = send == size
        self.window = 0
        self.open = True

    def next_bytes(self, most):
        count = min(most, self.left, FRAME)
        begin = self.start[self.sent : self.sent + count]
        self.sent += count
        self.left -= count
        return begin + ZEROS[: count - len(begin)]


class Peer:
    """One connection with its uploads."""

    def __init__(self, address, uploads):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout=10)
        self.socket.setblocking(False)
        self.window = self.initial_window = 65535
        self.streams = {2 * i + 1: upload for i, upload in enumerate(uploads)}
        headers = call_headers(address)
        self.out = bytearray(PREFACE + frame(SETTINGS, 0, 0))
        for stream, upload in self.streams.items():
            upload.window = self.initial_window
            self.out += frame(HEADERS, END_HEADERS, stream, headers)
        self.input = bytearray()
        self.closed = False

    def close(self):
        self.closed = True
        self.socket.close()

    @property
    def open_streams(self):
        if self.closed:
            return 0
        return sum(upload.open for upload in self.streams.values())

    def read(self):
        try:
            data = self.socket.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.close()
            return
        self.input += data
        while len(self.input) >= 9:
            length = int.from_bytes(self.input[:3], "big")
            if len(self.input) < 9 + length:
                return
            kind, flags = self.input[3], self.input[4]
            stream = int.from_bytes(self.input[5:9], "big") & 0x7FFFFFFF
            payload = bytes(self.input[9 : 9 + length])
            del self.input[: 9 + length]
            self.take(kind, flags, stream, payload)

    def take(self, kind, flags, stream, payload):
        if kind == SETTINGS and not flags & ACK:
            self.take_settings(payload)
        elif kind == PING and not flags & ACK:
            self.out += frame(PING, ACK, 0, payload)
        elif kind == WINDOW_UPDATE:
            self.grant(stream, int.from_bytes(payload, "big"))
        elif stream in self.streams:
            last = kind in (HEADERS, DATA) and flags & END_STREAM
            if kind == RST_STREAM or last:
                self.streams[stream].open = False

    def take_settings(self, payload):
        for i in range(0, len(payload), 6):
            name, value = struct.unpack(">HI", payload[i : i + 6])
            if name == INITIAL_WINDOW_SIZE:
                for upload in self.streams.values():
                    upload.window += value - self.initial_window
                self.initial_window = value
        self.out += frame(SETTINGS, ACK, 0)

    def grant(self, stream, bytes_more):
        if stream == 0:
            self.window += bytes_more
        elif stream in self.streams:
            self.streams[stream].window += bytes_more

    def fill(self):
        """Puts what the windows allow into `out`, a round at a time."""
        for stream, upload in self.streams.items():
            if len(self.out) > 1 << 18:
                return
            most = min(self.window, upload.window)
            if not upload.open or not upload.left or most <= 0:
                continue
            data = upload.next_bytes(most)
            self.window -= len(data)
            upload.window -= len(data)
            ended = END_STREAM if upload.ends and not upload.left else 0
            self.out += frame(DATA, ended, stream, data)

    def write(self):
        self.fill()
        if not self.out:
            return
        try:
            sent = self.socket.send(self.out)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        del self.out[:sent]


class Swarm:
    """Peers served by a thread of their own; a context manager."""

    def __init__(self, address, connections, make_uploads):
        """`make_uploads()`: those of one connection. Connections that cannot be
        made are left out."""
        self.peers = []
        for _ in range(connections):
            try:
                self.peers.append(Peer(address, make_uploads()))
            except OSError:
                continue
        self.missing = connections - len(self.peers)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def _serve(self):
        selector = selectors.DefaultSelector()
        for peer in self.peers:
            both = selectors.EVENT_READ | selectors.EVENT_WRITE
            selector.register(peer.socket, both, peer)
        while not self._stopped.is_set():
            for key, events in selector.select(0.05):
                peer = key.data
                if events & selectors.EVENT_READ:
                    peer.read()
                if not peer.closed and events & selectors.EVENT_WRITE:
                    peer.write()
                self._update(selector, key, peer)
        selector.close()

    def _update(self, selector, key, peer):
        """Waits for room only where there is something to send."""
        if peer.closed:
            selector.unregister(key.fileobj)
            return
        peer.fill()
        wanted = selectors.EVENT_READ
        if peer.out:
            wanted |= selectors.EVENT_WRITE
        if wanted != key.events:
            selector.modify(key.fileobj, wanted, peer)

    def describe(self):
        streams = sum(len(peer.streams) for peer in self.peers)
        sent = sum(u.sent for p in self.peers for u in p.streams.values())
        text = (
            f"{sum(peer.open_streams for peer in self.peers)} of {streams} calls "
            f"open, {sent >> 20} MiB sent"
        )
        if self.missing:
            text += f", {self.missing} connections refused"
        return text

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *unused):
        self._stopped.set()
        self._thread.join()
        for peer in self.peers:
            peer.close()
