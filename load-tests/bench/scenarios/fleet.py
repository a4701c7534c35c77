"""Do two nodes keep one limit, and does anybody notice when what they share stops answering?"""

import os
import signal
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass

from .. import load as loads
from .. import peers, processes
from ..layout import RUN
from ..load import Load, Running
from ..measure import WARM_UP, interleave
from ..peers import Contestant, PeerFailed
from ..report import Column, Report

ABOUT = "two nodes, one Redis, 1000/s together; then Redis is stopped (SIGSTOP) under load, and goes on (SIGCONT)"
NEEDS = ["redis-server"]
NODES = ("headgate", "headgate second node")
RATE, BURST = 1000, 1000

# Of the burst, in percent: what a node leases at once, and may admit beyond the limit.
LEASE = 10
LEASES = len(NODES) * BURST * LEASE // 100

# Redis has this long for an answer, and is left alone for the pause of src/limits/fleet.rs after a failure. Then the next
# request has it asked again.
TIMEOUT, PAUSE = 0.1, 1.0

# Between two looks at whether it was, and how long one may take.
LOOK = 0.05

COLUMNS = [
    Column("admitted", "admitted", ratio=False, total=True),
    Column("share", "of burst + rate × time", 3, ratio=False),
    Column("of_bound", "and a lease for each", 3, ratio=False),
    Column("recovered_s", "s from SIGCONT until both ask again", 2, ratio=False),
    Column("again_of_bound", "the same after that", 3, ratio=False),
    Column("p99_ms", "p99 ms", 2, ratio=False),
    Column("stopped_p99_ms", "p99 ms stopped", 2, ratio=False),
    Column("stopped_ratio", "×", 2, ratio=False),
    Column("max_ms", "slowest ms", 1, ratio=False),
    Column("stopped_max_ms", "slowest ms stopped", 1, ratio=False),
    Column("failed", "failed", ratio=False, total=True),
]


@dataclass(frozen=True)
class Together:
    admitted: int
    share: float
    of_bound: float
    recovered_s: float
    again_of_bound: float
    p99_ms: float
    stopped_p99_ms: float
    stopped_ratio: float
    max_ms: float
    stopped_max_ms: float
    failed: int


def run(bench):
    try:
        samples, absent = rounds(bench)
    except PeerFailed as why:
        samples, absent = {NODES[0]: []}, {NODES[0]: str(why)}
    report = Report("fleet", ABOUT, COLUMNS, samples, absent)
    for key, when in (("of_bound", "before"), ("again_of_bound", "after SIGCONT")):
        shares = report.values(NODES[0], key)
        report.goal(f"admitted of the bound, {when}, the most of all rounds", max(shares, default=None), at_most=1)
    slowest = max(report.values(NODES[0], "recovered_s"), default=None)
    report.goal("seconds until both ask Redis again, the most of all rounds", slowest, at_most=TIMEOUT + PAUSE + LOOK)
    report.goal("admitted of burst + rate × time, the least of all rounds", min(report.values(NODES[0], "share"), default=None), at_least=0.9)
    report.goal("p99 while Redis is stopped to p99 before", report.median(NODES[0], "stopped_ratio"), at_most=2)
    report.goal("failed requests", report.total(NODES[0], "failed"), at_most=0)
    return report


def rounds(bench):
    with redis(bench) as (server, port):
        variables = {"redis": port, "rate": RATE, "burst": BURST, "lease": LEASE, "timeout": f"{TIMEOUT * 1000:.0f}ms"}
        first, second = (Contestant(label, "headgate", "fleet", variables) for label in NODES)

        def measure(gateway):
            with peers.running(second, bench.origin, bench.peer_cores(1)) as other:
                return observe(bench, server, gateway, other)

        return interleave(bench, [first], measure)


def observe(bench, server, gateway, other):
    seconds = bench.seconds_asked or 20
    admitted, allowed, failed = limited(bench, gateway, other, seconds)
    wide = Load("limited", connections=64, path="/wide")
    loads.run(wide, bench, gateway, WARM_UP)
    before = loads.run(wide, bench, gateway, seconds)
    os.kill(server.pid, signal.SIGSTOP)
    try:
        stopped = loads.run(wide, bench, gateway, seconds)
    finally:
        os.kill(server.pid, signal.SIGCONT)
    recovered = until_asked(gateway, other)
    admitted_again, allowed_again, failed_again = limited(bench, gateway, other, seconds)
    # Nothing reaches the limit of `wide`, so that a 429 there is a failure too.
    failed_wide = sum(max(counted.requests - counted.admitted, counted.failed) for counted in (before, stopped))
    return Together(
        admitted=admitted,
        share=admitted / allowed,
        of_bound=admitted / (allowed + LEASES),
        recovered_s=recovered,
        again_of_bound=admitted_again / (allowed_again + LEASES),
        p99_ms=before.p99_ms,
        stopped_p99_ms=stopped.p99_ms,
        stopped_ratio=stopped.p99_ms / max(before.p99_ms, 0.001),
        max_ms=before.max_ms,
        stopped_max_ms=stopped.max_ms,
        failed=failed + failed_again + failed_wide,
    )


def limited(bench, gateway, other, seconds):
    """What both nodes admit together: how many, of burst + rate × time, and other answers than 200 and 429."""
    load = Load("limited", connections=32, path="/limited")
    started = time.monotonic()
    both = [Running(load, bench, node, seconds) for node in (gateway, other)]
    counted = [one.finish() for one in both]
    allowed = BURST + RATE * (time.monotonic() - started)
    admitted = sum(one.admitted for one in counted)
    return admitted, allowed, sum(one.failed for one in counted)


def until_asked(*nodes):
    """How long it takes from now until Redis answers all nodes, which ask it only when they have requests."""
    started = time.monotonic()
    deadline = started + peers.READY_WITHIN
    waiting = list(nodes)
    while waiting and time.monotonic() < deadline:
        for node in waiting:
            peers.request(node.port, "GET", "/wide")
        time.sleep(LOOK / 2)
        waiting = [node for node in waiting if b"\nheadgate_redis_up 1\n" not in peers.exchange(node.admin, "GET", "/metrics")[1]]
    if waiting:
        raise PeerFailed(f"Redis goes on, and is not asked: {peers.last_lines(waiting[0].log)}")
    return time.monotonic() - started


@contextmanager
def redis(bench):
    """A Redis of its own that keeps nothing, beside the load."""
    if why := bench.missing.get("redis-server"):
        raise PeerFailed(why)
    [port] = peers.free_ports(1)
    folder = RUN / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "output.log"
    command = ["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", folder]
    server = processes.start(command, bench.load_cores(), log)
    try:
        await_pong(server, port, log)
        yield server, port
    finally:
        processes.stop(server)


def await_pong(server, port, log):
    deadline = time.monotonic() + peers.READY_WITHIN
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                connection.sendall(b"PING\r\n")
                if connection.recv(16).startswith(b"+PONG"):
                    return
        except OSError:
            pass
        time.sleep(0.01)
    raise PeerFailed(f"redis-server does not answer: {peers.last_lines(log)}")
