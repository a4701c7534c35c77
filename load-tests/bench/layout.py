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
# What scripts/release makes. Another is measured by naming it.
HEADGATE = Path(os.environ.get("HEADGATE", TARGET / "dist" / "headgate")).absolute()
EXAMPLE = TARGET / "release" / "examples" / "bare_pingora"
SCRIPTED_PROVIDER = TARGET / "release" / "examples" / "scripted_provider"
NODE_MODULES = TARGET / "bench-node" / "node_modules"
