"""What an API gateway is bought for: who calls, how often, how much this month, and a record of it."""

from .. import credentials
from ..measure import alternate
from ..peers import Contestant
from ..report import THROUGHPUT, Report

ABOUT = "an API key of 10,000, rate limit, monthly quota, metrics, JSON access log (bare_pingora: none of it; quotas: only Headgate)"
CONSUMERS = 10_000


def run(bench):
    contestants = [contestant(peer, bench.threads) for peer in bench.only("nginx", "envoy", "bare_pingora", "headgate")]
    load = credentials.load(credentials.keys(CONSUMERS))
    samples, absent = alternate(bench, contestants, lambda _: load)
    report = Report("policy", ABOUT, THROUGHPUT, samples, absent)
    cpu = report.ratio("headgate", "bare_pingora", "cpu_us")
    report.goal("CPU per request of Headgate to bare Pingora", cpu, at_most=1.2)
    rate = report.ratio("headgate", "envoy", "requests_s")
    report.goal("requests/s of Headgate to Envoy", rate, at_least=1.45)
    for label in samples:
        report.goal(f"requests that {label} refused", report.total(label, "errors"), at_most=0)
    return report


def contestant(peer, workers=1, count=CONSUMERS, label=None):
    variables = credentials.with_consumers(peer, count)
    return Contestant(label or peer, peer, "policy", variables, workers, headers={"X-Api-Key": credentials.key(0)})
