"""A gigabyte each way: is it streamed, and what does a byte cost?"""

import sys
import time
from dataclasses import dataclass

from .. import peers, processes, streams
from ..layout import RUN
from ..measure import interleave
from ..peers import Contestant, PeerFailed
from ..report import Column, Report

ABOUT = "1 GiB down, then 1 GiB up, one connection; memory is looked at 20 times a second"
AT_MOST = 120.0
COLUMNS = [
    Column("down_s", "down s", 2),
    Column("down_cpu_s", "CPU s", 2),
    Column("up_s", "up s", 2),
    Column("up_cpu_s", "CPU s", 2),
    Column("before_mib", "MiB before", 1, ratio=False),
    Column("most_mib", "MiB at most", 1, ratio=False),
    Column("grown_mib", "grown MiB", 1, ratio=False),
]


@dataclass(frozen=True)
class Large:
    down_s: float
    down_cpu_s: float
    up_s: float
    up_cpu_s: float
    before_mib: float
    most_mib: float
    grown_mib: float


def run(bench):
    contestants = [Contestant(peer, peer) for peer in bench.only("nginx", "haproxy", "envoy", "bare_pingora", "headgate")]
    small, bench.origin = bench.origin, peers.free_ports(1)[0]
    origin = processes.start(role("origin", bench.origin), bench.load_cores(), RUN / "streams.log")
    try:
        peers.await_ready(origin, bench.origin, "/", RUN / "streams.log")
        samples, absent = interleave(bench, contestants, lambda gateway: measure(bench, gateway))
    finally:
        processes.stop(origin)
        bench.origin = small
    report = Report("large", ABOUT, COLUMNS, samples, absent)
    report.goal("download time of Headgate to nginx", report.ratio("headgate", "nginx", "down_s"), at_most=1.25)
    report.goal("upload time of Headgate to nginx", report.ratio("headgate", "nginx", "up_s"), at_most=1.25)
    report.goal("MiB that Headgate's memory grew", report.median("headgate", "grown_mib"), at_most=8)
    return report


def role(name, port):
    return [sys.executable, streams.__file__, name, port]


def measure(bench, gateway):
    before = processes.memory_mib(gateway.pid)
    down_s, down_cpu, most_down = transfer(bench, gateway, "get")
    up_s, up_cpu, most_up = transfer(bench, gateway, "put")
    most = max(most_down, most_up)
    return Large(down_s, down_cpu, up_s, up_cpu, before, most, most - before)


def transfer(bench, gateway, direction):
    log = RUN / "transfer.log"
    cpu, most = processes.cpu_seconds(gateway.pid), 0.0
    client = processes.start(role(direction, gateway.port), bench.load_cores(), log)
    deadline = time.monotonic() + AT_MOST
    try:
        while client.poll() is None and time.monotonic() < deadline:
            most = max(most, processes.memory_mib(gateway.pid))
            time.sleep(0.05)
    finally:
        processes.stop(client)
    if client.returncode != 0:
        raise PeerFailed(f"{direction}: {peers.last_lines(log)}")
    return float(log.read_text()), processes.cpu_seconds(gateway.pid) - cpu, most
