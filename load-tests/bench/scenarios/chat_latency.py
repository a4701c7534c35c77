"""What a gateway adds to the time of one call: whole, to the first content of a stream, and with a long prompt."""

from dataclasses import dataclass

from .. import models
from ..calls import Caller, paced, percentile
from ..measure import interleave
from ..peers import Contestant
from ..report import Column, Report

ABOUT = "one caller, 1,000 calls/s at most: what is added to the provider's own time, in µs (`direct`: its own)"
PEERS = ["portkey", "litellm", "headgate"]
NEEDS = ["scripted_provider"]
COUNT = 4000
LONG = 400_000
COLUMNS = [
    Column("p50", "p50", ratio=False),
    Column("p99", "p99", ratio=False),
    Column("first_p50", "first event p50", ratio=False),
    Column("long_p50", "400 KB prompt p50", ratio=False),
]
DIRECT = "direct"


@dataclass(frozen=True)
class Latency:
    p50: float
    p99: float
    first_p50: float
    long_p50: float


def run(bench):
    return models.with_provider(bench, lambda port: measured(bench, port))


def measured(bench, port):
    contestants = [models.contestant(peer, port) for peer in bench.only(*PEERS)]

    def measure(gateway):
        peer = gateway.contestant.peer
        return difference(latency(peer, gateway.port, port), latency("direct", port, port))

    samples, absent = interleave(bench, contestants, measure)
    report = Report("chat_latency", ABOUT, COLUMNS, samples, absent)
    for key, what, most in (
        ("p50", "p50", 120),
        ("p99", "p99", 400),
        ("first_p50", "p50 to the first event", 200),
        ("long_p50", "p50 with a prompt of 400 KB", 1500),
    ):
        report.goal(f"µs that Headgate adds: {what}", report.median("headgate", key), at_most=most)
    return report


def latency(peer, port, provider):
    """Percentiles of the time that calls take there, in µs. A slow gateway is asked less often."""
    def time_of(call, method, count=COUNT):
        caller = Caller(port, models.PATH, *call)
        try:
            action = getattr(caller, method)
            probe = paced(action, 50, 1000)
            count = min(count, int(10 / max(probe[25], 1e-4)))
            return [each * 1e6 for each in paced(action, max(count, 20), 1000)]
        finally:
            caller.close()

    whole = time_of(models.call(peer, provider), "whole")
    first = time_of(models.call(peer, provider, stream=True), "first_event", 1000)
    long = time_of(models.call(peer, provider, prompt=LONG), "whole", 500)
    return Latency(percentile(whole, 0.5), percentile(whole, 0.99), percentile(first, 0.5), percentile(long, 0.5))


def difference(one, other):
    return Latency(*(getattr(one, column.key) - getattr(other, column.key) for column in COLUMNS))
