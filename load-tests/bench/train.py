"""Runs an instrumented gateway under the loads it should be fast at: scripts/release compiles by what that shows.

Usage: python3 -m bench.train BINARY FOLDER, in load-tests. Leaves *.profraw files in FOLDER.
"""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from . import credentials
from . import load as loads
from . import peers, processes
from .cli import Bench
from .layout import RUN
from .load import Load
from .peers import Contestant, with_routes
from .prepare import prepare, say

SECONDS = 5
ROUTES = 1000
CONSUMERS = 1000


def main():
    binary, profiles = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
    processes.adopt_orphans()
    processes.raise_file_limit()
    cores = sorted(os.sched_getaffinity(0))
    missing = prepare(["nginx", "h2load"], "wrk", build=False)
    for tool in ("nginx", "wrk", "h2load"):
        if tool in missing:
            raise SystemExit(f"train: cannot run without {tool}: {missing[tool]}")
    bench = Bench(rounds=1, seconds_asked=SECONDS, threads=1, peers=[], tool="wrk", cores=cores, missing={})
    try:
        train(bench, binary, profiles)
    finally:
        processes.stop_all()
        shutil.rmtree(RUN, ignore_errors=True)


def train(bench, binary, profiles):
    origin = Contestant("origin", "nginx", config="origin", workers=1)
    with peers.running(origin, 0, bench.load_cores()) as behind:
        [tls_port] = peers.free_ports(1)
        variables = with_routes("headgate", ROUTES) | credentials.with_consumers("headgate", CONSUMERS)
        variables |= {"tls_port": tls_port, "binary": binary}
        contestant = Contestant("trained", "headgate", "train", variables)
        folder = RUN / contestant.label
        folder.mkdir(parents=True, exist_ok=True)
        certificate(folder)
        # %p: the gateway may start others of itself.
        os.environ["LLVM_PROFILE_FILE"] = f"{profiles}/%p-%m.profraw"
        with peers.running(contestant, behind.port, bench.peer_cores(1), keep=True) as gateway:
            del os.environ["LLVM_PROFILE_FILE"]
            routes = Load("routes", options={"ROUTES": ROUTES})
            limited = credentials.load(credentials.keys(CONSUMERS), path="/limited")
            for load in (Load("bare"), routes, Load("body"), limited):
                counted = loads.run(load, bench, gateway, SECONDS)
                say(f"{load.script}: {counted.requests} requests, {counted.failed} failed")
                if counted.failed:
                    raise SystemExit("train: what fails is nothing to learn from")
            over_tls(["wrk", "-t1", "-c32", f"-d{SECONDS}s"], tls_port)
            over_tls(["h2load", "-c16", "-m8", "-D", str(SECONDS)], tls_port)
            # The profile is written when the process ends by itself.
            os.kill(processes.running_from(binary)[0], signal.SIGTERM)
            gateway.process.wait(60)


def over_tls(command, port):
    command = [*command, f"https://127.0.0.1:{port}/service/7/items/42"]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    say(f"{command[0]} over TLS: " + next((line for line in said.stdout.splitlines() if "requests" in line), "?").strip())
    if "Non-2xx" in said.stdout or ("succeeded" in said.stdout and " 0 failed, 0 errored" not in said.stdout):
        raise SystemExit(f"train: what fails is nothing to learn from: {said.stdout[-500:]}")


def certificate(folder):
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    files = ["-keyout", folder / "key.pem", "-out", folder / "cert.pem"]
    subprocess.run(["openssl", "req", "-x509", *kind, *subject, *files], check=True, capture_output=True)


if __name__ == "__main__":
    main()
