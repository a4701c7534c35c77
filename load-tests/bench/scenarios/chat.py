"""What a call of a model costs, whole: in the caller's format, and translated to another."""

from .. import models
from ..measure import alternate
from ..report import THROUGHPUT, Report

ABOUT = "chat completions, 1.5 KB each way: API key, metering, metrics, JSON access log (bare_pingora: none of it; portkey: no key, no log)"
PEERS = ["portkey", "litellm", "bare_pingora", "headgate"]
NEEDS = ["scripted_provider"]
TRANSLATED = "headgate to Anthropic"


def run(bench):
    return models.with_provider(bench, lambda port: measured(bench, port))


def measured(bench, port):
    contestants = [models.contestant(peer, port) for peer in bench.only(*PEERS)]
    if "headgate" in bench.peers:
        contestants.append(models.contestant("headgate", port, label=TRANSLATED))

    def load_of(contestant):
        return models.load(contestant.peer, port, target="other" if contestant.label == TRANSLATED else "same")

    samples, absent = alternate(bench, contestants, load_of)
    report = Report("chat", ABOUT, THROUGHPUT, samples, absent, base="bare_pingora")
    for label, most, least in (("headgate", 1.25, 25_000), (TRANSLATED, 1.5, 20_000)):
        report.goal(f"CPU per call of {label} to bare Pingora", report.ratio(label, "bare_pingora", "cpu_us"), at_most=most)
        report.goal(f"calls/s of {label}", report.median(label, "requests_s"), at_least=least)
    for label in samples:
        report.goal(f"calls that {label} failed", report.total(label, "errors"), at_most=0)
    return report
