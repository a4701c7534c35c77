"""The two ends of a large transfer, each run as a process of its own:

    streams.py origin PORT        GET answers SIZE bytes, PUT reads its whole body before it answers
    streams.py get|put PORT       moves SIZE bytes through the gateway there, prints the seconds it took
"""

import socket
import sys
import threading
import time

SIZE = 1 << 30
CHUNK = bytes(256 * 1024)


def serve(port):
    with socket.create_server(("127.0.0.1", port)) as listener:
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=answer, args=(connection,), daemon=True).start()


def answer(connection):
    """One request per connection; there are only a few."""
    with connection:
        head, body = read_head(connection)
        if not head:
            return
        if head.startswith(b"PUT "):
            drain(connection, SIZE - len(body))
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        else:
            size = SIZE if head.startswith(b"GET /large") else 0
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % size)
            fill(connection, size)


def get(port):
    with request(port, b"GET /large HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n") as connection:
        head, body = read_head(connection)
        expect_ok(head)
        drain(connection, SIZE - len(body))


def put(port):
    head = b"PUT /large HTTP/1.1\r\nHost: bench\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % SIZE
    with request(port, head) as connection:
        fill(connection, SIZE)
        expect_ok(read_head(connection)[0])


def request(port, head):
    connection = socket.create_connection(("127.0.0.1", port), timeout=60)
    connection.sendall(head)
    return connection


def read_head(connection):
    """The head of a message, and what came of its body with it."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        part = connection.recv(65536)
        if not part:
            return b"", b""
        seen += part
    head, _, body = seen.partition(b"\r\n\r\n")
    return head, body


def expect_ok(head):
    if b" 200 " not in head.split(b"\r\n")[0]:
        raise SystemExit(f"answered {head[:200]!r}")


def drain(connection, size):
    buffer = bytearray(len(CHUNK))
    while size > 0:
        got = connection.recv_into(buffer)
        if got == 0:
            raise SystemExit(f"closed {size} bytes before the end")
        size -= got


def fill(connection, size):
    for _ in range(size // len(CHUNK)):
        connection.sendall(CHUNK)


def main():
    role, port = sys.argv[1], int(sys.argv[2])
    if role == "origin":
        serve(port)
    started = time.monotonic()
    {"get": get, "put": put}[role](port)
    print(time.monotonic() - started)


if __name__ == "__main__":
    main()
