"""The scenarios by name. Each module has ABOUT, one line for people, and `run(bench)`, which returns a Report."""

from . import bare, idle, large, reload, routes, routes10k, start, threads2, upgrade

SCENARIOS = {
    "bare": bare,
    "routes": routes,
    "routes10k": routes10k,
    "threads2": threads2,
    "idle": idle,
    "start": start,
    "large": large,
    "reload": reload,
    "upgrade": upgrade,
}
