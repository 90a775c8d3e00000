"""Runs the code of a page of the documents, in its order, and compares what it prints with what the page says.

    python -m tests.support.page_code docs/learning/PAGE.md...     writes anew what the pages say

A block of ``python`` goes on from the ones before it, one of ``sh`` has the command ``ghostcacher``. What either prints
stands behind it, in a block of ``text``. All run in one folder.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FENCE = re.compile(r"^```(python|sh|text)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
TIMEOUT_S = 280


class Printed(NamedTuple):
    """What a page says that code prints. start, end: where that stands in the page. found: what it prints."""

    start: int
    end: int
    said: str
    found: str


def run_page(text: str, folder: Path) -> list[Printed]:
    """Run a page's code in an empty folder, and return what it printed where the page says something of it.

    Raises what the code raises; AssertionError where text stands behind no code, or what is printed is not on the page.
    """
    results: list[Printed] = []
    printed, variables = "", {"__name__": "page"}
    with contextlib.chdir(folder):
        for block in FENCE.finditer(text):
            kind, content = block.groups()
            if kind == "text":
                assert printed, f"a block of text behind no code that prints: {content!r}"
                results.append(Printed(block.start(2), block.end(2), content, printed))
                printed = ""
                continue
            assert not printed, f"printed, and not on the page: {printed!r}"
            printed = _run_python(content, variables) if kind == "python" else _run_shell(content, folder)
    assert not printed, f"printed, and not on the page: {printed!r}"
    return results


def _run_python(source: str, variables: dict[str, str]) -> str:
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(source, "page", "exec"), variables)  # noqa: S102 - our own pages
    return _without_blanks_at_ends(output.getvalue())


def _run_shell(source: str, folder: Path) -> str:
    program = folder / ".bin" / "ghostcacher"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m ghostcacher_cli.main "$@"\n')
    program.chmod(0o755)
    path = os.pathsep.join(map(str, filter(None, sys.path)))
    env = {**os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": path}
    done = subprocess.run(
        ["bash", "-euc", source], cwd=folder, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _without_blanks_at_ends(text: str) -> str:
    return "".join(f"{line.rstrip()}\n" for line in text.splitlines())


def _written(text: str) -> Iterator[str]:
    """Yield the pieces of a page with what its code prints now."""
    place = 0
    with tempfile.TemporaryDirectory() as folder:
        for one in run_page(text, Path(folder)):
            yield text[place : one.start]
            yield one.found
            place = one.end
    yield text[place:]


if __name__ == "__main__":
    for name in sys.argv[1:]:
        page = Path(name)
        page.write_text("".join(_written(page.read_text())))
