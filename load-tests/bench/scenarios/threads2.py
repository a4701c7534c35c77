"""Does a second worker help, or do the two wait for each other?"""

from ..load import Load
from ..measure import alternate
from ..peers import Contestant
from ..report import THROUGHPUT, Report

ABOUT = "as bare, with one worker and with two; with two, load and origin share their cores"


def run(bench):
    contestants = [
        Contestant(peer if workers == 1 else f"{peer} 2 workers", peer, workers=workers)
        for peer in bench.only("nginx", "bare_pingora", "headgate")
        for workers in (1, 2)
    ]
    load = Load("bare", connections=64)
    samples, absent = alternate(bench, contestants, lambda _: load)
    report = Report("threads2", ABOUT, THROUGHPUT, samples, absent)
    report.notes.append("CPU per request is what tells: waiting for a shared lock or cache line would raise it with two workers.")
    return report
