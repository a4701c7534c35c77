"""Does a request pay for routes it does not take?"""

from ..load import Load
from ..measure import alternate
from ..report import THROUGHPUT, Report
from .routes import contestant

ABOUT = "as routes, with 10 and with 10,000 routes"
FEW, MANY = "headgate 10 routes", "headgate 10,000 routes"


def run(bench):
    counts = {FEW: 10, MANY: 10_000}
    contestants = [contestant("headgate", bench.threads, count, label) for label, count in counts.items()]

    def load_of(contestant):
        return Load("routes", connections=64, routes=counts[contestant.label])

    samples, absent = alternate(bench, contestants, load_of)
    report = Report("routes10k", ABOUT, THROUGHPUT, samples, absent)
    cpu = report.ratio(MANY, FEW, "cpu_us")
    report.goal("CPU per request with 10,000 routes to 10", cpu, at_most=1.02)
    return report
