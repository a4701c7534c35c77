"""The gateways that are compared: how each is configured, started and known to be ready."""

import http.client
import json
import re
import shutil
import socket
import time
from contextlib import contextmanager
from dataclasses import dataclass, field

from . import processes
from .layout import CONFIG, EXAMPLE, HEADGATE, RUN

# LiteLLM takes half a minute on a slow machine.
READY_WITHIN = 90.0

# The configuration file of each peer in a folder of load-tests/config, and the command that runs it.
FILES = {"nginx": "nginx.conf", "haproxy": "haproxy.cfg", "envoy": "envoy.yaml", "headgate": "headgate.yaml", "litellm": "litellm.yaml"}
COMMANDS = {
    "nginx": "nginx -e stderr -p {folder} -c {config}",
    "haproxy": "haproxy -db -f {config}",
    "envoy": "envoy -c {config} --concurrency {workers} --disable-hot-restart --log-level error",
    "headgate": "{binary} run -c {config}",
    "litellm": "litellm --config {config} --host 127.0.0.1 --port {port} --num_workers {workers}",
    "portkey": "node {node_modules}/@portkey-ai/gateway/build/start-server.js --headless --port={port}",
    "bare_pingora": f"{EXAMPLE} 127.0.0.1:{{port}} 127.0.0.1:{{origin}} {{workers}}",
}


class PeerFailed(Exception):
    """A peer could not be started; the others are still measured."""


@dataclass(frozen=True)
class Contestant:
    """One row of a table: a peer under one configuration.

    `variables` fill the `@{name}` places of the configuration, beside port, admin, origin, workers and folder; `binary`
    among them is the gateway to run instead of the usual one.
    """

    label: str
    peer: str
    config: str = "bare"
    variables: dict = field(default_factory=dict, hash=False)
    workers: int = 1
    path: str = "/"
    headers: dict = field(default_factory=dict, hash=False)  # of the request to `path` that must get a 200


@dataclass
class Gateway:
    """A contestant that runs and answers."""

    contestant: Contestant
    process: object
    port: int
    admin: int
    config: object
    log: object
    cores: list
    ready_seconds: float = 0.0
    variables: dict = None

    @property
    def pid(self):
        return self.process.pid

    def url(self, path=""):
        return f"http://127.0.0.1:{self.port}{path}"

    def configure(self, **changes):
        """Writes the configuration again with other variables, in one step, as a deployment tool would."""
        render(self.contestant, self.config, self.variables | changes)


@contextmanager
def running(contestant, origin_port, cores, keep=False):
    """Starts the contestant, waits for its first 200, and ends it afterwards. `keep` leaves what its folder holds."""
    folder = RUN / contestant.label.replace(" ", "-").replace(",", "")
    if not keep:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    port, admin = free_ports(2)
    variables = {"port": port, "admin": admin, "origin": origin_port, "workers": contestant.workers, "folder": folder}
    variables["binary"] = HEADGATE
    variables |= contestant.variables
    config = folder / FILES.get(contestant.peer, "none")
    render(contestant, config, variables)
    command = COMMANDS[contestant.peer].format(config=config, **variables).split(" ")
    log = folder / "output.log"
    started = time.monotonic()
    process = processes.start(command, cores, log, cwd=folder)
    try:
        gateway = Gateway(contestant, process, port, admin, config, log, cores, variables=variables)
        await_ready(process, port, contestant.path, log, contestant.headers)
        gateway.ready_seconds = time.monotonic() - started
        yield gateway
    finally:
        processes.stop(process)
        for access_log in folder.glob("access.log*"):
            access_log.unlink()  # Hundreds of megabytes; the process output stays for whoever asks why.


def render(contestant, target, variables):
    if contestant.peer not in FILES:
        return
    template = CONFIG / contestant.config / FILES[contestant.peer]
    # `@{name}`, since every one of these languages has uses of its own for `$`.
    text = re.sub(r"@\{(\w+)\}", lambda place: str(variables[place[1]]), template.read_text())
    whole = target.with_suffix(".new")
    whole.write_text(text)
    whole.replace(target)


def await_ready(process, port, path, log, headers=None):
    deadline = time.monotonic() + READY_WITHIN
    answer = "no connection"
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise PeerFailed(f"exited with {process.returncode} before it was ready: {last_lines(log)}")
        try:
            answer = request(port, "GET", path, headers)
        except OSError:
            time.sleep(0.001)
            continue
        if answer == 200:
            return
        time.sleep(0.001)
    raise PeerFailed(f"not ready after {READY_WITHIN:.0f} s (last answer: {answer}): {last_lines(log)}")


def request(port, method, path, headers=None):
    """The status of one request."""
    return exchange(port, method, path, headers)[0]


def get_json(port, path):
    """What the admin listener of a gateway says there."""
    try:
        status, body = exchange(port, "GET", path)
    except OSError as error:
        raise PeerFailed(f"{path} got no answer: {error}") from error
    if status != 200:
        raise PeerFailed(f"{path} answered {status}: {body[:200]!r}")
    return json.loads(body)


def exchange(port, method, path, headers=None):
    """Status and body of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request(method, path, headers=headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{type(error).__name__}: {error}") from error
    finally:
        connection.close()


def last_lines(log, count=3):
    return " / ".join(log.read_text(errors="replace").strip().splitlines()[-count:]) or "it said nothing"


def free_ports(count):
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


# The 1,000 or 10,000 routes of the scenarios that have them, in the words of each peer. All ask a radix tree or a hash map:
# for Envoy that is its matcher tree, since its plain list of routes is searched from the top.
ROUTE = {
    "headgate": "      route-{n}: {{ match: {{ path_prefix: /service/{n} }}, backend: {{ upstream: origin }} }}",
    "nginx": "        location /service/{n}/ {{ proxy_pass http://origin; }}",
    "envoy": (
        "                              /service/{n}/: {{ action: {{ name: route, typed_config: {{ "
        '"@type": type.googleapis.com/envoy.config.route.v3.Route, '
        "match: {{ prefix: / }}, route: {{ cluster: origin }} }} }} }}"
    ),
}


def with_routes(peer, count):
    """The variable `routes` for a configuration with `count` routes, `/service/0/` and on."""
    if peer not in ROUTE:
        return {}
    return {"routes": "\n".join(ROUTE[peer].format(n=n) for n in range(count))}
