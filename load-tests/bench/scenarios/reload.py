"""Do requests notice that the configuration changes under them?"""

import threading
import time
from dataclasses import dataclass

from .. import load as loads
from .. import peers
from ..load import Load
from ..measure import WARM_UP, interleave
from ..peers import Contestant, with_routes
from ..report import Column, Report

ABOUT = "the configuration is written and reloaded every 100 ms under load; × is to the same gateway left alone just before"
EVERY = 0.1
COUNTS = {"headgate 10 routes": 10, "headgate 1,000 routes": 1000}
COLUMNS = [
    Column("reloads", "reloads", ratio=False, total=True),
    Column("refused", "refused", ratio=False, total=True),
    Column("requests", "requests", ratio=False, total=True),
    Column("failed", "failed", ratio=False, total=True),
    Column("p99_ms", "p99 ms", 2, ratio=False),
    Column("p99_ratio", "p99 ×", 2, ratio=False),
    Column("rate_ratio", "requests/s ×", 2, ratio=False),
]


@dataclass(frozen=True)
class Reloaded:
    reloads: int
    refused: int
    requests: int
    failed: int
    p99_ms: float
    p99_ratio: float
    rate_ratio: float


def run(bench):
    contestants = [
        Contestant(label, "headgate", "reload", with_routes("headgate", count) | {"revision": 0}, path="/service/0/items/42")
        for label, count in COUNTS.items()
    ]
    samples, absent = interleave(bench, contestants, lambda gateway: measure(bench, gateway))
    report = Report("reload", ABOUT, COLUMNS, samples, absent)
    for label in COUNTS:
        report.goal(f"{label}: failed requests", report.total(label, "failed"), at_most=0)
        report.goal(f"{label}: refused reloads", report.total(label, "refused"), at_most=0)
        report.goal(f"{label}: p99 to p99 without reloads", report.median(label, "p99_ratio"), at_most=2)
    return report


def measure(bench, gateway):
    load = Load("routes", connections=64, routes=COUNTS[gateway.contestant.label])
    seconds = bench.seconds_asked or 60
    loads.run(load, bench, gateway, WARM_UP)
    alone = loads.run(load, bench, gateway, bench.seconds)
    reloader = Reloader(gateway)
    reloader.start()
    try:
        counted = loads.run(load, bench, gateway, seconds)
    finally:
        reloader.finish()
    return Reloaded(
        reloads=reloader.accepted,
        refused=reloader.refused,
        requests=counted.requests,
        failed=counted.failed,
        p99_ms=counted.p99_ms,
        p99_ratio=counted.p99_ms / max(alone.p99_ms, 0.001),
        rate_ratio=(counted.requests / counted.seconds) / (alone.requests / alone.seconds),
    )


class Reloader(threading.Thread):
    def __init__(self, gateway):
        super().__init__(daemon=True)
        self.gateway, self.enough = gateway, threading.Event()
        self.accepted = self.refused = 0

    def run(self):
        due, revision = time.monotonic(), 0
        while not self.enough.wait(max(due - time.monotonic(), 0)):
            due, revision = due + EVERY, revision + 1
            self.gateway.configure(revision=revision)
            try:
                accepted = peers.request(self.gateway.admin, "POST", "/reload") in (200, 204)
            except OSError:
                accepted = False
            self.accepted += accepted
            self.refused += not accepted

    def finish(self):
        self.enough.set()
        self.join(15)
