"""What a scenario found: a markdown table for people, JSON for comparison."""

import dataclasses
import json
import os
import platform
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from .layout import RESULTS

BASE = "nginx"


@dataclass(frozen=True)
class Column:
    """A figure of a sample: the median of the rounds, or with `total` their sum, so that one failure in one round shows.

    `ratio` also shows it relative to nginx, or the report's own `base`, of the same round.
    """

    key: str
    title: str
    digits: int = 0
    ratio: bool = True
    percent: bool = False
    total: bool = False

    def fold(self, values):
        return sum(values) if self.total else statistics.median(values)

    def show(self, value):
        return f"{value:.0%}" if self.percent else f"{value:,.{self.digits}f}"


THROUGHPUT = [
    Column("requests_s", "requests/s"),
    Column("p50_ms", "p50 ms", 2),
    Column("p99_ms", "p99 ms", 2),
    Column("cpu_us", "CPU µs/request", 1),
    Column("core_used", "core used", ratio=False, percent=True),
    Column("peak_mib", "peak MiB", 1),
    Column("errors", "errors", ratio=False, total=True),
]


@dataclass
class Report:
    scenario: str
    about: str
    columns: list
    samples: dict
    absent: dict
    goals: list = field(default_factory=list)
    notes: list = field(default_factory=list)
    base: str = BASE  # every × is to this one

    def median(self, label, key):
        """The median over the rounds, or None without samples."""
        values = self.values(label, key)
        return statistics.median(values) if values else None

    def total(self, label, key):
        """The sum over the rounds, or None without samples."""
        values = self.values(label, key)
        return sum(values) if values else None

    def values(self, label, key):
        return [getattr(sample, key) for sample in self.samples.get(label, [])]

    def ratio(self, label, base, key):
        """The median of the ratios within each round, or None if one of the two is absent."""
        pairs = zip(self.samples.get(label, []), self.samples.get(base, []))
        ratios = [getattr(one, key) / getattr(other, key) for one, other in pairs if getattr(other, key)]
        return statistics.median(ratios) if ratios else None

    def goal(self, text, value, at_most=None, at_least=None):
        """Compares one figure with what was set out to reach. A figure that is absent is reported so."""
        met = None if value is None else (value <= at_most if at_most is not None else value >= at_least)
        limit = f"≤ {at_most:g}" if at_most is not None else f"≥ {at_least:g}"
        self.goals.append({"goal": f"{text} {limit}", "value": value, "met": met})

    def markdown(self):
        head = ["peer"]
        for column in self.columns:
            head += [column.title, "×"] if column.ratio else [column.title]
        rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
        for label, samples in self.samples.items():
            rows.append(self.row(label) if samples else [label, f"not measured: {self.absent.get(label, '?')}"])
        lines = [f"## {self.scenario}", "", self.about, ""]
        lines += ["| " + " | ".join(row) + " |" for row in rows]
        lines += [""] + [f"- {verdict(goal)}" for goal in self.goals]
        lines += [f"- note: {note}" for note in self.notes + self.caveats()]
        return "\n".join(lines).rstrip() + "\n"

    def row(self, label):
        cells = [label]
        for column in self.columns:
            cells.append(column.show(column.fold(self.values(label, column.key))))
            if column.ratio:
                ratio = self.ratio(label, self.base, column.key)
                cells.append("" if ratio is None else f"{ratio:.2f}")
        return cells

    def caveats(self):
        """Where a reader would be misled without a word."""
        if not any(column.key == "core_used" for column in self.columns):
            return []
        noisy = [label for label in self.samples if (self.median(label, "disturbed") or 0) > 0.1]
        spare = [label for label in self.samples if label not in noisy and (self.median(label, "core_used") or 1) < 0.9]
        notes = []
        if spare:
            notes.append(
                f"{', '.join(spare)} used less than 90 % of the core, so the load side was the limit: "
                "compare CPU per request, not requests/s."
            )
        if noisy:
            notes.append(
                f"something else ran on the core of {', '.join(noisy)} for more than 10 % of the time: "
                "requests/s and latency say nothing, CPU per request is too high. Measure again on a quiet machine."
            )
        return notes

    def save(self):
        RESULTS.mkdir(parents=True, exist_ok=True)
        figures = {
            label: {
                column.key: {"total" if column.total else "median": column.fold(self.values(label, column.key))}
                | ({f"to_{self.base}": self.ratio(label, self.base, column.key)} if column.ratio else {})
                for column in self.columns
            }
            for label, samples in self.samples.items()
            if samples
        }
        whole = {
            "scenario": self.scenario,
            "command": " ".join(sys.argv),
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "machine": {"cpu": cpu_model(), "cores": os.cpu_count(), "kernel": platform.release()},
            "figures": figures,
            "absent": self.absent,
            "goals": self.goals,
            "notes": self.notes + self.caveats(),
            "rounds": {label: [dataclasses.asdict(s) for s in samples] for label, samples in self.samples.items()},
        }
        path = RESULTS / f"{self.scenario}.json"
        path.write_text(json.dumps(whole, indent=2, ensure_ascii=False) + "\n")
        return path


def verdict(goal):
    if goal["met"] is None:
        return f"not measured: {goal['goal']}"
    return f"{'met' if goal['met'] else 'MISSED'}: {goal['goal']}: {goal['value']:.3g}"


def cpu_model():
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()
