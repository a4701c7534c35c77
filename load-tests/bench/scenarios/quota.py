"""What is left of a quota's count after a crash?"""

import time
from dataclasses import dataclass

from .. import credentials, peers, processes
from ..load import Load, Running
from ..peers import Contestant
from ..prepare import say
from ..report import Column, Report

ABOUT = "kill -9 under load, five times on the same store; what /usage says afterwards to what was answered before"
KILLS = 5
LIFE = 4.0
AT_MOST = 60
CONSUMER = "c000000"

# How often use is stored, and what a slow disk may take to do it.
INTERVAL = 1
WRITE = 0.25

COLUMNS = [
    Column("kills", "kills", ratio=False, total=True),
    Column("answered", "answered", ratio=False, total=True),
    Column("lost", "lost of them", ratio=False, total=True),
    Column("lost_seconds", "s of load lost at most", 2, ratio=False),
    Column("old_lost", "lost that was older", ratio=False, total=True),
    Column("twice", "counted twice", ratio=False, total=True),
]


@dataclass(frozen=True)
class Killed:
    kills: int
    answered: int
    lost: int
    lost_seconds: float
    old_lost: int
    twice: int


@dataclass(frozen=True)
class Life:
    """One run of the gateway, up to the kill. `old` is what it had counted INTERVAL and WRITE before."""

    before: int
    old: int
    answered: int
    seconds: float


def run(bench):
    variables = credentials.with_consumers("headgate", 1) | {"interval": INTERVAL}
    contestant = Contestant("headgate", "headgate", "quota", variables)
    samples, absent = {"headgate": []}, {}
    try:
        if "headgate" in bench.missing:
            raise peers.PeerFailed(bench.missing["headgate"])
        for turn in range(bench.rounds):
            say(f"round {turn + 1}/{bench.rounds}: headgate")
            samples["headgate"].append(measure(bench, contestant))
    except peers.PeerFailed as why:
        say(f"headgate: {why}")
        samples, absent = {"headgate": []}, {"headgate": str(why)}
    report = Report("quota", ABOUT, COLUMNS, samples, absent)
    bound = f"{INTERVAL + WRITE:g} s or more before the kill"
    report.goal(f"lost of what was used {bound}", report.total("headgate", "old_lost"), at_most=0)
    report.goal("counted twice", report.total("headgate", "twice"), at_most=0)
    report.notes.append("what was counted and not yet answered when the gateway died, one request per connection, is not counted twice.")
    return report


def measure(bench, contestant):
    lives, found = [], []
    for turn in range(KILLS + 1):
        with peers.running(contestant, bench.origin, bench.peer_cores(1), keep=turn > 0) as gateway:
            before = used(gateway)
            if turn > 0:
                found.append(before)
            if turn < KILLS:
                # Each time at another moment between two stores.
                lives.append(live(bench, gateway, before, LIFE + turn * INTERVAL / KILLS))
    return judge(lives, found)


def live(bench, gateway, before, life):
    load = Running(credentials.load(credentials.keys(1), path="/counted"), bench, gateway, AT_MOST)
    started = time.monotonic()
    try:
        time.sleep(life - INTERVAL - WRITE)
        old = used(gateway)
        time.sleep(INTERVAL + WRITE)
    finally:
        processes.kill(processes.family(gateway.pid))
        seconds = time.monotonic() - started
        counted = load.cut()
    return Life(before, old, counted.succeeded, seconds)


def judge(lives, found):
    lost = [max(life.before + life.answered - after, 0) for life, after in zip(lives, found)]
    # What was counted and not yet answered is at most one request of each connection.
    twice = [max(after - life.before - life.answered - Load.connections, 0) for life, after in zip(lives, found)]
    return Killed(
        kills=len(lives),
        answered=sum(life.answered for life in lives),
        lost=sum(lost),
        lost_seconds=max(count / max(life.answered / life.seconds, 1) for count, life in zip(lost, lives)),
        old_lost=sum(max(life.old - after, 0) for life, after in zip(lives, found)),
        twice=sum(twice),
    )


def used(gateway):
    """What /usage says that the consumer has used of its quota; 0 for one that it does not know yet."""
    document = peers.get_json(gateway.admin, f"/usage?consumer={CONSUMER}")
    limits = [limit for one in document["consumers"] if one["consumer"] == CONSUMER for limit in one["limits"]]
    return sum(limit["used"] for limit in limits if limit["kind"] == "quota")
