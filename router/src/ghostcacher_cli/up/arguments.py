"""The command line of `ghostcacher up`: our options, and the engine's among them.

    ghostcacher up MODEL --workers 2 --max-model-len 8192          what is not ours is the engine's
    ghostcacher up MODEL --workers 2 -- --port-that-is-not-ours    what follows -- is the engine's, whatever it is

A word that is no flag belongs to whom the flag before it belongs, so MODEL stands before the engine's flags.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.object_url import parse_object_url
from ghostcacher_connector.core.settings import check_redis_url, parse_listen, unknown

WORKERS_MAX = 256
ENGINES = ("vllm", "sglang")
KV_GIB_MAX = 4096
READY_TIMEOUT_S = 3600.0
"""Large models take minutes, and longer when they are downloaded first. Progress is shown, and Ctrl-C is at hand."""

FLAG_SIMILARITY = 0.9
"""From here on an engine's flag looks like one of ours, misspelt."""

NOT_PASSED_ON = ("--model", "--model-path", "--kv-transfer-config", "--unified-cache-external-linker-config")
"""Flags of the engine that are set here, and would break what they are set for."""


class UpOptions(NamedTuple):
    """What to start. kv_gib: KV cache of each engine where it lies in host memory; None: as much as is sensible.

    host_tier_gib: of each engine; None: what GC_HOST_TIER_GIB says. object_url: where blocks outlive engines; None:
    what GC_OBJECT_URL says. gpus: those to use; None: all that are visible. log_dir: None for a temporary one.
    engine_arguments: passed on.
    """

    model: str
    workers: int
    host: str
    port: int
    redis_url: str | None
    gpus: tuple[str, ...] | None
    kv_gib: int | None
    logs: bool
    log_dir: Path | None
    ready_timeout_s: float
    engine_arguments: tuple[str, ...]
    engine: str = "vllm"
    host_tier_gib: float | None = None
    object_url: str | None = None


def parse(words: Sequence[str], environ: Mapping[str, str]) -> UpOptions:
    """Return what the command line says. Raises ConfigError; SystemExit as argparse does, for help and wrong usage."""
    parser = _parser(environ)
    ours, engine = split(words, _values_by_flag(parser))
    given = parser.parse_args(ours)
    options = UpOptions(
        model=given.model,
        workers=given.workers,
        host=given.host,
        port=given.port,
        redis_url=given.redis_url,
        gpus=_gpus(given.gpus),
        kv_gib=given.kv_gib,
        logs=given.logs,
        log_dir=given.log_dir,
        ready_timeout_s=given.ready_timeout,
        engine_arguments=tuple(engine),
        engine=given.engine,
        host_tier_gib=given.host_tier,
        object_url=given.object_url,
    )
    _check(options)
    return options


def split(words: Sequence[str], ours: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return our words, and the engine's. ours: how many values each of our flags takes."""
    own: list[str] = []
    engine: list[str] = []
    target = own
    position = 0
    while position < len(words):
        word = words[position]
        position += 1
        if word == "--":
            engine += words[position:]
            break
        name, has_value, _ = word.partition("=")
        if name in ours:
            target = own
            taken = 0 if has_value else ours[name]
            own += [word, *words[position : position + taken]]
            position += taken
            continue
        if _is_flag(word):
            target = engine
        target.append(word)
    return own, engine


def suspicions(options: UpOptions) -> list[str]:
    """Return a remark for each flag that goes to the engine, and looks like one of ours with a typing error."""
    known = [flag for flag in _values_by_flag(_parser({})) if flag.startswith("--")]
    flags = [word.partition("=")[0] for word in options.engine_arguments if word.startswith("--")]
    close = {flag: difflib.get_close_matches(flag, known, n=1, cutoff=FLAG_SIMILARITY) for flag in flags}
    return [f"{flag} goes to the engine; did you mean {found[0]}?" for flag, found in close.items() if found]


def engine_value(arguments: Sequence[str], *flags: str) -> str | None:
    """Return the last value that an engine's command line gives one of these flags; None when it gives none."""
    found = None
    for position, word in enumerate(arguments):
        name, has_value, value = word.partition("=")
        name = name.replace("_", "-") if name.startswith("--") else name
        if name in flags:
            found = value if has_value else arguments[position + 1] if position + 1 < len(arguments) else None
    return found


def _parser(environ: Mapping[str, str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ghostcacher up",
        usage="ghostcacher up MODEL [--workers N] [options] [engine flags...] [-- engine flags...]",
        description="Start engines with one shared cache, and a router in front of them, on this machine.",
        epilog="Every other flag is passed on to each engine. Settings of the router come from GC_ROUTER_* variables, "
        "those of the connector from GC_* variables.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="folder, or name on Hugging Face")
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="engines to start (default: %(default)s)")
    parser.add_argument("--engine", default="vllm", help=f"one of {', '.join(ENGINES)} (default: %(default)s)")
    parser.add_argument("--host", default="127.0.0.1", help="where the router listens (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="of the router; 0: any (default: %(default)s)")
    parser.add_argument(
        "--redis-url",
        default=environ.get("GC_REDIS_URL") or None,
        metavar="URL",
        help="the fleet's Redis (default: GC_REDIS_URL, else one is started)",
    )
    parser.add_argument("--gpus", metavar="LIST", help="such as 0,1,4: divided among the engines (default: all)")
    parser.add_argument(
        "--kv-gib", type=int, metavar="N", help="KV cache of each engine without GPU, in GiB (default: by free memory)"
    )
    parser.add_argument(
        "--host-tier",
        type=float,
        metavar="N",
        help="host memory of each engine for what its cache evicts, in GiB (default: GC_HOST_TIER_GIB, else none)",
    )
    parser.add_argument(
        "--object-url",
        metavar="URL",
        help="where blocks outlive engines, behind the host tier: file:///folder or s3://bucket/prefix?endpoint=... "
        "(default: GC_OBJECT_URL, else nowhere)",
    )
    parser.add_argument("--logs", action="store_true", help="print what the engines and the router log")
    parser.add_argument("--log-dir", type=Path, metavar="DIR", help="keep their logs here (default: temporary)")
    parser.add_argument(
        "--ready-timeout",
        type=float,
        default=READY_TIMEOUT_S,
        metavar="S",
        help="time that an engine has to load, in s (default: %(default).0f)",
    )
    return parser


def _values_by_flag(parser: argparse.ArgumentParser) -> dict[str, int]:
    return {
        flag: 0 if action.nargs == 0 else 1
        for action in parser._actions  # there is no public way to ask
        for flag in action.option_strings
    }


def _is_flag(word: str) -> bool:
    """Say whether a word is a flag; a negative number is a value."""
    return word.startswith("-") and word != "-" and re.fullmatch(r"-[0-9.][0-9.eE+-]*", word) is None


def _gpus(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    names = tuple(name.strip() for name in text.split(","))
    if not all(re.fullmatch(r"[A-Za-z0-9-]{1,64}", name) for name in names) or len(set(names)) != len(names):
        raise ConfigError(f"--gpus: expected different names separated by commas, such as 0,1, got {text!r}")
    return names


def _check(options: UpOptions) -> None:
    if options.engine not in ENGINES:
        raise ConfigError(f"--engine: {unknown('engine', options.engine, ENGINES)}")
    if not 1 <= options.workers <= WORKERS_MAX:
        raise ConfigError(f"--workers: expected a number from 1 to {WORKERS_MAX}, got {options.workers}")
    if options.kv_gib is not None and not 1 <= options.kv_gib <= KV_GIB_MAX:
        raise ConfigError(f"--kv-gib: expected a number from 1 to {KV_GIB_MAX}, got {options.kv_gib}")
    if options.host_tier_gib is not None and not 0 <= options.host_tier_gib <= KV_GIB_MAX:
        raise ConfigError(f"--host-tier: expected 0 to {KV_GIB_MAX} GiB, got {options.host_tier_gib:g}")
    if options.object_url is not None:
        parse_object_url(options.object_url)
        if options.engine != "vllm":
            raise ConfigError(f"--object-url: expected --engine vllm, which alone uses objects, got {options.engine}")
    if not 1 <= options.ready_timeout_s <= 24 * READY_TIMEOUT_S:
        raise ConfigError(f"--ready-timeout: expected 1 to 86400 s, got {options.ready_timeout_s:g}")
    host = f"[{options.host}]" if ":" in options.host else options.host
    parse_listen(f"{host}:{options.port}", "--host, --port")
    check_redis_url(options.redis_url)
    for flag in NOT_PASSED_ON:
        if any(word.partition("=")[0] == flag for word in options.engine_arguments):
            raise ConfigError(f"{flag}: is set by `ghostcacher up`, and cannot be passed on to the engine")
    _check_model(options.model)


def _check_model(model: str) -> None:
    """Refuse what must be meant as a folder and is none, before engines spend a minute to find out."""
    path = Path(model)
    if path.is_dir():
        if not any((path / name).is_file() for name in ("config.json", "params.json")):
            raise ConfigError(f"MODEL: expected a model's folder with a config.json, {model} has none")
    elif model.startswith(("/", ".", "~")) or model.count("/") > 1 or model.endswith(os.sep):
        raise ConfigError(f"MODEL: expected a folder, or a name such as Qwen/Qwen3-0.6B; there is no folder {model}")
