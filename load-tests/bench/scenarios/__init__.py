"""The scenarios by name. Each module has ABOUT, one line for people, and `run(bench)`, which returns a Report.

NEEDS, where a module has it, names the tools of `prepare` that it needs beside the peers.
"""

from . import bare, consumers, exactness, fleet, idle, jwt, large, policy
from . import quota, reload, routes, routes10k, shield, start, threads2, upgrade

SCENARIOS = {
    "bare": bare,
    "routes": routes,
    "routes10k": routes10k,
    "policy": policy,
    "consumers": consumers,
    "jwt": jwt,
    "threads2": threads2,
    "idle": idle,
    "start": start,
    "large": large,
    "reload": reload,
    "upgrade": upgrade,
    "shield": shield,
    "exactness": exactness,
    "fleet": fleet,
    "quota": quota,
}
