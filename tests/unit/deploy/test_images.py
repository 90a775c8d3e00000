"""Images are built from files that are there, on versions that the package takes, and run as nobody in particular."""

from __future__ import annotations

import fnmatch
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from ghostcacher_connector import __version__
from tests.support.helm_chart import CHART, DEPLOY

ROOT = DEPLOY.parent
FILES = {
    path.name.removesuffix(".Dockerfile"): path.read_text() for path in sorted((DEPLOY / "docker").glob("*.Dockerfile"))
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]
SERVERS = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.launch_server"}


def test_there_is_an_image_for_each_that_the_chart_names() -> None:
    """The chart's image names are those of the files."""
    text = "".join(path.read_text() for path in CHART.glob("templates/**/*.*"))
    assert {name.removeprefix("ghostcacher-") for name in re.findall(r'"(ghostcacher-[a-z-]+)"', text)} == set(FILES)
    assert f"{__version__}\n" in (CHART / "Chart.yaml").read_text().replace('"', "")


@pytest.mark.parametrize("name", FILES)
def test_sources_are_there_and_complete(name: str) -> None:
    """What is copied exists, is not ignored, and is all that the wheel is built from."""
    copied = [
        word for line in re.findall(r"^COPY (?!--from)(.+) \S+$", FILES[name], re.MULTILINE) for word in line.split()
    ]
    kept = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    for source in copied:
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source
    packages = PROJECT["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"]
    needed = {"pyproject.toml", PROJECT["project"]["readme"], *PROJECT["project"]["license-files"]}
    assert needed | {package.split("/")[0] for package in packages} == set(copied)


@pytest.mark.parametrize("name", FILES)
def test_images_run_without_root_and_without_a_shell(name: str) -> None:
    """The user is a number, which Kubernetes can check, and the program is started directly, not by a shell."""
    lines = FILES[name].splitlines()
    assert "USER 65532:65532" in lines
    assert next(line for line in lines if line.startswith(("ENTRYPOINT", "CMD"))).startswith('ENTRYPOINT ["')
    assert lines.index("USER 65532:65532") > max(
        index for index, line in enumerate(lines) if line.startswith(("RUN", "COPY"))
    )


def test_vendors_images_are_versions_that_the_package_takes() -> None:
    """vLLM's and SGLang's tags lie within what the extras ask for, and installing changes neither."""
    for name, image in (("vllm", "vllm/vllm-openai:v"), ("sglang", "lmsysorg/sglang:v")):
        version = re.search(rf"{re.escape(image)}(\S+)", FILES[name])
        assert version is not None
        wanted = next(Requirement(text) for text in EXTRAS[name] if Requirement(text).name == name)
        assert wanted.specifier.contains(version[1])
        assert f"'^(torch|{name})=='" in FILES[name]
        assert "--constraint" in FILES[name]
        assert SERVERS[name] in FILES[name]


@pytest.mark.parametrize("name", FILES)
def test_extras_that_images_install_exist(name: str) -> None:
    """Each name in brackets behind the package is one of its extras."""
    extras = {extra for group in re.findall(r"\[([a-z,-]+)\]\"", FILES[name]) for extra in group.split(",")}
    assert extras <= set(EXTRAS)
    # A setting that values can turn on finds what it needs.
    assert "tracing" in extras
    assert extras == {"tracing", "bedrock", "epp"} if name == "router" else name in extras


def test_router_is_asked_where_it_listens() -> None:
    """The health check asks the port of the default address."""
    text = FILES["router"]
    port = re.search(r"GC_ROUTER_LISTEN=0\.0\.0\.0:(\d+)", text)
    assert port is not None
    assert f"127.0.0.1:{port[1]}/health" in text
    assert f"EXPOSE {port[1]}" in text
