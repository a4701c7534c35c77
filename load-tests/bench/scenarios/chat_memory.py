"""What memory calls of models take: many open streams, and an hour's worth of mixed calls."""

import time
from dataclasses import dataclass

from .. import load as loads
from .. import models
from ..calls import Caller
from ..measure import interleave
from ..processes import memory_mib
from ..report import Column, Report

ABOUT = "5,000 streams open after their first event; then mixed calls, whole and streamed, in both formats and failing"
PEERS = ["headgate"]
NEEDS = ["scripted_provider"]
STREAMS = 5_000
# An hour at 1,000 calls a second, or as many as the time allows.
CALLS = 3_600_000
TURN = 3
OPEN = "events-2.interval-600000"
COLUMNS = [
    Column("kib_each", "KiB/stream", 1, ratio=False),
    Column("calls", "mixed calls", ratio=False),
    Column("third_mib", "MiB after a third", 1, ratio=False),
    Column("end_mib", "MiB at the end", 1, ratio=False),
    Column("failed", "failed", ratio=False, total=True),
]


@dataclass(frozen=True)
class Memory:
    kib_each: float
    calls: int
    third_mib: float
    end_mib: float
    failed: int


def run(bench):
    return models.with_provider(bench, lambda port: measured(bench, port))


def measured(bench, port):
    def measure(gateway):
        each, failed = open_streams(gateway, port)
        calls, third, end, errors = mixed(bench, gateway, port)
        return Memory(each, calls, third, end, failed + errors)

    contestants = [models.contestant(peer, port, OPEN) for peer in bench.only(*PEERS)]
    samples, absent = interleave(bench, contestants, measure)
    report = Report("chat_memory", ABOUT, COLUMNS, samples, absent)
    report.goal("KiB of an open stream", report.median("headgate", "kib_each"), at_most=40)
    third, end = report.median("headgate", "third_mib"), report.median("headgate", "end_mib")
    report.goal("MiB that mixed calls add after their first third", None if end is None else end - third, at_most=2)
    report.goal("streams and calls that failed", report.total("headgate", "failed"), at_most=0)
    return report


def open_streams(gateway, port):
    """KiB that one open stream takes, and how many could not be opened."""
    files = models.call("headgate", port, stream=True)
    before = memory_mib(gateway.pid)
    callers, failed = [], 0
    for _ in range(STREAMS):
        try:
            caller = Caller(gateway.port, models.PATH, *files)
            caller.send()
            caller.head()
            callers.append(caller)
        except OSError:
            failed += 1
    after = memory_mib(gateway.pid)
    for caller in callers:
        caller.close()
    return (after - before) * 1024 / max(len(callers), 1), failed


def mixed(bench, gateway, port):
    """Calls of every kind in turn: how many, the memory after a third and at the end, and how many failed."""
    # The gateway's models wait for ten minutes after their first event: these are asked by their providers' own names.
    whole = [named(target, models.WHOLE, port) for target in ("same", "other")]
    streamed = [named(target, "events-50", port, stream=True) for target in ("same", "other")]
    wrong = [named("same", "status-500", port)]
    kinds = [(load, 0) for load in whole + streamed] + [(load, None) for load in wrong]
    calls, failed, third, started = 0, 0, None, time.monotonic()
    seconds = bench.seconds_asked or 300
    while calls < CALLS and time.monotonic() - started < seconds:
        for load, expected in kinds:
            counted = loads.run(load, bench, gateway, TURN)
            calls += counted.requests
            failed += counted.failed if expected == 0 else 0
        if third is None and (time.monotonic() - started > seconds / 3 or calls > CALLS / 3):
            third = memory_mib(gateway.pid)
    return calls, third or 0.0, memory_mib(gateway.pid), failed


def named(target, model, port, **more):
    return models.load("direct", port, f"{target}/{model}", connections=32, **more)
