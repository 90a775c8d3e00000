"""Every series that workers and routers export: names and labels, as the two catalogs have them."""

from __future__ import annotations

import importlib.util
from collections.abc import Collection, Mapping
from functools import cache
from pathlib import Path
from typing import NamedTuple

from ghostcacher_connector.metrics.catalog import METRICS, Kind
from ghostcacher_router.metrics.catalog import RouterMetrics
from ghostcacher_router.metrics.instruments import Counter
from ghostcacher_router.types import WorkerState
from tests.support.promql import Selector

ROOT = Path(__file__).resolve().parents[2]
TARGET_LABELS = frozenset({"job", "instance"})
"""Prometheus adds these to whatever it scrapes."""
HISTOGRAM_PARTS = ("_bucket", "_sum", "_count")


class Known(NamedTuple):
    """One metric."""

    kind: str
    labels: Mapping[str, Collection[str] | None]
    """Each label with its values; None where they are free, or not known before."""


@cache
def known_metrics() -> Mapping[str, Known]:
    """Return all metrics by name. Both catalogs have a hit ratio, which has no labels in either."""
    found = {name: Known(metric.kind.value, metric.labels) for name, metric in METRICS.items()}
    counters = {each.name: each for each in RouterMetrics()._page.instruments.values() if isinstance(each, Counter)}
    for shown, kind, labels, _ in _reference().router_metrics():
        name = shown.strip("`")
        values: dict[str, Collection[str] | None] = {label: None for label in labels.split(", ") if label}
        if name in counters and counters[name].values:
            keys = counters[name].values
            values = {label: {str(key[place]) for key in keys} for place, label in enumerate(values)}
        found[name] = Known(kind, values)
    found["gc_router_workers"] = Known("gauge", {"state": [state.value for state in WorkerState]})
    return found


def faults_of(selector: Selector) -> list[str]:
    """Return what a selection names that no worker and no router exports."""
    name, part = _without_part(selector.metric)
    metric = known_metrics().get(name)
    if metric is None:
        return [f"{selector.metric}: no such metric"]
    if (metric.kind == Kind.HISTOGRAM.value) != bool(part):
        return [f"{selector.metric}: a {metric.kind}"]
    labels = metric.labels.keys() | TARGET_LABELS | ({"le"} if part == "_bucket" else set())
    faults = [f"{selector.metric}: no label {label}" for label in sorted(selector.groups - labels)]
    for label, operator, value in selector.matchers:
        values = metric.labels.get(label)
        if label not in labels:
            faults.append(f"{selector.metric}: no label {label}")
        elif values is not None:
            wanted = value.split("|") if operator in ("=~", "!~") else [value]
            faults.extend(f"{selector.metric}: {label} is never {one}" for one in wanted if one not in values)
    return faults


def _without_part(metric: str) -> tuple[str, str]:
    for part in HISTOGRAM_PARTS:
        if metric.endswith(part):
            return metric.removesuffix(part), part
    return metric, ""


@cache
def _reference():  # type: ignore[no-untyped-def]
    """Return the module that makes the reference, which reads the router's metrics from where they are made."""
    spec = importlib.util.spec_from_file_location(
        "generate_reference", ROOT / "docs" / "site" / "generate_reference.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
