"""What the suites of all libraries share: cases are functions, each run for each provider, every failure told at the end.

Usage of a suite: SUITE BASE_URL KEY PROVIDER...
The providers are those of the scripted provider of load-tests, each in another format; the model's name says what it answers.
"""

import base64
import json
import struct
import sys
import traceback
import zlib

SENTENCE = "Hello! This answer comes from a script, the same each time."
CHARACTERS = "Grüße aus Köln: 你好, 🌍 und ein Gruß – zurück."
THOUGHT = "The caller wants an answer, so there will be one."

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
    "required": ["city", "days"],
    "additionalProperties": False,
}
# What the script makes of them.
ARGUMENTS = {"city": "Berlin", "days": 7}
RESULTS = {"weather": "sunny", "time": "noon"}
TOOLS_SAID = "The tools said: sunny; noon."

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string"}, "people": {"type": "integer"}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["city", "people", "tags"],
    "additionalProperties": False,
}
DOCUMENT = {"city": "Berlin", "people": 7, "tags": ["Berlin"]}


def png():
    """A picture of one pixel."""
    def chunk(kind, data):
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))
    head = struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0\xff\0\0")) + chunk(b"IEND", b"")


PICTURE = png()
PICTURE_BASE64 = base64.b64encode(PICTURE).decode()
# How the script tells of it.
PICTURE_TOLD = f"image image/png {len(PICTURE)} bytes {zlib.crc32(PICTURE):08x}"


def told(text, parts, system=("Be brief.",)):
    """The echo of a request with one message, whatever the dialect."""
    echo = json.loads(text)
    same(echo["turns"], [["user", list(parts)]])
    same(echo["system"], list(system))
    return echo


def same(got, wanted):
    assert got == wanted, f"got {got!r} instead of {wanted!r}"


def raises(kind, action):
    """Does something that has to fail, and returns how it did."""
    try:
        got = action()
    except kind as error:
        return error
    except Exception as error:
        raise AssertionError(f"raised {type(error).__name__} instead of {kind}: {error}") from error
    raise AssertionError(f"did not raise, but returned {got!r}")


CASES = []


def case(function):
    CASES.append(function)
    return function


def run(make):
    """Runs every case for each provider; `make` makes the client of a base URL and a key."""
    base, key, *providers = sys.argv[1:]
    failures = []
    for provider in providers:
        client = make(base, key)
        for function in CASES:
            try:
                function(client, provider)
            except Exception:
                failures.append(f"{function.__name__} with {provider}:\n{traceback.format_exc(limit=-4)}")
    for failure in failures:
        print(failure, file=sys.stderr)
    print(f"{len(CASES) * len(providers) - len(failures)} of {len(CASES) * len(providers)} are right")
    sys.exit(1 if failures else 0)
