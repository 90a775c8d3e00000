"""The command line of `ghostcacher analyze`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ghostcacher_cli.analyze.policy_curves import LRU, POLICIES
from ghostcacher_cli.analyze.worth import GIB, Assumptions, bytes_per_token_of
from ghostcacher_cli.terminal.numbers import Number, Whole
from ghostcacher_cli.terminal.options import OptionParser
from ghostcacher_connector.core.errors import ConfigError

PLOT_KINDS = (".png", ".svg")
PREFIXES_MAX = 1_000
BLOCK_TOKENS_MAX = 65_536
BYTES_PER_TOKEN_MAX = 10**12

DEFAULTS = Assumptions()


class AnalyzeOptions(NamedTuple):
    """What to look at, and how to show it."""

    file: Path
    """The file of requests."""
    block_tokens: int | None
    """Tokens of a block; None for what is usual for the kind of file."""
    assumptions: Assumptions
    """What bytes and seconds are made of."""
    policies: Sequence[str]
    """The policies to compare; LRU is always one of them."""
    sizes_bytes: Sequence[int] | None
    """The sizes of caches to look at; None for powers of 2 that fit the file."""
    prefixes: int
    """How many shared prefixes to list."""
    as_json: bool
    """Whether to print JSON."""
    chart: bool | None
    """Whether to draw in the terminal; None: where that is possible."""
    plot: Path | None
    """The picture to write."""
    write_order: Path | None
    """The file to write the requests to in the best order."""


def parse(words: Sequence[str]) -> AnalyzeOptions:
    """Return what the command line says. Raises ConfigError; SystemExit as argparse does, for help and wrong usage."""
    given = _parser().parse_args(words)
    if given.plot is not None and given.plot.suffix.lower() not in PLOT_KINDS:
        raise ConfigError(f"--plot: expected a name that ends in .png or .svg, got {str(given.plot)!r}")
    if given.as_json and given.chart:
        raise ConfigError("--chart: expected text to draw below, got --json as well")
    return AnalyzeOptions(
        given.file,
        given.block_size,
        _assumptions(given),
        (LRU, *(name for name in given.policies if name != LRU)),
        given.sizes_gib,
        given.prefixes,
        given.as_json,
        given.chart,
        given.plot,
        given.write_order,
    )


def _assumptions(given: argparse.Namespace) -> Assumptions:
    kv_bytes, kv_of = DEFAULTS.bytes_per_token, DEFAULTS.kv_of
    if given.model_config is not None:
        kv_bytes, kv_of = bytes_per_token_of(given.model_config), str(given.model_config)
    elif given.bytes_per_token is not None:
        kv_bytes, kv_of = given.bytes_per_token, "as given"
    return Assumptions(
        kv_bytes,
        kv_of,
        given.prefill_tokens_per_second,
        given.load_gib_per_second,
        given.object_gib_per_second,
        given.engine_gib,
        given.host_gib,
        given.text_bytes_per_token,
    )


def _parser() -> argparse.ArgumentParser:
    parser = OptionParser(
        "analyze",
        "FILE",
        description="Say what a cache could save of a file of requests: what they share, how large a cache has to be, "
        "in which order to send them, what a lower tier would be worth. Touches no cache and no network.",
        epilog="FILE is JSON, one request a line: bodies of the OpenAI or Anthropic API (prompt, messages, input), "
        "lines of a batch (url, body), token ids (prompt or prompt_token_ids), or block hashes (hash_ids, "
        "input_length, timestamp in ms, as in Mooncake's traces).",
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="requests, one a line")
    add("--json", dest="as_json", action="store_true", help="print one JSON object instead of text")
    add("--chart", action=argparse.BooleanOptionalAction, help="draw hit ratios as text (default: where plotext is)")
    add("--plot", type=Path, metavar="FILE", help="write hit ratios as a picture, a .png or an .svg (needs matplotlib)")
    add("--write-order", type=Path, metavar="FILE", help="write the requests in the best order to a new file")
    add("--prefixes", type=Whole(0, PREFIXES_MAX), default=10, metavar="N", help="shared prefixes to list (10)")
    add("--policies", type=_policies, default=POLICIES, metavar="A,B", help=f"of {', '.join(POLICIES)} (all)")
    add("--sizes-gib", type=_sizes, metavar="N,N", help="sizes of caches to look at (powers of 2 that fit the file)")
    add("--block-size", type=Whole(1, BLOCK_TOKENS_MAX), metavar="N", help="tokens of a block (16; of a hash: 512)")
    _add_assumptions(parser)
    return parser


def _add_assumptions(parser: argparse.ArgumentParser) -> None:
    assumed = parser.add_argument_group("assumptions, which are named in what is printed")
    model = assumed.add_mutually_exclusive_group()
    model.add_argument(
        "--bytes-per-token",
        type=Whole(1, BYTES_PER_TOKEN_MAX),
        metavar="N",
        help=f"KV of one token in all layers, in bytes ({DEFAULTS.bytes_per_token:,}: {DEFAULTS.kv_of})",
    )
    model.add_argument(
        "--model-config", type=Path, metavar="PATH", help="take that from a model's config.json or folder"
    )
    for name, what in (
        ("prefill-tokens-per-second", "what an engine computes"),
        ("load-gib-per-second", "from host memory into an engine's cache"),
        ("object-gib-per-second", "from files or objects into an engine's cache"),
        ("engine-gib", "an engine's own KV cache"),
        ("host-gib", "a host tier under it"),
        ("text-bytes-per-token", "text of a token, where no token ids are given"),
    ):
        default = getattr(DEFAULTS, name.replace("-", "_"))
        kind = Number(at_least_0=name == "host-gib")
        assumed.add_argument(f"--{name}", type=kind, default=default, metavar="N", help=f"{what} ({default:,g})")


def _policies(text: str) -> Sequence[str]:
    names = text.split(",")
    for name in names:
        if name not in POLICIES:
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(POLICIES)}, got {name!r}")
    return list(dict.fromkeys(names))


def _sizes(text: str) -> Sequence[int]:
    number = Number()
    return sorted({int(number(each) * GIB) for each in text.split(",")})
