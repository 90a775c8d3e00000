"""What makes two KV caches the same kind: the fingerprint, and the namespace that is its digest.

Two workers share blocks only when every field is equal. Nothing empty compares equal: a field that nobody could fill
in must hold a value of its own (see `private_value`), never an empty one. Knows no engine: the adapters under
``engines/`` fill it in.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from typing import Any

import msgspec

from ghostcacher_connector.core.errors import ConfigError

NAMESPACE_CHARS = 32
"""128 bits of SHA-256 in hex: no two fleets ever meet by chance, and Redis keys stay short."""

WEIGHTS_AS_STARTED = "as started"
"""The weight epoch of a worker whose weights nobody has changed since it was started."""

ABSENT = "(absent)"

KNOWN_BLOCK_TOKENS = 16
KNOWN_TOKENS = tuple(range(1, 2 * KNOWN_BLOCK_TOKENS + 1))
"""The known prompt: two blocks of these tokens, the same in every fleet. Workers whose engines give it different hashes
give every prompt different hashes, and would never find each other's blocks.
"""

_DOMAIN = "ghostcacher fingerprint"


class Fingerprint(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that must be equal before two workers may share blocks.

    Raises ConfigError when a text is blank or a number is less than 1.
    """

    model: str
    """Name of the model that both are started with."""

    revision: str
    """Revision of the model's repository, or of its files."""

    config_digest: str
    """Digest of the model's configuration; see model_files.py."""

    weights_digest: str
    """Digest of the model's weights; see model_files.py."""

    weights_epoch: str
    """Which weights the running engine has been given since it was started: `WEIGHTS_AS_STARTED` while it has those of
    its files, otherwise a digest of all that it computes with."""

    kv_dtype: str
    """Data type of the KV cache."""

    quantization: str
    """Quantization of the weights, "none" when there is none."""

    numerics: str
    """What else changes the numbers that are computed, as the engine reads it: ``name=value;name=value``."""

    block_tokens: int
    """Tokens in one block."""

    layers: int
    """Attention layers of the whole model."""

    kv_heads: int
    """KV heads of the whole model."""

    head_size: int
    """Elements of one head."""

    layout: str
    """The attention backend, then shape and strides of a slot in every segment."""

    tp: int
    """Tensor-parallel size; 1 where it makes no difference to what is shared: see `ranks_hold`."""

    ranks_hold: str
    """What the tensor-parallel ranks of a stage hold: "shards", which other sizes divide otherwise; "replicas"; or
    "heads", of which other sizes have more or fewer, side by side."""

    pp: int
    """Pipeline-parallel size."""

    dcp: int
    """Decode-context-parallel size."""

    hash_algorithm: str
    """Algorithm of the engine's chain hash."""

    hash_seed: str
    """Seed of the chain hash, as a digest of what the engine begins its chains with."""

    known_hash: str
    """Chain hash, in hex, of the last block of `KNOWN_TOKENS`, as the engine's own function gives it."""

    engine: str
    """Family of the engine."""

    engine_version: str
    schema_version: int
    """Version of GhostCacher's Redis schema."""

    def __post_init__(self) -> None:
        for field in msgspec.structs.fields(self):
            value = getattr(self, field.name)
            if field.type == "int" or field.type is int:
                _check_number(field.name, value)
            else:
                _check_text(field.name, value)

    def digest(self) -> str:
        """Return the namespace: lower-case hex, the same in every process and on every machine."""
        named = sorted((name, getattr(self, name)) for name in self.__struct_fields__)
        packed = msgspec.msgpack.encode([_DOMAIN, named])
        return hashlib.sha256(packed).hexdigest()[:NAMESPACE_CHARS]

    def as_fields(self) -> dict[str, str]:
        """Return every field as text, by name: what a worker's record carries so that differences can be shown."""
        return {name: str(getattr(self, name)) for name in self.__struct_fields__}


def differences(a: Mapping[str, str], b: Mapping[str, str]) -> list[tuple[str, str, str]]:
    """Return ``(field, value in a, value in b)`` for every field that differs, in order of name.

    A field that only one of them has, as happens between versions of GhostCacher, differs from ABSENT.
    """
    fields = sorted(a.keys() | b.keys())
    pairs = ((field, a.get(field, ABSENT), b.get(field, ABSENT)) for field in fields)
    return [(field, left, right) for field, left, right in pairs if left != right]


def share_count(fields: Mapping[str, str]) -> int:
    """Return how many shares a block has: one for each stage, and for each rank of it where these hold shards.

    fields: of a fingerprint, as `Fingerprint.as_fields` gives them.
    """
    return int(fields["pp"]) * int(fields["tp"])


def named_values(values: Mapping[str, object]) -> str:
    """Return values with their names, in order of name: what `Fingerprint.numerics` holds. Never empty."""
    return ";".join(f"{name}={values[name]!r}" for name in sorted(values)) or "none"


def private_value(owner: str | None = None) -> str:
    """Return a value that no other worker has: for what is unknown, so that nothing is shared because of it.

    owner: what the processes of one worker have in common and no other worker has, such as the engine's own random id;
    without it each call returns another value.
    """
    if owner is not None:
        _check_text("owner", owner)
        return f"private-{hashlib.sha256(owner.encode()).hexdigest()[:NAMESPACE_CHARS]}"
    return f"private-{secrets.token_hex(NAMESPACE_CHARS // 2)}"


def _check_number(name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"fingerprint field {name}: expected an int of 1 or more, got {value!r}")


def _check_text(name: str, value: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ConfigError(f"fingerprint field {name}: expected a text that is not blank, got {value!r}")
