"""What callers prove themselves with: API keys of as many consumers as a scenario wants, and signed tokens.

Nothing of it is committed: keys follow from a number, and tokens are signed by a key that lives as long as the run.
"""

import hashlib
import hmac
import subprocess
from pathlib import Path

from .layout import RUN, VENV
from .load import Load
from .prepare import say

PEPPER = "keys the hashes of benchmarks"
SIGNER = Path(__file__).with_name("signer.py")
FOLDER = RUN / "credentials"
SIGNED_WITHIN = 300.0

# One consumer with one key, in the words of each peer. The gateways that forward a consumer's name do.
CONSUMER = {
    "headgate": (
        '  c{n:06}: {{ credentials: [{{ api_key: {{ hash: "hmac-sha256:{hash}" }} }}], subscriptions: {{ bench: gold }} }}'
    ),
    "nginx": "        {key} c{n:06};",
    "envoy": "                        - {{ key: {key}, client: c{n:06} }}",
}


def key(n):
    """As long as those of `headgate key create`, and as random."""
    return "hgk_" + hashlib.sha256(b"%d" % n).hexdigest()[:38]


def keys(count, lines=None):
    """A file with the keys of the first `count` consumers, for the load; with `lines`, again and again up to as many."""
    known = [key(n) for n in range(count)]
    lines = lines or count
    return write(f"keys-{count}-{lines}", "".join(f"{known[n % count]}\n" for n in range(lines)))


def load(file, name="X-Api-Key", path="", **options):
    """Requests by many callers, with the lines of the file as the header of that name."""
    return Load("credentials", path=path, options={"FILE": file, "NAME": name} | options)


def with_consumers(peer, count):
    """The variables `consumers`, and for Headgate `pepper`, of a configuration with that many."""
    if peer not in CONSUMER:
        return {}
    lines = (CONSUMER[peer].format(n=n, key=key(n), hash=keyed_hash(key(n))) for n in range(count))
    return {"consumers": "\n".join(lines), "pepper": write("pepper", PEPPER)}


def keyed_hash(text):
    return hmac.digest(PEPPER.encode(), text.encode(), "sha256").hex()


def write(name, text):
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / name
    path.touch(mode=0o600)
    path.write_text(text)
    return path


def tokens(count):
    """The folder of a new issuer that has signed `count` tokens; see signer.py. None if that cannot be done here."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    say(f"signing {count} tokens")
    command = [VENV / "bin" / "python", SIGNER, FOLDER, str(count)]
    try:
        subprocess.run(command, check=True, timeout=SIGNED_WITHIN)
    except (OSError, subprocess.SubprocessError) as error:
        say(f"there are no tokens: {error}")
        return None
    return FOLDER
