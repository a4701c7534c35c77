"""Where things are in the tree."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
LOAD_TESTS = ROOT / "load-tests"
CONFIG = LOAD_TESTS / "config"
TARGET = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
VENV = TARGET / "bench-venv"
RESULTS = TARGET / "bench"
RUN = RESULTS / "run"
HEADGATE = TARGET / "release" / "headgate"
EXAMPLE = TARGET / "release" / "examples" / "bare_pingora"
