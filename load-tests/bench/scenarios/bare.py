"""One route, nothing done to a request: what a gateway costs before it does anything useful."""

from ..load import Load
from ..measure import alternate
from ..peers import Contestant
from ..report import THROUGHPUT, Report

ABOUT = "one route, 64 connections, an answer of 100 bytes"


def run(bench):
    contestants = [
        Contestant(peer, peer, workers=bench.threads)
        for peer in bench.only("nginx", "haproxy", "envoy", "bare_pingora", "headgate")
    ]
    load = Load("bare", connections=64)
    samples, absent = alternate(bench, contestants, lambda _: load)
    report = Report("bare", ABOUT, THROUGHPUT, samples, absent)
    cpu = report.ratio("headgate", "bare_pingora", "cpu_us")
    report.goal("CPU per request of Headgate to bare Pingora", cpu, at_most=1.05)
    return report
