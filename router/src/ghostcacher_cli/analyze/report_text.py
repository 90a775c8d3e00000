"""A report as lines of text. Pure: a report in, lines out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set

from ghostcacher_cli.analyze.report import Prefix, Report, SizeHits
from ghostcacher_cli.terminal.text import NOTHING, count, duration, fit, printable, table

TEXT_CHARS = 48
ALIKE_CHARS = 12
"""Of so many characters that texts begin with alike, people see once what they are."""
GIB = 1 << 30
_UNITS = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(size_bytes: float) -> str:
    """Return a number of bytes with about three digits: "512 MiB", "1.5 GiB"."""
    value, unit = float(size_bytes), 0
    while value >= 1000 and unit < len(_UNITS) - 1:  # noqa: PLR2004 - digits
        value, unit = value / 1024, unit + 1
    digits = 0 if value == int(value) or value >= 100 else 1  # noqa: PLR2004 - digits
    return f"{value:.{digits}f} {_UNITS[unit]}"


def percent(part: float) -> str:
    return f"{part:.1%}".replace("%", " %")


def seconds(value: float) -> str:
    """Return a duration; below a minute with three digits."""
    if value >= 60:  # noqa: PLR2004 - one minute
        return duration(value)
    return f"{value:.3g} s"


def report_lines(report: Report, chart: Sequence[str]) -> list[str]:
    """Return all there is to say. chart: the lines of a drawing, none where there is none."""
    return [
        *_summary(report),
        "",
        *_prefixes(report),
        "",
        *_sizes(report),
        *(["", *chart] if chart else []),
        "",
        *_order(report),
        "",
        *_tiers(report),
        "",
        *_assumptions(report),
        "",
        f"took {seconds(report.took_s)}",
    ]


def _summary(report: Report) -> Iterator[str]:
    counts = report.counts
    yield printable(f"{report.file}: {counts.requests:,} requests, {report.kind}")
    yield ""
    rows = (
        ("prompt tokens", counts.prompt_tokens, f"the longest prompt has {counts.longest_prompt_tokens:,}"),
        (
            "distinct",
            counts.distinct_tokens,
            f"{report.dedup_ratio:.2f} times sent; {size(counts.distinct_bytes)} of KV",
        ),
        ("saveable", counts.saveable_tokens, f"{percent(report.saveable_ratio)}, by a cache that forgets nothing"),
    )
    width = max(len(f"{row[1]:,}") for row in rows)
    for name, tokens, what in rows:
        yield f"  {name:<13}  {tokens:>{width},}  {what}"


def _prefixes(report: Report) -> Iterator[str]:
    if not report.shared_prefixes:
        yield "No two prompts begin with the same block."
        return
    yield "Shared prefixes that save most, as a tree"
    yield ""
    rows = [
        (
            f"{each.requests:,}",
            f"{each.start_tokens:,}",
            f"{each.tokens:,}",
            count(each.saves_tokens),
            fit(f"{'  ' * each.level}{begins}", TEXT_CHARS),
        )
        for each, begins in zip(report.shared_prefixes, _telling(report.shared_prefixes), strict=True)
    ]
    yield from _indented(("requests", "from token", "tokens", "saves", "begins"), rows, last_left=True)


def _telling(prefixes: Sequence[Prefix]) -> Iterator[str]:
    """Yield how prefixes begin, without what all that begin at the same place have in common: that tells nothing."""
    for each in prefixes:
        place = (each.level, each.start_tokens)
        beside = {other.begins for other in prefixes if (other.level, other.start_tokens) == place}
        alike = "".join(f"{word} " for word in _common_words(beside))
        yield f"~{each.begins.removeprefix(alike)}" if len(alike) >= ALIKE_CHARS else each.begins


def _common_words(texts: Set[str]) -> Iterator[str]:
    """Yield the words that all of several texts begin with; none for a single text."""
    for words in zip(*(text.split(" ") for text in texts), strict=False):
        if len(texts) == 1 or len(set(words)) > 1:
            return
        yield words[0]


def _sizes(report: Report) -> Iterator[str]:
    policies = list(report.sizes[0].hit_ratio)
    yield "Hit ratio by size of the cache: prompt tokens that are not computed"
    yield ""
    rows = [
        (
            size(each.size_bytes),
            f"{each.blocks:,}",
            *(_best_marked(each, name) for name in policies),
            percent(each.best_order_hit_ratio),
        )
        for each in report.sizes
    ]
    yield from _indented(("cache", "blocks", *policies, "lru, best order"), rows)
    yield from _indented_note(len(policies) > 1, "* the best policy at this size, requests in the file's order")


def _best_marked(each: SizeHits, name: str) -> str:
    """Return a hit ratio, marked where no other policy is as good."""
    ratio = each.hit_ratio[name]
    others = [other for policy, other in each.hit_ratio.items() if policy != name]
    best = bool(others) and all(round(ratio, 3) > round(other, 3) for other in others)
    return f"{percent(ratio)}{'*' if best else ' ' if others else ''}"


def _order(report: Report) -> Iterator[str]:
    best, given = report.best_order, report.assumptions
    yield "Best order to send them: depth first, what begins alike one after the other (--write-order FILE)"
    yield ""
    yield (
        f"  An engine's {size(given.engine_gib * GIB)} hit {percent(best.engine_hit_ratio)} and not "
        f"{percent(best.file_order_engine_hit_ratio)}: that saves {count(best.saved_tokens)} tokens, "
        f"{seconds(best.saved_s)} of computing."
    )
    yield (
        f"  Saving all of it takes {size(best.enough_bytes)} then, one request at a time, and "
        f"{size(best.file_order_enough_bytes)} in the file's order."
    )


def _tiers(report: Report) -> Iterator[str]:
    yield "What each tier would be worth, beyond those above it (LRU, the file's order)"
    yield ""
    rows = [
        (
            each.name,
            "unlimited" if each.size_bytes is None else size(each.size_bytes),
            size(each.filled_bytes),
            percent(each.hit_ratio),
            count(each.saved_tokens),
            NOTHING if each.name == "engine" else size(each.loaded_bytes),
            seconds(each.compute_s),
            NOTHING if each.name == "engine" else seconds(each.load_s),
            seconds(each.worth_s),
        )
        for each in report.tiers
    ]
    heads = ("tier", "size", "filled", "hits", "tokens", "loads", "computing", "loading", "worth")
    yield from _indented(heads, rows)
    for each in report.tiers:
        if each.load_s > each.compute_s:
            yield f"  {each.name}: loading takes longer than computing, at these rates it is worth nothing."


def _assumptions(report: Report) -> Iterator[str]:
    given, counts = report.assumptions, report.counts
    yield "Assumptions"
    yield ""
    rows = [
        (f"{given.bytes_per_token:,} bytes", f"of KV a token, {given.kv_of} (--model-config, --bytes-per-token)"),
        (f"{given.prefill_tokens_per_second:,g} tokens/s", "are computed (--prefill-tokens-per-second)"),
        (f"{given.load_gib_per_second:,g} GiB/s", "are loaded from host memory (--load-gib-per-second)"),
        (f"{given.object_gib_per_second:,g} GiB/s", "are loaded from objects (--object-gib-per-second)"),
        (f"{counts.block_tokens:,} tokens", "make a block (--block-size)"),
    ]
    if given.text_bytes_per_token is not None:
        rows.append((f"{given.text_bytes_per_token:,g} bytes", "of text make a token (--text-bytes-per-token)"))
    if given.arrival_spacing_s is not None:
        rows.append((f"{given.arrival_spacing_s:g} s", "lie between two requests: the file does not say it"))
    if given.sampled_one_in > 1:
        rows.append((f"1 block of {given.sampled_one_in:,}", "was looked at for policies; lru is exact"))
    width = max(len(row[0]) for row in rows)
    for value, what in rows:
        yield printable(f"  {value:>{width}}  {what}")


def _indented(heads: Sequence[str], rows: Sequence[Sequence[str]], *, last_left: bool = False) -> Iterator[str]:
    """Yield the lines of a table, indented. last_left: the last column is text."""
    if last_left:
        width = max(len(row[-1]) for row in (heads, *rows))
        heads = (*heads[:-1], heads[-1].ljust(width))
        rows = [(*row[:-1], row[-1].ljust(width)) for row in rows]
    for line in table(heads, rows).splitlines():
        yield f"  {line}".rstrip()


def _indented_note(shown: bool, note: str) -> Iterator[str]:
    if shown:
        yield f"  {note}"
