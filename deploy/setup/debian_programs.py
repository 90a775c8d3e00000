"""Takes programs out of Debian's packages, without installing these: no service starts, and the system stays as it is.

What `make` needs of a package lies mostly in that itself: Prometheus' programs are linked to the C library alone.
A browser needs dozens of libraries: those that the system lacks are put beside it, and it is told where they are.
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
FONTS = "fonts-liberation"
"""Without any font Chromium ends at once."""


def unpack(package: str, programs: Sequence[str], folder: Path) -> None:
    """Put programs of a package's ``usr/bin`` into a folder. Raises SetupError, saying what is not to be had."""
    _require_tools(package, programs)
    with tempfile.TemporaryDirectory() as name:
        inside = Path(name)
        _load([package], inside, programs)
        _extract(inside, inside / "files")
        folder.mkdir(parents=True, exist_ok=True)
        for program in programs:
            # Two steps: one that runs cannot be written to, only replaced.
            shutil.copy2(inside / "files" / "usr" / "bin" / program, folder / f"{program}.new")
            (folder / f"{program}.new").replace(folder / program)


def unpack_browser(folder: Path) -> None:
    """Put Debian's Chromium beside a Python, with all that the system lacks for it, and a command that runs it.

    folder: of the environment. Raises SetupError, saying what is not to be had.
    """
    _require_tools("chromium", ["chromium"])
    files = folder.resolve() / "chromium"
    with tempfile.TemporaryDirectory() as name:
        inside = Path(name)
        if not (wanted := _missing(["chromium", FONTS], inside)):
            # A new machine has no list of packages yet.
            _done(["apt-get", "update"], inside)
            wanted = _missing(["chromium", FONTS], inside)
        _load(wanted or ["chromium"], inside, ["chromium"])
        shutil.rmtree(files, ignore_errors=True)
        _extract(inside, files)
    (files / "fonts.conf").write_text(
        f"<fontconfig><dir>{files}/usr/share/fonts</dir><cachedir>{files}/fonts</cachedir></fontconfig>\n"
    )
    libraries = {path.parent for end in ("*.so", "*.so.*") for path in files.rglob(end)}
    command = folder / "bin" / "chromium"
    command.write_text(
        "#!/bin/sh\n"
        f"export FONTCONFIG_FILE='{files}/fonts.conf'\n"
        f"export LD_LIBRARY_PATH='{':'.join(sorted(map(os.fspath, libraries)))}'\n"
        f"exec '{files}/usr/lib/chromium/chromium' \"$@\"\n"
    )
    command.chmod(0o755)


def _require_tools(package: str, programs: Sequence[str]) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise SetupError(f"{package}: expected Debian's {tool}, found none: put {', '.join(programs)} on PATH")


def _missing(packages: Sequence[str], folder: Path) -> list[str]:
    """Return what the system lacks for some packages to run, themselves included; nothing when apt-get cannot tell."""
    command = ["apt-get", "install", "--simulate", "--no-install-recommends", *packages]
    try:
        done = subprocess.run(  # noqa: S603
            command,
            cwd=folder,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return []
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Inst ")]


def _load(packages: Sequence[str], folder: Path, programs: Sequence[str]) -> None:
    """Load packages into a folder. Raises SetupError."""
    if not _done(["apt-get", "download", *packages], folder):
        # A new machine has no list of packages yet.
        _done(["apt-get", "update"], folder)
        if not _done(["apt-get", "download", *packages], folder):
            raise SetupError(f"{packages[0]}: apt-get cannot load it: put {', '.join(programs)} on PATH")


def _extract(folder: Path, files: Path) -> None:
    """Put what is in the packages of a folder into another one. Raises SetupError."""
    for archive in folder.glob("*.deb"):
        if not _done(["dpkg-deb", "--extract", os.fspath(archive), os.fspath(files)], folder):
            raise SetupError(f"{archive.name} cannot be unpacked")


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
