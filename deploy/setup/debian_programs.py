"""Takes programs out of Debian's packages, without installing these: no service starts.

What `make` needs of a package lies in the package itself: Prometheus' programs are linked to the C library alone.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from pip_steps import SetupError

PATIENCE_S = 300


def unpack(package: str, programs: Sequence[str], folder: Path) -> None:
    """Put programs of a package's ``usr/bin`` into a folder. Raises SetupError, saying what is not to be had."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SetupError(f"{package}: expected Debian's {tool}, found none: put {', '.join(programs)} on PATH")
    with tempfile.TemporaryDirectory() as name:
        inside = Path(name)
        if not _done(["apt-get", "download", package], inside):
            # A new machine has no list of packages yet.
            _done(["apt-get", "update"], inside)
            if not _done(["apt-get", "download", package], inside):
                raise SetupError(f"{package}: apt-get cannot load it: put {', '.join(programs)} on PATH")
        archive = next(inside.glob("*.deb"))
        if not _done(["dpkg-deb", "--extract", os.fspath(archive), os.fspath(inside / "files")], inside):
            raise SetupError(f"{package}: {archive.name} cannot be unpacked")
        folder.mkdir(parents=True, exist_ok=True)
        for program in programs:
            # Two steps: one that runs cannot be written to, only replaced.
            shutil.copy2(inside / "files" / "usr" / "bin" / program, folder / f"{program}.new")
            (folder / f"{program}.new").replace(folder / program)


def _done(command: Sequence[str], folder: Path) -> bool:
    """Run a program in a folder, never asking anybody anything; say whether it went well."""
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return done.returncode == 0
