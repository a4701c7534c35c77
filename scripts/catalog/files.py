"""Provider files: a head that is written by hand, and below `models:` one line for each model."""

import re

MODELS = "\nmodels:\n"

# Anything else could mean something to YAML.
PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9._/-]*\Z")
WORDS = {"null", "true", "false", "yes", "no", "on", "off", "nan", "inf"}


def regenerate(text, models):
    """The text with these models (name to a dictionary) in the place of those it has, and what differs, as sentences. Lines
    with `keep: true` stay as they are."""
    head, _, tail = text.partition(MODELS)
    if not tail:
        head = head.rstrip("\n")
    before = dict(read_line(line) for line in tail.splitlines() if line.strip())
    kept = {name: value for name, value in before.items() if "keep: true" in value}
    after = {name: flow(model) for name, model in models.items()} | kept
    lines = [f"  {scalar(name)}: {value}\n" for name, value in sorted(after.items())]
    return head + MODELS + "".join(lines), list(differences(before, after))


def read_line(line):
    """The name and the rest of a model's line."""
    match = re.match(r'  (?:"([^"\\]+)"|([^\s"]\S*)): (\{.*\})\Z', line)
    if not match:
        raise SystemExit(f"a model has to be one line: {line}")
    return match[1] or match[2], match[3]


def differences(before, after):
    for name in sorted(before.keys() | after.keys()):
        if name not in before:
            yield f"added {name}"
        elif name not in after:
            yield f"removed {name}"
        elif prices(before[name]) != prices(after[name]):
            yield f"price of {name}: {prices(before[name])} -> {prices(after[name])}"
        elif before[name] != after[name]:
            yield f"changed {name}"


def prices(value):
    """The part of a line that says the prices."""
    start = value.find("prices: {")
    if start < 0:
        return "unknown"
    depth = 0
    for at in range(start + len("prices: "), len(value)):
        depth += {"{": 1, "}": -1}.get(value[at], 0)
        if depth == 0:
            return value[start + len("prices: "):at + 1]
    return value[start:]


def flow(value):
    """A value in YAML's flow style, which is one line."""
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key}: {flow(inner)}" for key, inner in value.items()) + " }" if value else "{}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(inner) for inner in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return scalar(value) if isinstance(value, str) else str(value)


def scalar(text):
    plain = PLAIN.match(text) and text.lower() not in WORDS
    return text if plain else f'"{text}"'
