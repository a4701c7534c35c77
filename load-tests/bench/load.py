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
    errors: dict = field(default_factory=dict)

    @property
    def failed(self):
        return sum(self.errors.values())


@dataclass(frozen=True)
class Load:
    """Which script of load-tests/wrk and load-tests/k6, how many connections, over how many routes."""

    script: str = "bare"
    connections: int = 64
    routes: int = 0

    def command(self, tool, gateway, seconds, threads):
        script = LOAD_TESTS / tool / self.script
        # `routes` adds its own path; `bare` asks for the root.
        target = gateway.url("" if self.routes else "/")
        if tool == "k6":
            users = ["--vus", self.connections, "--duration", f"{seconds}s"]
            places = ["-e", f"TARGET={target}", "-e", f"ROUTES={self.routes}"]
            return ["k6", "run", "--quiet", "--no-usage-report", *users, *places, script.with_suffix(".js")]
        shape = ["-t", threads, "-c", self.connections, "-d", f"{seconds}s", "--timeout", "10s"]
        return ["wrk", *shape, "-s", script.with_suffix(".lua"), target, "--", self.routes]


class Running:
    """A load generator at work. `finish` waits for its time to pass; `cut` ends it early, with its count."""

    def __init__(self, load, bench, gateway, seconds):
        self.seconds = seconds
        self.log = RUN / "load.log"
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
