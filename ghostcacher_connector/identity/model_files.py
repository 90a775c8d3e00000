"""Digests of a model's files: equal for equal models wherever the files lie, and cheap to make.

A digest covers the names, sizes and contents of files, not their place: a symbolic link (as in the Hugging Face cache)
counts as what it points to. Of a large weight file only samples are read. That tells fine-tunes and re-quantised
copies apart; weights edited by hand in a few bytes need `weights_id`.

A model that cannot be read gives a private value, with a warning: this worker then shares with nobody, which is safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.identity.fingerprint import private_value

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
WEIGHT_INDEX_SUFFIX = ".index.json"
CONFIG_NAME = "config.json"
CONFIG_BYTES_MAX = 16 << 20

SAMPLE_BYTES = 64 << 10
INNER_SAMPLES = 4
WHOLE_BYTES_MAX = 1 << 20
"""Files up to this size are read whole."""

VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path", "_commit_hash"})
"""What tools write into a config without changing the model."""

LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic", '"su"')

_DIGEST_CHARS = 32


def weights_digest(model: str, weights_id: str | None, *, revision: str | None = None, owner: str | None = None) -> str:
    """Return the digest of a model's weights.

    model: a directory, a ``.gguf`` file, or a name whose files the local Hugging Face cache has; nothing is downloaded.
    weights_id: the operator's name for the weights; used instead of the files.
    owner: see `private_value`; used when no weights are found.
    Raises ConfigError when a weight file is there but cannot be read.
    """
    if weights_id is not None:
        return _named(weights_id)
    place = locate_model(model, revision)
    files = list(_weight_files(place)) if place is not None else []
    if not files:
        _warn_private("weights", model)
        return private_value(owner)
    digest = hashlib.sha256(b"ghostcacher weights")
    for path in files:
        try:
            _add_file(digest, path)
        except OSError as exc:
            raise ConfigError(f"weights of {model}: {path.name}: expected a readable file, got {exc.strerror}") from exc
    return digest.hexdigest()[:_DIGEST_CHARS]


def config_digest(model: str, weights_id: str | None, *, revision: str | None = None, owner: str | None = None) -> str:
    """Return the digest of a model's ``config.json``, less what tools write into it.

    Parameters as for `weights_digest`. A ``.gguf`` file holds its own configuration and needs none.
    Raises ConfigError when the file is there and is no JSON object.
    """
    place = locate_model(model, revision)
    if place is not None and place.is_file():
        return "inside-the-weights"
    path = place / CONFIG_NAME if place is not None else None
    if path is None or not path.is_file():
        if weights_id is not None:
            return _named(weights_id)
        _warn_private(CONFIG_NAME, model)
        return private_value(owner)
    canonical = json.dumps(_stable(_read_config(path)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:_DIGEST_CHARS]


def resolved_digest(files: str, resolved: Mapping[str, Any], overrides: Any, *, context_tokens: int) -> str:
    """Return the digest of what an engine made of a model's configuration.

    files: as `config_digest` gives it. resolved: the configuration in use. context_tokens: the longest context that the
    engine was started for; some rope scalings choose their factors by it.
    """
    stable = {key: value for key, value in resolved.items() if key not in VOLATILE_KEYS}
    text = json.dumps([stable, overrides], sort_keys=True, default=repr)
    length = context_tokens if any(kind in text for kind in LENGTH_DEPENDENT_ROPE) else 0
    return hashlib.sha256(f"{files}:{length}:{text}".encode()).hexdigest()


def locate_model(model: str, revision: str | None = None) -> Path | None:
    """Return the directory or file of a model on this machine, without any network access; None when there is none."""
    path = Path(model)
    if path.exists():
        return path
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - optional
    except ImportError:
        return None
    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True))
    except (OSError, ValueError):
        # Not in the cache, or no name of a repository at all.
        return None


def _weight_files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for path in sorted(place.iterdir(), key=lambda path: path.name):
        if path.name.endswith((*WEIGHT_SUFFIXES, WEIGHT_INDEX_SUFFIX)):
            yield path


def _add_file(digest: Any, path: Path) -> None:
    """Feed name, size and content, each with its length: no two files feed the same bytes."""
    size = path.stat().st_size
    whole = size <= WHOLE_BYTES_MAX or path.name.endswith(WEIGHT_INDEX_SUFFIX)
    name = path.name.encode()
    digest.update(len(name).to_bytes(8, "little") + name + size.to_bytes(8, "little"))
    with path.open("rb") as file:
        if whole:
            while chunk := file.read(WHOLE_BYTES_MAX):
                digest.update(chunk)
            return
        for offset in sample_offsets(size):
            file.seek(offset)
            digest.update(file.read(SAMPLE_BYTES))


def sample_offsets(size: int) -> list[int]:
    """Return where the samples of a large file begin: its start and end, and evenly in between."""
    last = size - SAMPLE_BYTES
    return [last * step // (INNER_SAMPLES + 1) for step in range(INNER_SAMPLES + 2)]


def _read_config(path: Path) -> dict[str, Any]:
    if path.stat().st_size > CONFIG_BYTES_MAX:
        raise ConfigError(f"{path.name}: expected at most {CONFIG_BYTES_MAX} bytes, got {path.stat().st_size}")
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as exc:
        raise ConfigError(f"{path.name}: expected a readable JSON object, got {type(exc).__name__}: {exc}") from exc
    if not isinstance(config, dict):
        raise ConfigError(f"{path.name}: expected a JSON object, got a {type(config).__name__}")
    return config


def _stable(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _stable(inner) for key, inner in value.items() if key not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [_stable(inner) for inner in value]
    return value


def _named(weights_id: str) -> str:
    if not weights_id.strip():
        raise ConfigError("weights_id: expected a text that is not blank, got none")
    return f"named-{hashlib.sha256(weights_id.encode()).hexdigest()[:_DIGEST_CHARS]}"


def _warn_private(what: str, model: str) -> None:
    logger.warning(
        "No %s of model %r can be read on this machine: this worker SHARES ITS CACHE WITH NOBODY. "
        "If all workers serve the same weights, say so: set weights_id (GC_WEIGHTS_ID) to one name for them on each.",
        what,
        model,
    )
