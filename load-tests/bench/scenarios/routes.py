"""What a real gateway does at least: many routes, headers, request id, metrics, access log."""

from ..load import Load
from ..measure import alternate
from ..peers import Contestant, with_routes
from ..report import THROUGHPUT, Report

ABOUT = "1,000 routes, a header set each way, request id, metrics, JSON access log to a file (bare_pingora: none of it)"
ROUTES = 1000


def run(bench):
    contestants = [contestant(peer, bench.threads) for peer in bench.only("nginx", "envoy", "bare_pingora", "headgate")]
    load = Load("routes", connections=64, options={"ROUTES": ROUTES})
    samples, absent = alternate(bench, contestants, lambda _: load)
    report = Report("routes", ABOUT, THROUGHPUT, samples, absent)
    cpu = report.ratio("headgate", "bare_pingora", "cpu_us")
    report.goal("CPU per request of Headgate to bare Pingora", cpu, at_most=1.15)
    rate = report.ratio("headgate", "envoy", "requests_s")
    report.goal("requests/s of Headgate to Envoy", rate, at_least=1.4)
    return report


def contestant(peer, workers=1, count=ROUTES, label=None):
    variables = with_routes(peer, count)
    return Contestant(label or peer, peer, "routes", variables, workers, path="/service/0/items/42")
