"""The wheel whose router is compiled in part: what of it is, and that it does what the interpreted one does."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
from pathlib import Path

import pytest
from pathspec import GitIgnoreSpec

from tests.conftest import SOAK

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ROOT / "router" / "src"
SUITES = ["tests/unit/router", "tests/integration/router"]
SHORT_SUITES = [
    *(f"tests/unit/router/{name}" for name in ("ghostlock", "http", "placement", "prefix_map", "signals")),
    "tests/integration/router/test_body_parser.py",
    "tests/integration/router/test_router_http.py",
]

OPTIMISED = 'opt_level = "3"'
"""As the wheel is built."""

pytestmark = pytest.mark.timeout(3000 if SOAK else 900)


def run(*command: str | Path, **variables: str) -> str:
    """Run a program in the root of the sources and return what it prints; it must succeed."""
    environment = {name: value for name, value in os.environ.items() if name != "GHOSTCACHER_SOAK"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=ROOT,
        env={**environment, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the wheel, built from the source distribution: nothing is left in the tree.

    It is not optimised: that takes several times as long, and changes nothing that is looked at here.
    """
    folder = tmp_path_factory.mktemp("compiled")
    build, dist, site = [sys.executable, "-m", "build", "--no-isolation", "--outdir"], folder / "dist", folder / "site"
    run(*build, dist, "--sdist", ROOT)
    (packed,) = dist.glob("*.tar.gz")
    with tarfile.open(packed) as archive:
        archive.extractall(folder, filter="data")
    sources = folder / packed.name.removesuffix(".tar.gz")
    project = sources / "pyproject.toml"
    settings = project.read_text()
    assert settings.count(OPTIMISED) == 1, f"expected {OPTIMISED} once in pyproject.toml"
    project.write_text(settings.replace(OPTIMISED, 'opt_level = "0"'))
    run(*build, dist, "--wheel", sources, HATCH_BUILD_HOOK_ENABLE_MYPYC="1", CFLAGS="-Wno-all")
    (wheel,) = dist.glob("*.whl")
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", site, wheel)
    return site


def test_modules_that_the_build_names_are_compiled(site: Path) -> None:
    """Each module beside its source; `ghostcacher version` says so."""
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]
    hook = build["targets"]["wheel"]["hooks"]["mypyc"]
    named, excluded = GitIgnoreSpec.from_lines(hook["include"]), GitIgnoreSpec.from_lines(hook["exclude"])
    modules = [path.relative_to(ROOT).as_posix() for path in SOURCES.rglob("*.py")]
    expected = {path for path in named.match_files(modules) if not excluded.match_file(path)}
    found = (site / "ghostcacher_router").rglob("*.so")
    extensions = {path.relative_to(site).as_posix().partition(".")[0] for path in found}
    assert extensions == {path.removeprefix("router/src/").removesuffix(".py") for path in expected}
    said = run(sys.executable, "-P", "-m", "ghostcacher_cli.main", "version", PYTHONPATH=str(site))
    assert said.splitlines()[0].endswith(" (compiled)")


def test_compiled_router_passes_the_tests_of_the_interpreted_one(site: Path) -> None:
    """With the compiled modules in front of the sources, and processes that the tests start likewise."""
    paths = [str(site), os.fspath(ROOT), os.fspath(ROOT / "sdk" / "python" / "src")]
    options = ["--quiet", "--maxfail=3", "-p", "no:cacheprovider", "-o", f"pythonpath={' '.join(paths)}"]
    ours = "from ghostcacher_router.placement import picker; print(picker.__file__)"
    assert run(sys.executable, "-P", "-c", ours, PYTHONPATH=os.pathsep.join(paths)).strip().endswith(".so")
    print(
        run(
            sys.executable, "-P", "-m", "pytest", *options, *(SUITES if SOAK else SHORT_SUITES),
            PYTHONPATH=os.pathsep.join(paths),
        )
    )  # fmt: skip
