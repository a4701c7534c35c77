"""What a client costs that keeps its connection and says nothing."""

import socket
import time
from dataclasses import dataclass

from ..measure import interleave
from ..peers import Contestant
from ..processes import memory_mib
from ..report import Column, Report

ABOUT = "10,000 keep-alive connections, each idle after one request"
CONNECTIONS = 10_000
COLUMNS = [
    Column("kib_each", "KiB/connection", 1),
    Column("before_mib", "MiB before", 1, ratio=False),
    Column("after_mib", "MiB with all open", 1, ratio=False),
    Column("refused", "refused", ratio=False, total=True),
]


@dataclass(frozen=True)
class Idle:
    kib_each: float
    before_mib: float
    after_mib: float
    refused: int


def run(bench):
    contestants = [Contestant(peer, peer) for peer in bench.only("nginx", "envoy", "bare_pingora", "headgate")]
    samples, absent = interleave(bench, contestants, measure)
    report = Report("idle", ABOUT, COLUMNS, samples, absent)
    report.notes.append("resident memory of the process; the kernel's socket buffers are not in it.")
    report.goal("KiB per idle connection of Headgate", report.median("headgate", "kib_each"), at_most=20)
    return report


def measure(gateway):
    open_idle(gateway.port, 100)[0].clear()  # Start-up work is done before the first look.
    before = memory_mib(gateway.pid)
    connections, refused = open_idle(gateway.port, CONNECTIONS)
    time.sleep(1)
    after = memory_mib(gateway.pid)
    each = (after - before) * 1024 / max(len(connections), 1)
    for connection in connections:
        connection.close()
    return Idle(each, before, after, refused)


def open_idle(port, count):
    request = f"GET / HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode()
    connections, refused = [], 0
    for _ in range(count):
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=5)
            connection.sendall(request)
            if not connection.recv(4096).startswith(b"HTTP/1.1 200"):
                raise OSError("not answered")
            connections.append(connection)
        except OSError:
            refused += 1
    return connections, refused
