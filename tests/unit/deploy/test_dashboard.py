"""Grafana's dashboard: it is what its code makes, and asks for what exists, in a language that Prometheus reads."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from tests.support.catalog_names import faults_of
from tests.support.dashboard import DASHBOARD, Asked, queries
from tests.support.prometheus import promtool
from tests.support.promql import selectors

GENERATE = DASHBOARD.with_name("generate.py")
LEGEND_LABEL = re.compile(r"{{(\w+)}}")
EACH = pytest.mark.parametrize("asked", queries(), ids=lambda asked: f"{asked.panel}, {asked.legend}")


def test_dashboard_is_what_its_code_makes() -> None:
    """Whoever changes panels.py makes it anew (`make dashboard`), and nobody changes the JSON by hand."""
    done = subprocess.run(
        [sys.executable, str(GENERATE), "--check"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_prometheus_reads_every_query(tmp_path: Path) -> None:
    """As its own tool says."""
    rules = [{"record": f"query:{number}", "expr": asked.expression} for number, asked in enumerate(queries())]
    path = tmp_path / "rules.json"  # JSON is YAML
    path.write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    assert f"SUCCESS: {len(rules)} rules found" in promtool("check", "rules", path)


@EACH
def test_query_asks_for_what_exists(asked: Asked) -> None:
    """Every metric, label and value of a label is in a catalog, also the labels that the legend shows."""
    found = selectors(asked.expression)
    assert found
    shown = set(LEGEND_LABEL.findall(asked.legend))
    assert [fault for each in found for fault in faults_of(each)] == []
    assert shown <= set.union(*(set(each.groups) for each in found)) - {"le"}
    assert all(("job", "=~", ".*") in each.matchers for each in found), "a query of all jobs, whichever are chosen"


def test_rows_are_those_that_people_look_for() -> None:
    """In this order, none of them empty; no panel has the title of another one, or lies over it."""
    asked = queries()
    rows = ["Overview", "Router", "Engines", "Transfers", "Tiers"]
    assert list(dict.fromkeys(each.row for each in asked)) == rows
    panels = [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    places = sorted((panel["gridPos"] for panel in panels), key=lambda place: (place["y"], place["x"]))
    assert all(a["y"] + a["h"] <= b["y"] or a["x"] + a["w"] <= b["x"] for a, b in pairwise(places))
    assert all(place["x"] + place["w"] <= 24 for place in places)
