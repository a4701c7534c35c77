"""Does memory grow with the number of clients?"""

from dataclasses import dataclass

from .. import load as loads
from ..load import Load
from ..measure import WARM_UP, interleave
from ..peers import Contestant, PeerFailed
from ..processes import memory_mib
from ..report import Column, Report

ABOUT = "2,000,000 client addresses, one request of each, with a limit for each; then one address alone, as fast as it can"
SOME, MANY, MORE = 100_000, 1_000_000, 2_000_000
RATE = 1000
SLICE, ALONE = 2, 4
COLUMNS = [
    Column("before_mib", "MiB before", 1, ratio=False),
    Column("some_mib", "after 100,000", 1, ratio=False),
    Column("many_mib", "after 1,000,000", 1, ratio=False),
    Column("more_mib", "after 2,000,000", 1, ratio=False),
    Column("grown_mib", "grown MiB", 2, ratio=False),
    Column("addresses", "addresses", ratio=False),
    Column("refused", "refused of them", ratio=False, total=True),
    Column("alone_s", "admitted of one alone, per s", ratio=False),
]


@dataclass(frozen=True)
class Shielded:
    before_mib: float
    some_mib: float
    many_mib: float
    more_mib: float
    grown_mib: float
    addresses: int
    refused: int
    alone_s: float


def run(bench):
    contestant = Contestant("headgate", "headgate", "shield", {"rate": RATE})
    samples, absent = interleave(bench, [contestant], lambda gateway: measure(bench, gateway))
    report = Report("shield", ABOUT, COLUMNS, samples, absent)
    # What the allocator does between two looks is less than this; a map would need more than 16 bytes each, 15 MiB.
    report.goal("MiB grown between 1,000,000 addresses and 2,000,000", report.median("headgate", "grown_mib"), at_most=2)
    report.goal("requests refused of addresses with one each", report.total("headgate", "refused"), at_most=0)
    # The shield counts by the second, and a run of ALONE seconds touches one more.
    at_most = RATE * (ALONE + 1) / ALONE
    report.goal("admitted of one address alone, per second", report.median("headgate", "alone_s"), at_most=at_most)
    return report


def measure(bench, gateway):
    loads.run(Load("bare", connections=64), bench, gateway, WARM_UP)
    before = memory_mib(gateway.pid)
    callers = Callers(bench, gateway)
    callers.reach(SOME)
    some = memory_mib(gateway.pid)
    callers.reach(MANY)
    many = memory_mib(gateway.pid)
    callers.reach(MORE)
    more = memory_mib(gateway.pid)
    alone = loads.run(Load("bare", connections=64), bench, gateway, ALONE)
    return Shielded(before, some, many, more, more - many, callers.seen, callers.refused, alone.succeeded / alone.seconds)


class Callers:
    """Clients that each call once, slice by slice, until there were enough of them."""

    def __init__(self, bench, gateway):
        self.bench, self.gateway = bench, gateway
        self.seen = self.refused = self.next = 0

    def reach(self, count):
        while self.seen < count:
            load = Load("addresses", connections=64, options={"START": self.next})
            counted = loads.run(load, self.bench, self.gateway, SLICE)
            if counted.requests == 0:
                raise PeerFailed(f"answers nothing after {self.seen} addresses")
            self.seen += counted.requests
            self.refused += counted.failed
            # Those that were asked by and not answered are behind it too.
            self.next += counted.requests + 1000
