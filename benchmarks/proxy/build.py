"""Compiles the programs in C of this folder, once for each version of their sources."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from benchmarks.harness.model import default_cache_dir

SOURCES = Path(__file__).parent
FLAGS = ("-O2", "-std=gnu11", "-Wall", "-Wextra")
COMPILE_TIMEOUT_S = 60


def compiled(name: str, cache: Path | None = None) -> Path:
    """Return the program made of ``NAME.c``. Raises OSError when there is no compiler, or it fails."""
    digest = hashlib.sha256(" ".join(FLAGS).encode())
    for source in (SOURCES / "wire.h", SOURCES / f"{name}.c"):
        digest.update(source.read_bytes())
    target = (cache or default_cache_dir()) / "bench" / f"{name}-{digest.hexdigest()[:16]}"
    if target.exists():
        return target
    compiler = shutil.which(os.environ.get("CC", "")) or shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise OSError("no C compiler found: install gcc (apt-get install gcc libc6-dev)")
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.{os.getpid()}")
    command = [compiler, *FLAGS, "-o", str(partial), str(SOURCES / f"{name}.c"), "-lm"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_TIMEOUT_S, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(command)}:\n{done.stderr}")
    partial.replace(target)
    return target
