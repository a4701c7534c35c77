"""The scenarios by name. Each module has ABOUT, one line for people, and `run(bench)`, which returns a Report.

NEEDS, where a module has it, names the tools of `prepare` that it needs beside the peers; PEERS its peers, where they are not the
usual ones.
"""

from . import bare, chat, chat_latency, chat_memory, chat_stream, consumers, exactness, fleet, idle, jwt, large, policy
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
    "chat": chat,
    "chat_latency": chat_latency,
    "chat_stream": chat_stream,
    "chat_memory": chat_memory,
}
