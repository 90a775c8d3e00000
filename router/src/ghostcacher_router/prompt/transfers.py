"""Finds what a request says of other engines: fields that have an engine connect to a host, or keep KV for one.

    kv_transfer_params             vLLM's, in every API of its own; also `sampling_params.extra_args` of its /inference
    ec_transfer_params             the same for what an encoder has computed
    vllm_xargs                     puts its fields where vLLM keeps both of the above
    bootstrap_host                 SGLang's, who computes the prompt; also the header x-override-bootstrap-host

Who may name a host there can have an engine connect to any that it reaches. So these are for whoever routes between
engines, and a client may only say `OWN` in them, which names nobody.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from operator import attrgetter
from typing import Any, Final

import msgspec
from msgspec import Raw

OWN: Final = frozenset({"gc_pull", "gc_retain_s"})
"""What our connector reads in `kv_transfer_params`."""
HEADER: Final = b"x-override-bootstrap-host"
TRANSFER_FIELDS: Final = ("kv_transfer_params", "ec_transfer_params", "vllm_xargs", "bootstrap_host")
SAMPLING: Final = "sampling_params"
LOOKED_INTO_BYTES_MAX = 4096
"""Of a field: `OWN` is shorter, and a longer one is taken to name an engine."""
SHOWN_CHARS = 64
"""Of a field's name, to whoever sent it."""

_NESTED: Final = TRANSFER_FIELDS[:2]
_values_of = attrgetter(*TRANSFER_FIELDS)
_NOTHING: Final = (None,) * len(TRANSFER_FIELDS)


class _Args(msgspec.Struct):
    kv_transfer_params: Raw = Raw(b"null")
    ec_transfer_params: Raw = Raw(b"null")


class _Sampling(msgspec.Struct):
    extra_args: _Args | None = None


def transfer_in(body: object, headers: Mapping[bytes, bytes]) -> str | None:
    """Return the field, or the header, by which a request names another engine; None where it does not.

    body: decoded, with `TRANSFER_FIELDS` as attributes, None where it lacks one. headers: by lower-case name.
    """
    if HEADER in headers:
        return HEADER.decode()
    values = _values_of(body)
    if values == _NOTHING:
        return None
    xargs = values[2]
    inside = {"vllm_xargs." + name: xargs.get(name) for name in _NESTED} if isinstance(xargs, dict) else {}
    return _named(dict(zip(TRANSFER_FIELDS, values, strict=True)) | inside)


def transfer_in_raw(fields: Mapping[str, Raw], headers: Mapping[bytes, bytes]) -> str | None:
    """Return what `transfer_in` does, of the fields of any body, as strict JSON."""
    if HEADER in headers:
        return HEADER.decode()
    found = {name: _looked_into(fields[name]) for name in (*_NESTED, "bootstrap_host") if name in fields}
    # What has another type than is expected no engine takes.
    if "vllm_xargs" in fields:
        with suppress(msgspec.MsgspecError):
            found |= _args_in("vllm_xargs.", msgspec.json.decode(fields["vllm_xargs"], type=_Args))
    if SAMPLING in fields:
        with suppress(msgspec.MsgspecError):
            args = msgspec.json.decode(fields[SAMPLING], type=_Sampling).extra_args
            found |= {} if args is None else _args_in(f"{SAMPLING}.extra_args.", args)
    return _named(found)


def not_from_clients(field: str) -> str:
    """Return what a client is told that names another engine where it may not."""
    return (
        f"Invalid value for '{field}': expected none, since it names another engine, which the router alone does "
        f"(in kv_transfer_params only {' and '.join(sorted(OWN))} are taken from clients)."
    )


def _args_in(where: str, args: _Args) -> dict[str, Any]:
    return {where + name: _looked_into(getattr(args, name)) for name in _NESTED}


def _looked_into(raw: Raw) -> Any:
    value = bytes(raw)
    return msgspec.json.decode(value) if len(value) <= LOOKED_INTO_BYTES_MAX else value


def _named(values: Mapping[str, Any]) -> str | None:
    """Return the first of these fields that says more than a client may. A vllm_xargs itself says nothing."""
    for name, given in values.items():
        if given is None or name == "vllm_xargs":
            continue
        if not isinstance(given, dict) or not name.endswith(_NESTED):
            return name
        own = OWN if name.endswith("kv_transfer_params") else frozenset()
        if (key := next((key for key in given if key not in own), None)) is not None:
            return f"{name}.{key[:SHOWN_CHARS]}"
    return None
