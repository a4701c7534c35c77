"""Does a request pay for consumers that it is not of, and what memory does each of them take?"""

import statistics
from dataclasses import dataclass

from .. import credentials
from .. import load as loads
from ..load import Load
from ..measure import alternate, interleave
from ..prepare import say
from ..processes import memory_mib
from ..report import THROUGHPUT, Report
from .policy import contestant

ABOUT = "as policy, with 100 and with 100,000 consumers, all of them or 100 of them calling"
LESS, MORE = 100, 100_000
FEW, SOME, MANY = "headgate 100 consumers", "headgate 100 of 100,000 consumers", "headgate 100,000 consumers"
THERE = {FEW: LESS, SOME: MORE, MANY: MORE}
CALLING = {FEW: LESS, SOME: LESS, MANY: MORE}

# Requests per second that any machine answers.
SLOW = 5000


def load_of(contestant):
    # As long for all: what the load generator walks through takes room in caches that it shares with the gateway.
    return credentials.load(credentials.keys(CALLING[contestant.label], MORE))


def each_once(bench, count):
    return credentials.load(credentials.keys(count), ONCE=len(bench.load_cores()))


@dataclass(frozen=True)
class Memory:
    known_mib: float
    called_mib: float


def run(bench):
    contestants = [contestant("headgate", bench.threads, count, label) for label, count in THERE.items()]
    samples, absent = alternate(bench, contestants, load_of, before=lambda gateway: call_once(bench, gateway))
    memory, _ = interleave(bench, [one for one in contestants if one.label != SOME], lambda gateway: measure(bench, gateway))
    report = Report("consumers", ABOUT, THROUGHPUT, samples, absent)
    for label in (SOME, MANY):
        report.goal(f"CPU per request of {label} to {FEW}", report.ratio(label, FEW, "cpu_us"), at_most=1.03)
    report.goal("bytes of memory per consumer", bytes_each(memory, "known_mib"), at_most=600)
    if (each := bytes_each(memory, "called_mib")) is not None:
        report.notes.append(f"once all of them have called, with a limit and a quota counted for each: {each:.0f} bytes per consumer.")
    report.notes.append("what all 100,000 cost beyond 100 of them is fetching their data: no cache holds it.")
    return report


def measure(bench, gateway):
    known = memory_mib(gateway.pid)
    call_once(bench, gateway)
    return Memory(known, memory_mib(gateway.pid))


def call_once(bench, gateway):
    """A consumer's first call of the month is counted where there was nothing; that it costs more is not the question."""
    count = CALLING[gateway.contestant.label]
    counted = loads.run(each_once(bench, count), bench, gateway, max(count // SLOW, 1))
    # Those in flight when the last was sent are not counted.
    if counted.requests + Load.connections < count:
        say(f"only {counted.requests} of {count} have called")


def bytes_each(memory, key):
    pairs = zip(memory[MANY], memory[FEW])
    differences = [getattr(more, key) - getattr(less, key) for more, less in pairs]
    return statistics.median(differences) * 1024 * 1024 / (MORE - LESS) if differences else None
