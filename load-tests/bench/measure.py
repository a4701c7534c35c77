"""One sample: a gateway under load for some seconds, and the order that makes many samples comparable."""

from contextlib import ExitStack
from dataclasses import dataclass

from . import load as loads
from . import peers, processes
from .prepare import say

WARM_UP = 2

# Length of one sample where gateways take turns.
SLICE = 1


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


def sample(bench, gateway, load):
    cpu, busy = processes.cpu_seconds(gateway.pid), processes.busy_seconds(gateway.cores)
    counted = loads.run(load, bench, gateway, SLICE)
    wall = counted.seconds * len(gateway.cores)
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


def alternate(bench, contestants, load_of, before=None):
    """All contestants run at once, and one after the other is under load for a second, again and again.

    On a shared machine the speed of a core changes by half within seconds. What two gateways did within two neighbouring
    seconds can be compared, and of many such pairs the median is steady. The others are idle meanwhile. `before` does with
    each gateway what has to be behind it when it is measured.

    Returns ({label: [sample of each turn]}, {label: why there is none}).
    """
    samples = {contestant.label: [] for contestant in contestants}
    absent = {c.label: bench.missing[c.peer] for c in contestants if c.peer in bench.missing}
    with ExitStack() as stack:
        gateways = []
        for contestant in contestants:
            if contestant.label in absent:
                continue
            try:
                gateway = stack.enter_context(peers.running(contestant, bench.origin, bench.peer_cores(contestant.workers)))
            except peers.PeerFailed as why:
                say(f"{contestant.label}: {why}")
                absent[contestant.label] = str(why)
                continue
            gateways.append((gateway, load_of(contestant)))
        for gateway, load in gateways:
            loads.run(load, bench, gateway, WARM_UP)
            if before:
                before(gateway)
        turns = bench.rounds * bench.seconds
        say(f"{turns} turns of {', '.join(gateway.contestant.label for gateway, _ in gateways)}")
        for turn in range(turns):
            # There and back, so that nobody always follows the same neighbour.
            for gateway, load in gateways if turn % 2 == 0 else reversed(gateways):
                samples[gateway.contestant.label].append(sample(bench, gateway, load))
    return samples, absent


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
