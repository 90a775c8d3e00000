"""What several processes of one router have counted, as one page or one set of counters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.instruments import Counter, Histogram

LABEL = "process"
"""Tells apart the series of processes on one page, as `instance` does those of several routers. Counters of a process
that has ended go with their series, so that no sum over the others seems to fall."""


def counts_of(metrics: RouterMetrics) -> dict[str, Any]:
    """Return all counters and histograms as plain values, for `merged_metrics`."""
    found: dict[str, Any] = {}
    for name, instrument in metrics.instruments.items():
        if isinstance(instrument, Counter):
            found[name] = [[list(key), value] for key, value in instrument.values.items()]
        elif isinstance(instrument, Histogram):
            found[name] = instrument.state()
    return found


def merged_metrics(counts: Iterable[Mapping[str, Any]]) -> RouterMetrics:
    """Return metrics that have counted what all of them have.

    A metric with other labels or buckets than here is left out: while an upgrade replaces processes they differ.
    """
    merged = RouterMetrics()
    for each in counts:
        for name, found in each.items():
            instrument = merged.instruments.get(name)
            if isinstance(instrument, Counter):
                for key, value in found:
                    if len(key) == len(instrument.labels):
                        instrument.add(value, *key)
            elif isinstance(instrument, Histogram) and len(found[0]) == len(instrument.counts):
                instrument.absorb(*found)
    return merged


def merged_page(pages: Mapping[str, bytes]) -> bytes:
    """Return one page with the series of all pages, each with the label `LABEL`. pages: by its value."""
    heads: dict[str, list[str]] = {}
    samples: dict[str, list[str]] = {}
    for process, page in pages.items():
        family = ""
        for line in page.decode().splitlines():
            if line.startswith("# "):
                _, kind, family, *_ = line.split(" ", 3)
                known = heads.setdefault(family, [])
                if not any(head.startswith(f"# {kind} ") for head in known):
                    known.append(line)
            elif line:
                samples.setdefault(family, []).append(_labelled(line, process))
    lines = [line for family, head in heads.items() for line in (*head, *samples.get(family, ()))]
    return ("\n".join(lines) + "\n").encode()


def _labelled(line: str, process: str) -> str:
    name, brace, rest = line.partition("{")
    if brace:
        return f'{name}{{{LABEL}="{process}",{rest}'
    name, _, value = line.partition(" ")
    return f'{name}{{{LABEL}="{process}"}} {value}'
