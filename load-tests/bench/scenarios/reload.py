"""Do requests notice that the configuration changes under them?"""

import statistics
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass

from .. import load as loads
from .. import peers
from ..load import Load
from ..measure import WARM_UP, interleave
from ..peers import Contestant, with_routes
from ..report import Column, Report

ABOUT = "the configuration is written and reloaded every 100 ms under load; × is to the same gateway left alone just before, the median of 6 turns"
EVERY = 0.1
TURNS = 6
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
    load = Load("routes", connections=64, options={"ROUTES": COUNTS[gateway.contestant.label]})
    each = max((bench.seconds_asked or 60) // TURNS, 1)
    loads.run(load, bench, gateway, WARM_UP)
    # Turn by turn, because the machine is not the same a minute later.
    alone, reloading, reloader = [], [], Reloader(gateway)
    for _ in range(TURNS):
        alone.append(loads.run(load, bench, gateway, each))
        with reloader.at_work():
            reloading.append(loads.run(load, bench, gateway, each))
    pairs = list(zip(reloading, alone))
    return Reloaded(
        reloads=reloader.accepted,
        refused=reloader.refused,
        requests=sum(counted.requests for counted in reloading),
        failed=sum(counted.failed for counted in reloading),
        p99_ms=statistics.median(counted.p99_ms for counted in reloading),
        p99_ratio=statistics.median(one.p99_ms / max(other.p99_ms, 0.001) for one, other in pairs),
        rate_ratio=statistics.median(one.requests / max(other.requests, 1) for one, other in pairs),
    )


class Reloader:
    def __init__(self, gateway):
        self.gateway, self.revision = gateway, 0
        self.accepted = self.refused = 0

    @contextmanager
    def at_work(self):
        enough = threading.Event()
        thread = threading.Thread(target=self.run, args=[enough], daemon=True)
        thread.start()
        try:
            yield
        finally:
            enough.set()
            thread.join(15)

    def run(self, enough):
        due = time.monotonic()
        while not enough.wait(max(due - time.monotonic(), 0)):
            due, self.revision = due + EVERY, self.revision + 1
            self.gateway.configure(revision=self.revision)
            try:
                accepted = peers.request(self.gateway.admin, "POST", "/reload") in (200, 204)
            except OSError:
                accepted = False
            self.accepted += accepted
            self.refused += not accepted
