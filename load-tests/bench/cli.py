"""The command line: prepares, starts the origin, runs scenarios one after the other, prints their tables."""

import argparse
import os
import shutil
import signal
import sys
from dataclasses import dataclass

from . import peers, processes
from .layout import RUN
from .prepare import prepare, say
from .scenarios import SCENARIOS

PEERS = ["nginx", "haproxy", "envoy", "bare_pingora", "headgate"]
# Known to the scenarios that name them only.
MODEL_GATEWAYS = ["portkey", "litellm"]


@dataclass
class Bench:
    """One run: what was asked for, and where things stand."""

    rounds: int
    seconds_asked: int | None
    threads: int
    peers: list
    tool: str
    cores: list
    missing: dict
    origin: int = 0

    @property
    def seconds(self):
        return self.seconds_asked or 10

    def only(self, *wanted):
        """Those of the scenario's peers that were asked for, in the scenario's order."""
        return [peer for peer in wanted if peer in self.peers]

    def peer_cores(self, workers):
        return self.cores[:workers]

    def load_cores(self, workers=1):
        """The cores that no gateway runs on; all of them where none is left."""
        return self.cores[workers:] or self.cores


def main():
    arguments = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    processes.adopt_orphans()
    processes.raise_file_limit()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("bench: needs two cores, one for the gateway and one for load and origin")
    bench = Bench(
        rounds=arguments.rounds,
        seconds_asked=arguments.seconds,
        threads=arguments.threads,
        peers=peers_of(arguments),
        tool=arguments.tool,
        cores=cores,
        missing=prepare(peers_of(arguments), arguments.tool, arguments.build, needs_of(arguments.scenarios)),
    )
    for needed in ("nginx", bench.tool, "taskset"):
        if reason := bench.missing.get(needed):
            raise SystemExit(f"bench: cannot run without {needed}: {reason}")
    for peer, reason in bench.missing.items():
        say(f"{peer} is left out: {reason}")
    try:
        run(bench, arguments.scenarios)
    except KeyboardInterrupt:
        say("interrupted")
        return 130
    finally:
        processes.stop_all()
        for folder in ("origin", "credentials"):
            shutil.rmtree(RUN / folder, ignore_errors=True)
    return 0


def peers_of(arguments):
    known = {peer for name in arguments.scenarios for peer in getattr(SCENARIOS[name], "PEERS", PEERS)}
    return [peer for peer in arguments.peers if peer in known]


def needs_of(names):
    return {tool for name in names for tool in getattr(SCENARIOS[name], "NEEDS", [])}


def run(bench, names):
    # From here on the measuring itself must stay off the gateway's core.
    os.sched_setaffinity(0, bench.load_cores())
    origin = peers.Contestant("origin", "nginx", config="origin", workers=len(bench.load_cores()))
    with peers.running(origin, 0, bench.load_cores()) as gateway:
        bench.origin = gateway.port
        for name in names:
            say(f"scenario {name}")
            report = SCENARIOS[name].run(bench)
            print(report.markdown(), flush=True)
            say(f"details in {report.save()}")


def parse():
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measures gateways side by side on this machine.",
        epilog="scenarios:\n" + "\n".join(f"  {name:10} {module.ABOUT}" for name, module in SCENARIOS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help="one or more of those below (default: bare routes)")
    parser.add_argument("--rounds", type=positive, default=3, help="how often each peer is measured (default 3)")
    parser.add_argument("--seconds", type=positive, help="length of one measurement (default 10; reload, exactness: 60; fleet: 20)")
    parser.add_argument("--threads", type=positive, default=1, help="workers of each peer in bare, routes and policy (default 1)")
    parser.add_argument("--peers", type=names, default=PEERS + MODEL_GATEWAYS, help="of " + ",".join(PEERS + MODEL_GATEWAYS) + " (default all)")
    parser.add_argument("--tool", choices=["wrk", "k6"], default="wrk", help="load generator (default wrk)")
    parser.add_argument("--no-build", dest="build", action="store_false", help="measure the binaries that are there")
    arguments = parser.parse_args()
    arguments.scenarios = arguments.scenarios or ["bare", "routes"]
    if unknown := [name for name in arguments.scenarios if name not in SCENARIOS]:
        parser.error(f"no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    return arguments


def positive(text):
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return number


def names(text):
    chosen = [name.strip() for name in text.split(",")]
    if unknown := [name for name in chosen if name not in PEERS + MODEL_GATEWAYS]:
        raise argparse.ArgumentTypeError(f"no peer {', '.join(unknown)}; there are {', '.join(PEERS + MODEL_GATEWAYS)}")
    return chosen
