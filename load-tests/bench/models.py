"""Calls of models: the provider that answers them, and what each gateway is sent and told of it."""

import json
from contextlib import contextmanager

from . import credentials, processes
from .layout import NODE_MODULES, RUN, SCRIPTED_PROVIDER
from .load import Load
from .peers import Contestant, PeerFailed
from .prepare import say

CONSUMERS = 100
KEY = credentials.key(0)
PATH = "/v1/chat/completions"
# What the scripted provider makes of the name; see `scripted_provider --help`.
WHOLE = "bytes-1500.input-350.output-300"
PROMPT = 1200


@contextmanager
def provider(bench):
    """Runs the scripted provider beside the load; gives its port."""
    RUN.mkdir(parents=True, exist_ok=True)
    port_file, log = RUN / "provider.port", RUN / "provider.log"
    port_file.unlink(missing_ok=True)
    cores = bench.load_cores()
    command = [SCRIPTED_PROVIDER, "--address", "127.0.0.1:0", "--port-file", port_file, "--threads", len(cores)]
    process = processes.start(command, cores, log)
    try:
        processes.wait_for(lambda: port_file.exists() or process.poll() is not None, 10)
        if not port_file.exists():
            raise PeerFailed(f"the scripted provider did not start: {log.read_text(errors='replace')[-300:]}")
        yield int(port_file.read_text())
    finally:
        processes.stop(process)


def contestant(peer, port, model=WHOLE, target="same", label=None):
    """A gateway before the provider. `target`, of Headgate: `same` for the caller's format, `other` for Anthropic's."""
    variables = {"origin": port, "provider": port, "model": model, "key": KEY, "node_modules": NODE_MODULES}
    ready = {"headgate": "/v1/models", "bare_pingora": "/v1/models", "litellm": "/health/liveliness", "portkey": "/"}
    headers = {"Authorization": f"Bearer {KEY}"}
    if peer == "headgate":
        variables |= consumers() | {"provider_key": credentials.write("provider-key", "sk-provider")}
    return Contestant(label or peer, peer, "chat", variables, path=ready[peer], headers=headers)


def consumers():
    lines = []
    for n in range(CONSUMERS):
        hashed = credentials.keyed_hash(credentials.key(n))
        lines.append(f'  c{n:06}: {{ credentials: [{{ api_key: {{ hash: "hmac-sha256:{hashed}" }} }}] }}')
    return {"consumers": "\n".join(lines), "pepper": credentials.write("pepper", credentials.PEPPER)}


def load(peer, port, model=WHOLE, target="same", connections=64, **more):
    """The call that makes this gateway ask the provider for `model`."""
    files = call(peer, port, model, target, **more)
    return Load("post", connections=connections, path=PATH, options=dict(zip(("BODY", "HEADERS"), files)))


def call(peer, port, model=WHOLE, target="same", prompt=PROMPT, **more):
    """Body and headers of a call, as files."""
    # Headgate and LiteLLM know the model by a name of their own.
    name = target if peer in ("headgate", "litellm") else model
    words = "A prompt of ordinary words goes to a model that answers by a script. "
    text = (words * (prompt // len(words) + 1))[:prompt]
    body = {
        "model": name,
        "messages": [{"role": "system", "content": "You are brief."}, {"role": "user", "content": text}],
        "temperature": 0.5,
        "max_tokens": 500,
    }
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {KEY}"}
    if peer == "portkey":
        headers |= {"x-portkey-provider": "openai", "x-portkey-custom-host": f"http://127.0.0.1:{port}/v1"}
    label = f"{peer}-{name.replace('/', '-')}-{len(text)}-{'-'.join(more)}"
    lines = "".join(f"{name}: {value}\n" for name, value in headers.items())
    return credentials.write(f"body-{label}", json.dumps(body | more)), credentials.write(f"headers-{label}", lines)


def with_provider(bench, scenario):
    """Runs `scenario(port)`; None, with the reason told, if there is no provider."""
    try:
        with provider(bench) as port:
            return scenario(port)
    except PeerFailed as why:
        say(str(why))
        return None
