"""Does a request pay for routes it does not take?"""

from ..load import Load
from ..measure import alternate
from ..report import THROUGHPUT, Report
from .routes import contestant

ABOUT = "as routes, with 10 and with 10,000 routes, all of them or 10 of them in use"
FEW, SOME, MANY = "headgate 10 routes", "headgate 10 of 10,000 routes", "headgate 10,000 routes"


def run(bench):
    there, used = {FEW: 10, SOME: 10_000, MANY: 10_000}, {FEW: 10, SOME: 10, MANY: 10_000}
    contestants = [contestant("headgate", bench.threads, count, label) for label, count in there.items()]

    def load_of(contestant):
        return Load("routes", connections=64, options={"ROUTES": used[contestant.label]})

    samples, absent = alternate(bench, contestants, load_of)
    report = Report("routes10k", ABOUT, THROUGHPUT, samples, absent)
    for label in (SOME, MANY):
        report.goal(f"CPU per request of {label} to {FEW}", report.ratio(label, FEW, "cpu_us"), at_most=1.02)
    report.notes.append("what all 10,000 cost beyond 10 of them is fetching their data: no cache holds it.")
    return report
