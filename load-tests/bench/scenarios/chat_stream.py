"""What an event of a streamed answer costs: passed on in the caller's format, and translated from another."""

from .. import models
from ..measure import alternate
from ..report import THROUGHPUT, Report

ABOUT = "streams of 200 events, each written by itself: CPU is of a whole stream (bare_pingora: passes them unseen)"
PEERS = ["bare_pingora", "headgate"]
NEEDS = ["scripted_provider"]
EVENTS = 200
STREAM = f"events-{EVENTS}.separate"
SHORT = "events-1.separate"
TRANSLATED = "headgate from Anthropic"


def run(bench):
    return models.with_provider(bench, lambda port: measured(bench, port))


def measured(bench, port):
    rows = [(peer, peer, "same", STREAM) for peer in bench.only(*PEERS)]
    if "headgate" in bench.peers:
        rows += [
            ("headgate, one event", "headgate", "same", SHORT),
            (TRANSLATED, "headgate", "other", STREAM),
            (f"{TRANSLATED}, one event", "headgate", "other", SHORT),
        ]
    of_label = {label: (peer, target, model) for label, peer, target, model in rows}
    contestants = [models.contestant(peer, port, model, target, label) for label, peer, target, model in rows]

    def load_of(contestant):
        peer, target, model = of_label[contestant.label]
        return models.load(peer, port, model, target, connections=16, stream=True)

    samples, absent = alternate(bench, contestants, load_of)
    report = Report("chat_stream", ABOUT, THROUGHPUT, samples, absent, base="bare_pingora")
    for label, most in (("headgate", 3), (TRANSLATED, 8)):
        long, short = report.median(label, "cpu_us"), report.median(f"{label}, one event", "cpu_us")
        each = None if long is None or short is None else (long - short) / (EVENTS - 1)
        report.goal(f"CPU µs of {label} for an event", each, at_most=most)
    for label in samples:
        report.goal(f"streams that {label} failed", report.total(label, "errors"), at_most=0)
    return report
