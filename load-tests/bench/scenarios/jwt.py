"""What a signed token costs: seen before, and seen for the first time."""

import re
import subprocess

from .. import credentials
from ..measure import alternate, interleave, sample
from ..peers import Contestant
from ..prepare import say
from ..report import THROUGHPUT, Report

ABOUT = "a JWT (RS256, 2048 bits), the same again; `first sight`: another with each request (bare_pingora looks at none)"
NEEDS = ["cryptography", "openssl"]
HEADER = "Authorization"
FIRST = "{} first sight"

# More than any gateway verifies within one sample.
TOKENS = 20_000


def run(bench):
    folder = credentials.tokens(TOKENS)
    peers = bench.only("envoy", "bare_pingora", "headgate")
    if folder is None:
        return Report("jwt", ABOUT, THROUGHPUT, {peer: [] for peer in peers}, dict.fromkeys(peers, "there are no tokens"))
    again = credentials.load(folder / "token", HEADER)
    samples, absent = alternate(bench, [contestant(peer, folder) for peer in peers], lambda _: again)

    every = credentials.load(folder / "tokens", HEADER, ONCE=len(bench.load_cores()))

    def first_sight(gateway):
        # What is not about the token is warm by then.
        sample(bench, gateway, again)
        return sample(bench, gateway, every)

    verifying = [contestant(peer, folder, FIRST.format(peer)) for peer in peers if peer != "bare_pingora"]
    first, first_absent = interleave(bench, verifying, first_sight)
    report = Report("jwt", ABOUT, THROUGHPUT, samples | first, absent | first_absent)
    cpu = report.ratio("headgate", "bare_pingora", "cpu_us")
    report.goal("CPU per request of Headgate to bare Pingora, same token again", cpu, at_most=1.2)
    first_cpu, again_cpu = report.median(FIRST.format("headgate"), "cpu_us"), report.median("headgate", "cpu_us")
    check = signature_check_us(bench)
    if first_cpu and again_cpu and check:
        more = first_cpu - again_cpu
        report.notes.append(
            f"first sight costs Headgate {more:.1f} µs more than the same token again. "
            f"To check one RS256 signature takes OpenSSL {check:.1f} µs on the same core: × {more / check:.2f}."
        )
    for label in report.samples:
        report.goal(f"requests that {label} refused", report.total(label, "errors"), at_most=0)
    return report


def contestant(peer, folder, label=None):
    headers = {HEADER: (folder / "token").read_text().strip()}
    return Contestant(label or peer, peer, "jwt", {"tokens": folder}, headers=headers)


def signature_check_us(bench):
    """What the signature itself costs, by `openssl speed`; None if it does not say."""
    if "openssl" in bench.missing:
        return None
    cores = ",".join(map(str, bench.peer_cores(1)))
    command = ["taskset", "-c", cores, "openssl", "speed", "-seconds", "2", "-mr", "rsa2048"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    # +F2:2:2048:SIGNATURES:CHECKS, each per second.
    if found := re.search(r"^\+F2:\d+:2048:[\d.]+:([\d.]+)", said.stdout, re.MULTILINE):
        return 1e6 / float(found[1])
    say(f"openssl speed said nothing of rsa2048: {said.stderr[-200:]}")
    return None
