"""How soon is it there after a crash or a deployment?"""

from dataclasses import dataclass

from ..measure import interleave
from ..processes import memory_mib
from ..report import Column, Report
from .routes import contestant

ABOUT = "from exec to the first 200 through a route, with 1,000 routes, on one core"
COLUMNS = [Column("ready_ms", "ms to ready"), Column("mib", "MiB then", 1)]


@dataclass(frozen=True)
class Start:
    ready_ms: float
    mib: float


def run(bench):
    contestants = [contestant(peer) for peer in bench.only("nginx", "envoy", "headgate")]
    samples, absent = interleave(bench, contestants, measure)
    report = Report("start", ABOUT, COLUMNS, samples, absent)
    report.goal("ms to ready of Headgate", report.median("headgate", "ready_ms"), at_most=300)
    report.goal("MiB of Headgate then", report.median("headgate", "mib"), at_most=40)
    return report


def measure(gateway):
    return Start(gateway.ready_seconds * 1000, memory_mib(gateway.pid))
