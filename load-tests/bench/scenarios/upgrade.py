"""Do requests notice that the binary is replaced under them?"""

import subprocess
import time
from dataclasses import dataclass

from .. import processes
from ..layout import HEADGATE, RUN
from ..load import Load, Running
from ..measure import interleave
from ..peers import Contestant
from ..prepare import say
from ..report import Column, Report

ABOUT = "20 times `headgate upgrade`, one after the other, under load over 64 keep-alive connections"
UPGRADES = 20
ONE_AT_MOST = 60.0
COLUMNS = [
    Column("upgrades", "upgrades", ratio=False, total=True),
    Column("refused", "refused", ratio=False, total=True),
    Column("requests", "requests", ratio=False, total=True),
    Column("failed", "failed", ratio=False, total=True),
    Column("p99_ms", "p99 ms", 2, ratio=False),
    Column("seconds_each", "s each", 2, ratio=False),
]


@dataclass(frozen=True)
class Upgraded:
    upgrades: int
    refused: int
    requests: int
    failed: int
    p99_ms: float
    seconds_each: float


def run(bench):
    samples, absent = interleave(bench, [Contestant("headgate", "headgate")], lambda gateway: measure(bench, gateway))
    report = Report("upgrade", ABOUT, COLUMNS, samples, absent)
    report.goal("failed requests", report.total("headgate", "failed"), at_most=0)
    report.goal("refused upgrades", report.total("headgate", "refused"), at_most=0)
    return report


def measure(bench, gateway):
    before = set(processes.running_from(HEADGATE)) - set(processes.family(gateway.pid))
    load = Running(Load("bare", connections=64), bench, gateway, int(UPGRADES * ONE_AT_MOST))
    took = []
    try:
        time.sleep(1)
        took = [seconds for _ in range(UPGRADES) if (seconds := upgrade(gateway)) is not None]
        time.sleep(1)
        counted = load.cut()
    finally:
        processes.stop(load.process)
        # The one that serves now is no child of the one that was started.
        processes.kill(set(processes.running_from(HEADGATE)) - before)
    return Upgraded(
        upgrades=len(took),
        refused=UPGRADES - len(took),
        requests=counted.requests,
        failed=counted.failed,
        p99_ms=counted.p99_ms,
        seconds_each=sum(took) / max(len(took), 1),
    )


def upgrade(gateway):
    """The seconds it took, or None if it was refused."""
    started = time.monotonic()
    command = ["taskset", "-c", ",".join(map(str, gateway.cores)), str(HEADGATE), "upgrade", "-c", str(gateway.config)]
    with open(RUN / "upgrade.log", "wb") as log:
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, timeout=ONE_AT_MOST, check=False
            )
        except subprocess.TimeoutExpired:
            say(f"upgrade did not end within {ONE_AT_MOST:.0f} s")
            return None
    if done.returncode != 0:
        say(f"upgrade exited with {done.returncode}; see {RUN / 'upgrade.log'}")
        return None
    return time.monotonic() - started
