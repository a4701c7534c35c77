"""One sample: a gateway under load for some seconds, and the rounds that make many samples comparable."""

import time
from dataclasses import dataclass

from . import load as loads
from . import peers, processes
from .prepare import say

WARM_UP = 2


@dataclass(frozen=True)
class Sample:
    requests_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # user and system time of the whole process family per request
    core_used: float  # share of the cores it may use
    peak_mib: float
    errors: int
    disturbed: float  # share of those cores that something else used


def under_load(bench, gateway, load):
    loads.run(load, bench, gateway, WARM_UP)
    return sample(bench, gateway, load)


def sample(bench, gateway, load):
    started, cpu, busy = time.monotonic(), processes.cpu_seconds(gateway.pid), processes.busy_seconds(gateway.cores)
    counted = loads.run(load, bench, gateway, bench.seconds)
    wall = (time.monotonic() - started) * len(gateway.cores)
    cpu = processes.cpu_seconds(gateway.pid) - cpu
    busy = processes.busy_seconds(gateway.cores) - busy
    # Where load and gateway share their cores there is no telling what else ran there.
    apart = not set(gateway.cores) & set(bench.load_cores(gateway.contestant.workers))
    return Sample(
        requests_s=counted.requests / counted.seconds,
        p50_ms=counted.p50_ms,
        p99_ms=counted.p99_ms,
        cpu_us=cpu / max(counted.requests, 1) * 1e6,
        core_used=cpu / wall,
        peak_mib=processes.memory_mib(gateway.pid, "VmHWM"),
        errors=counted.failed,
        disturbed=max(busy - cpu, 0) / wall if apart else 0.0,
    )


def interleave(bench, contestants, measure):
    """Every contestant once per round, so that a slow minute of the machine hits all of them and not one.

    Returns ({label: [sample of each round]}, {label: why there is none}).
    """
    samples = {contestant.label: [] for contestant in contestants}
    absent = {c.label: bench.missing[c.peer] for c in contestants if c.peer in bench.missing}
    for turn in range(bench.rounds):
        for contestant in contestants:
            if contestant.label in absent:
                continue
            say(f"round {turn + 1}/{bench.rounds}: {contestant.label}")
            try:
                with peers.running(contestant, bench.origin, bench.peer_cores(contestant.workers)) as gateway:
                    samples[contestant.label].append(measure(gateway))
            except peers.PeerFailed as why:
                say(f"{contestant.label}: {why}")
                # Rounds are compared pairwise: a peer that fails in one is out of all.
                absent[contestant.label] = str(why)
                samples[contestant.label] = []
    return samples, absent
