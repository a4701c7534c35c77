"""The command line of scripts/update-catalog."""

import json
import sys
from pathlib import Path

from . import files, sources

USAGE = "usage: scripts/update-catalog [--check]"


def main(arguments):
    facts, folder, options = arguments[0], Path(arguments[1]), arguments[2:]
    if options not in ([], ["--check"]):
        sys.exit(USAGE)
    listed = json.loads(Path(facts).read_text())
    changed = 0
    for source in sources.SOURCES:
        path = folder / f"{source.file}.yaml"
        if not path.exists():
            sys.exit(f"{path} is missing: write its head by hand, or take it off the list of sources")
        before = path.read_text()
        after, differences = files.regenerate(before, sources.models_of(source, listed))
        for difference in differences:
            print(f"{source.file}: {difference}")
        if after != before:
            changed += 1
            if not options:
                path.write_text(after)
    print(f"{changed} files {'would change' if options else 'have changed'}")
    return 1 if options and changed else 0


sys.exit(main(sys.argv[1:]))
