"""Calls one after the other, timed on one connection: what a gateway adds to each.

A socket and no library, so that what the client itself takes is small, and the same with and without the gateway.
"""

import select
import socket
import time


class Caller:
    """A connection that calls a model."""

    def __init__(self, port, path, body, headers):
        lines = [f"POST {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", *headers.read_text().splitlines()]
        content = body.read_bytes()
        lines.append(f"Content-Length: {len(content)}")
        self.request = ("\r\n".join(lines) + "\r\n\r\n").encode() + content
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self):
        self.connection.sendall(self.request)

    def whole(self):
        """Calls, and gives the seconds to the end of the answer."""
        started = time.perf_counter()
        self.send()
        self.rest(self.head())
        return time.perf_counter() - started

    def first_event(self):
        """Calls, and gives the seconds to the first content of the stream; then reads the rest of it."""
        started = time.perf_counter()
        self.send()
        seen = self.head()
        while b'"content":"' not in seen.replace(b'"content":""', b""):
            seen += self.more()
        took = time.perf_counter() - started
        self.rest(seen)
        return took

    def head(self):
        """What has come once the head of the answer has."""
        seen = self.more()
        while b"\r\n\r\n" not in seen:
            seen += self.more()
        if not seen.startswith(b"HTTP/1.1 200"):
            raise OSError(f"answered {seen[:300]!r}")
        return seen

    def rest(self, seen):
        head, _, body = seen.partition(b"\r\n\r\n")
        length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
        if length is None:
            while not body.endswith(b"0\r\n\r\n"):
                body = body[-16:] + self.more()
            return
        missing = length - len(body)
        while missing > 0:
            missing -= len(self.more())

    def more(self):
        part = self.connection.recv(1 << 18)
        if not part:
            raise OSError("closed midway")
        return part

    def quiet(self):
        """Whether nothing has come that was not read."""
        return not select.select([self.connection], [], [], 0)[0]

    def close(self):
        self.connection.close()


def paced(call, count, rate):
    """Calls `count` times, evenly, `rate` a second where the calls are that quick; gives the seconds each took."""
    took, due = [], time.perf_counter()
    for _ in range(count):
        while time.perf_counter() < due:
            pass
        due = max(due + 1 / rate, time.perf_counter())
        took.append(call())
    return sorted(took)


def percentile(ordered, share):
    return ordered[min(int(len(ordered) * share), len(ordered) - 1)]
