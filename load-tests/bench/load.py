"""The load: wrk or k6 against one gateway, and what they counted."""

import json
import signal
from dataclasses import dataclass, field

from . import processes
from .layout import LOAD_TESTS, RUN

# A run that has not ended this long after its time is broken.
GRACE = 30.0


@dataclass(frozen=True)
class Counted:
    """What the load generator saw. `errors` by kind."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    max_ms: float
    admitted: int = 0  # by a limit: only the script `limited` counts it
    errors: dict = field(default_factory=dict)

    @property
    def failed(self):
        return sum(self.errors.values())

    @property
    def succeeded(self):
        """Answers below 400. Connections that failed are among the requests of k6, and not of wrk."""
        return self.requests - self.errors.get("status", self.errors.get("failed", 0))


@dataclass(frozen=True)
class Load:
    """Which script of load-tests/wrk and load-tests/k6, how many connections, to which path.

    `options` are the script's own, in the order in which it expects them of wrk; k6 gets them by name.
    """

    script: str = "bare"
    connections: int = 64
    path: str = ""
    options: dict = field(default_factory=dict, hash=False)

    def command(self, tool, gateway, seconds, threads):
        script = LOAD_TESTS / tool / self.script
        target = gateway.url(self.path)
        if tool == "k6":
            users = ["--vus", self.connections, "--duration", f"{seconds}s"]
            places = [part for name, value in {"TARGET": target, **self.options}.items() for part in ("-e", f"{name}={value}")]
            return ["k6", "run", "--quiet", "--no-usage-report", *users, *places, script.with_suffix(".js")]
        shape = ["-t", threads, "-c", self.connections, "-d", f"{seconds}s", "--timeout", "10s"]
        return ["wrk", *shape, "-s", script.with_suffix(".lua"), target, "--", *self.options.values()]


class Running:
    """A load generator at work. `finish` waits for its time to pass; `cut` ends it early, with its count."""

    def __init__(self, load, bench, gateway, seconds):
        self.seconds = seconds
        self.log = RUN / f"load-{gateway.port}.log"
        cores = bench.load_cores(gateway.contestant.workers)
        command = load.command(bench.tool, gateway, seconds, threads=len(cores))
        self.process = processes.start(command, cores, self.log)

    def cut(self):
        self.process.send_signal(signal.SIGINT)
        return self.finish()

    def finish(self):
        try:
            self.process.wait(self.seconds + GRACE)
        finally:
            processes.stop(self.process)
        said = self.log.read_text(errors="replace")
        for line in said.splitlines():
            if line.startswith("bench "):
                return Counted(**json.loads(line.removeprefix("bench ")))
        raise RuntimeError(f"the load generator printed no result: {said[-500:]}")


def run(load, bench, gateway, seconds):
    return Running(load, bench, gateway, seconds).finish()
