"""Grafana's dashboard, read from its JSON: panels and their queries, as Prometheus gets them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

DASHBOARD = Path(__file__).resolve().parents[2] / "deploy" / "grafana" / "ghostcacher.json"


class Asked(NamedTuple):
    """One query of one panel."""

    row: str
    panel: str
    expression: str
    """PromQL, without Grafana's variables."""
    legend: str


def queries(window: str = "1m") -> list[Asked]:
    """Return every query of the dashboard. window: what rates are taken over."""
    values: Mapping[str, str] = {"$__rate_interval": window, "$job": ".*"}
    found, row = [], ""
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        if panel["type"] == "row":
            row = panel["title"]
        for target in panel.get("targets", ()):
            expression = target["expr"]
            for name, value in values.items():
                expression = expression.replace(name, value)
            found.append(Asked(row, panel["title"], expression, target["legendFormat"]))
    return found
