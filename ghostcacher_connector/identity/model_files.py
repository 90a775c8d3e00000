"""Digests of a model's files: equal for equal models wherever the files lie, and cheap to make.

A digest covers the names, sizes and contents of files, not their place: a symbolic link counts as what it points to.
Of a large weight file each tensor is sampled (weight_files.py). That tells fine-tunes, checkpoints of one training and
re-quantised copies apart; weights edited by hand in a few elements need `weights_id`.

A snapshot of the Hugging Face cache brings along the hub's own digests of its files, and a plain folder does not:
copies of one model in both get two digests. A worker that is started with the model's name and one that is started
with a folder have two names and two revisions for it anyhow; `weights_id` and a folder on both make them one.

A model that cannot be read gives a private value, with a warning: this worker then shares with nobody, which is safe.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.identity.fingerprint import private_value
from ghostcacher_connector.identity.weight_files import INDEX_SUFFIX, WeightFile, inspect, read_all, samples_of

logger = logging.getLogger(__name__)

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".gguf", ".pt")
CONFIG_NAME = "config.json"
CONFIG_BYTES_MAX = 16 << 20
PROCESSOR_NAMES = (
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("image_processor_config.json", "feature_extractor_config.json"),
)
"""Where a model says how images and other items are prepared: sizes, means, numbers of frames."""

VOLATILE_KEYS = frozenset({"transformers_version", "_name_or_path", "_commit_hash"})
"""What tools write into a config without changing the model."""

LENGTH_DEPENDENT_ROPE = ("longrope", "dynamic", '"su"')

HUB_DIGEST = "hub-"
"""What a digest of weights begins with that covers the hub's own digests of all files."""

_DIGEST_CHARS = 32
_HUB_MODELS = "models--"


def model_name(model: str, revision: str | None = None, cache_dir: str | None = None) -> tuple[str, str]:
    """Return the name and the revision by which workers of one model agree, however each was told where it is.

    Files in a Hugging Face cache have the hub's name and the commit, whether the engine was given a name, a branch, or
    (as vLLM does to itself without a network) the path of the snapshot. Another folder has its own name: where it lies
    on this machine does not matter. Parameters as for `weights_digest`. The revision is "none" when nobody knows it.
    """
    place = locate_model(model, revision, cache_dir)
    folder = Path(os.path.abspath(place)) if place is not None else None
    repository = folder.parent.parent.name if folder is not None and folder.parent.name == "snapshots" else ""
    if folder is not None and repository.startswith(_HUB_MODELS):
        return repository.removeprefix(_HUB_MODELS).replace("--", "/"), folder.name
    # huggingface_hub's resolved revisions say the branch that was asked for, and carry its commit.
    known = str(getattr(revision, "resolved", revision) or "none")
    return (Path(os.path.abspath(model)).name or "/") if Path(model).exists() else model, known


def weights_digest(
    model: str,
    weights_id: str | None,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    owner: str | None = None,
) -> str:
    """Return the digest of a model's weights.

    model: a directory, a ``.gguf`` file, or a name whose files the local Hugging Face cache has; nothing is downloaded.
    weights_id: the operator's name for the weights; used instead of the files.
    cache_dir: the Hugging Face cache that the engine was told to use; None: the one that everybody uses.
    owner: see `private_value`; used when no weights are found.
    Raises ConfigError when a weight file is there but cannot be read.
    """
    if weights_id is not None:
        return _named(weights_id)
    place = locate_model(model, revision, cache_dir)
    files = list(_weight_files(place)) if place is not None else []
    if not files:
        _warn_private("weights", model)
        return private_value(owner)
    try:
        return _digest_of([inspect(path) for path in files])
    except OSError as exc:
        name = Path(exc.filename).name if isinstance(exc.filename, str) else "a weight file"
        raise ConfigError(f"weights of {model}: {name}: expected a readable file, got {exc.strerror}") from exc


def config_digest(
    model: str,
    weights_id: str | None,
    *,
    revision: str | None = None,
    cache_dir: str | None = None,
    owner: str | None = None,
) -> str:
    """Return the digest of a model's ``config.json``, less what tools write into it.

    Parameters as for `weights_digest`. A ``.gguf`` file holds its own configuration and needs none.
    Raises ConfigError when the file is there and is no JSON object.
    """
    place = locate_model(model, revision, cache_dir)
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


def processor_digest(model: str, *, revision: str | None = None, cache_dir: str | None = None) -> str:
    """Return the digest of the files that say how images and other items are prepared, less what tools write into them.

    Parameters as for `weights_digest`. Raises ConfigError when a file is there and is no JSON object.
    """
    place = locate_model(model, revision, cache_dir)
    paths = [place / name for name in PROCESSOR_NAMES] if place is not None and place.is_dir() else []
    files = {path.name: _stable(_read_config(path)) for path in paths if path.is_file()}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:_DIGEST_CHARS]


def resolved_digest(files: str, resolved: Mapping[str, Any], overrides: Any, *, context_tokens: int) -> str:
    """Return the digest of what an engine made of a model's configuration.

    files: as `config_digest` gives it. resolved: the configuration in use. context_tokens: the longest context that the
    engine was started for; some rope scalings choose their factors by it.
    """
    text = json.dumps([_stable(dict(resolved)), _stable(overrides)], sort_keys=True, default=_text_of)
    length = context_tokens if any(kind in text for kind in LENGTH_DEPENDENT_ROPE) else 0
    return hashlib.sha256(f"{files}:{length}:{text}".encode()).hexdigest()


def locate_model(model: str, revision: str | None = None, cache_dir: str | None = None) -> Path | None:
    """Return the directory or file of a model on this machine, without any network access; None when there is none."""
    path = Path(model)
    if path.exists():
        return path
    try:
        from huggingface_hub import snapshot_download  # noqa: PLC0415 - optional
    except ImportError:
        return None
    try:
        return Path(snapshot_download(model, revision=revision, cache_dir=cache_dir, local_files_only=True))
    except (OSError, ValueError):
        # Not in the cache, or no name of a repository at all.
        return None


def _weight_files(place: Path) -> Iterator[Path]:
    if place.is_file():
        yield place
        return
    for path in sorted(place.iterdir(), key=lambda path: path.name):
        if path.name.endswith((*WEIGHT_SUFFIXES, INDEX_SUFFIX)):
            yield path


def _digest_of(files: Sequence[WeightFile]) -> str:
    """Feed each file's name, size, known content and samples, texts with their lengths: no two models feed the same."""
    digest = hashlib.sha256(b"ghostcacher weights")
    for file, ranges in zip(files, samples_of(files), strict=True):
        for text in (file.path.name.encode(), file.content.encode()):
            digest.update(len(text).to_bytes(8, "little") + text)
        digest.update(file.size.to_bytes(8, "little"))
        for data in read_all(file.path, ranges):
            digest.update(data)
    known = all(file.content for file in files if not file.path.name.endswith(INDEX_SUFFIX))
    return (HUB_DIGEST if known else "") + digest.hexdigest()[:_DIGEST_CHARS]


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


def _text_of(value: object) -> str:
    """Return what stands for a value that JSON does not know: the same in every process, and so no address."""
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


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
