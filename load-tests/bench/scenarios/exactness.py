"""Does a limit admit what it says, no less and never more, whoever asks at the same time?"""

import time
from dataclasses import dataclass

from .. import load as loads
from ..load import Load
from ..measure import interleave
from ..peers import Contestant
from ..report import Column, Report

ABOUT = "64 connections against 100/s with a burst of 100 on one route, for a minute, with one worker and with two"
RATE, BURST = 100, 100
WORKERS = {"headgate": 1, "headgate 2 workers": 2}
COLUMNS = [
    Column("asked", "requests", ratio=False, total=True),
    Column("admitted", "admitted", ratio=False, total=True),
    Column("allowed", "burst + rate × time", ratio=False, total=True),
    Column("share", "share of it", 4, ratio=False),
    Column("errors", "errors", ratio=False, total=True),
]


@dataclass(frozen=True)
class Exact:
    asked: int
    admitted: int
    allowed: float
    share: float
    errors: int


def run(bench):
    variables = {"rate": RATE, "burst": BURST}
    contestants = [Contestant(label, "headgate", "limited", variables, workers) for label, workers in WORKERS.items()]
    samples, absent = interleave(bench, contestants, lambda gateway: measure(bench, gateway))
    report = Report("exactness", ABOUT, COLUMNS, samples, absent)
    for label in WORKERS:
        shares = report.values(label, "share")
        report.goal(f"{label}: admitted of what is allowed, the most of all rounds", max(shares, default=None), at_most=1)
        report.goal(f"{label}: the least of all rounds", min(shares, default=None), at_least=0.99)
        report.goal(f"{label}: other answers than 200 and 429", report.total(label, "errors"), at_most=0)
    return report


def measure(bench, gateway):
    started = time.monotonic()
    counted = loads.run(Load("limited", connections=64, path="/limited"), bench, gateway, bench.seconds_asked or 60)
    # From before the first request to after the last answer: a moment more than the load generator says, never less.
    allowed = BURST + RATE * (time.monotonic() - started)
    return Exact(counted.requests, counted.admitted, allowed, counted.admitted / allowed, counted.failed)
