"""Files that are made from code and are committed all the same: their scripts write them, or say which are old."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

CHECK = "--check"


def keep(files: Mapping[Path, str], arguments: Sequence[str], *, target: str) -> int:
    """Write the files that are not up to date or, with --check among the arguments, name them; return the exit code.

    files: what each is to hold. target: of the Makefile, which writes them.
    """
    old = [path for path, text in files.items() if not path.is_file() or path.read_text() != text]
    if CHECK in arguments:
        for path in old:
            print(f"{path}: not up to date, run `make {target}`", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path])
    return 0
