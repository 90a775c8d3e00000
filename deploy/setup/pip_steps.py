"""Steps of an installation: each is announced in one line, and pip is heard only where it has something to say."""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Collection, Iterable
from pathlib import Path

PROBE_OPTIONS = ("--timeout", "10", "--retries", "1")
"""For questions to an index: where none answers, that is known after 20 s instead of the minutes that pip would try."""

_MISSING_FROM_A_LOCAL_INDEX = re.compile(
    r"WARNING: Location 'file:.*' is ignored: it is neither a file nor a directory"
)
_CONFLICTS_FOLLOW = "ERROR: pip's dependency resolver does not currently take into account"
_CONFLICT = re.compile(r"(?P<owner>\S+) \S+ requires .*(which is not installed\.|which is incompatible\.)$")


class SetupError(Exception):
    """What cannot be installed, why, and what to do about it: one line."""


class Environment:
    """A virtual environment that is being set up, step by step."""

    def __init__(self, folder: Path, *, steps: int, incomplete: Collection[str] = ()) -> None:
        """Prepare for a folder that need not exist yet.

        steps: how many steps will be announced.
        incomplete: packages that are installed without all their dependencies on purpose; what pip says about those is
        not repeated.
        """
        self.python = folder / "bin" / "python"
        self._folder = folder
        self._steps = steps
        self._step = 0
        self._incomplete = {_normalized(name) for name in incomplete}
        self._began = time.monotonic()

    def step(self, text: str, *, there: bool = False) -> None:
        """Announce the next step; say so when what it brings is there already."""
        self._step += 1
        print(f"[{self._step}/{self._steps}] {text}{': already there' if there else ''}", flush=True)

    def finish(self) -> None:
        """Say that the environment is ready, and how long that took."""
        print(f"{self._folder} is ready after {time.monotonic() - self._began:.0f} s", flush=True)

    def create(self, *options: str) -> None:
        """Make the environment with this Python, or complete one that was left without pip."""
        if self.python.exists() and self._run("-m", "pip", "--version").returncode == 0:
            return
        done = _run([sys.executable, "-m", "venv", *options, os.fspath(self._folder)])
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            raise SetupError(
                f"{sys.executable} cannot make a virtual environment: install its venv module "
                "(Debian and Ubuntu: the package python3-venv), or name another Python (PYTHON=/path/to/python)"
            )

    def has(self, requirement: str) -> bool:
        """Say whether exactly this (``name==version``) is installed."""
        name, version = requirement.split("==")
        found = self._run("-c", f"import importlib.metadata as m; print(m.version({name!r}))")
        return found.returncode == 0 and found.stdout.strip() == version

    def why_missing(self, requirement: str, *options: str) -> str | None:
        """Ask pip's indexes for ``name==version`` without loading it; return None when it is there, else the reason."""
        name, version = requirement.split("==")
        found = self._run("-m", "pip", "index", "versions", *PROBE_OPTIONS, *options, name)
        offered = re.search(r"^Available versions: (.*)$", found.stdout, re.MULTILINE)
        if offered and version in offered[1].split(", "):
            return None
        return "cannot be reached" if "connection broken by" in found.stdout else f"has none for {this_platform()}"

    def install(self, *arguments: str) -> None:
        """Install what pip understands as these arguments; raise SetupError, with all that pip said printed before."""
        self._pip("install", *arguments)

    def _pip(self, command: str, *arguments: str) -> None:
        done = self._run("-m", "pip", command, "--quiet", "--progress-bar=off", *arguments)
        if done.returncode != 0:
            print(done.stdout, file=sys.stderr)
            errors = [line for line in done.stdout.splitlines() if line.startswith("ERROR: ")]
            cause = errors[-1].removeprefix("ERROR: ") if errors else f"pip ended with status {done.returncode}"
            raise SetupError(f"step {self._step} failed: {cause} (all that pip said is above)")
        for line in worth_reading(done.stdout.splitlines(), self._incomplete):
            print(line, file=sys.stderr)

    def download(self, requirement: str, folder: Path) -> None:
        """Load the wheel of one ``name==version`` into a folder, without what it needs."""
        self._pip("download", "--no-deps", "--only-binary=:all:", "--dest", os.fspath(folder), requirement)

    def uninstall(self, *names: str) -> None:
        """Remove packages; those that are not there do not matter."""
        self._run("-m", "pip", "uninstall", "--quiet", "--yes", *names)

    def _run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return _run([os.fspath(self.python), *arguments])


def this_platform() -> str:
    """Name what a wheel has to fit, as in ``Python 3.11 on Linux x86_64``."""
    return f"Python {sys.version_info[0]}.{sys.version_info[1]} on {platform.system()} {platform.machine()}"


def worth_reading(lines: Iterable[str], incomplete: Collection[str]) -> list[str]:
    """Return what pip said without what is known and harmless.

    That is: local indexes that lack a package, and missing dependencies of packages that are incomplete on purpose.
    """
    kept: list[str] = []
    for line in lines:
        conflict = _CONFLICT.match(line)
        if conflict and _normalized(conflict["owner"]) in incomplete:
            continue
        if line.strip() and not _MISSING_FROM_A_LOCAL_INDEX.match(line):
            kept.append(line)
    if not any(_CONFLICT.match(line) for line in kept):
        kept = [line for line in kept if not line.startswith(_CONFLICTS_FOLLOW)]
    return kept


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a program with its errors among its output, never asking anybody anything."""
    environment = {**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_NO_INPUT": "1"}
    return subprocess.run(  # noqa: S603
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
