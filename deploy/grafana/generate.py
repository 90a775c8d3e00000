"""Makes the dashboard for Grafana from panels.py: deploy/grafana/ghostcacher.json.

python deploy/grafana/generate.py            # write it
python deploy/grafana/generate.py --check    # exit 1 when it is not up to date
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import panels
from grafana_foundation_sdk.builders import common, dashboard, prometheus, stat, timeseries
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DataSourceRef,
    VariableOption,
    VariableRefresh,
)

from deploy.generated_files import keep

DASHBOARD = Path(__file__).with_name("ghostcacher.json")
DATASOURCE = DataSourceRef("prometheus", "${datasource}")
WIDTH = 24
"""Of a dashboard, in Grafana's units."""
NUMBER_SIZE, CURVE_SIZE = (6, 4), (8, 8)
"""Width and height of the two kinds of panels."""


def whole() -> str:
    """Return the dashboard as Grafana's JSON."""
    made = (
        dashboard.Dashboard("GhostCacher")
        .uid("ghostcacher")
        .tags(["ghostcacher", "llm", "kv-cache"])
        .refresh("30s")
        .time("now-1h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(dashboard.DatasourceVariable("datasource").label("Data source").type("prometheus"))
        .with_variable(_jobs())
    )
    numbers = itertools.count(1)
    for row in panels.ROWS:
        made = made.with_row(dashboard.Row(row.title).id(next(numbers)))
        for panel in row.panels:
            made = made.with_panel(_panel(panel).id(next(numbers)))
    return json.dumps(json.loads(JSONEncoder(sort_keys=True).encode(made.build())), indent=1, sort_keys=True) + "\n"


def _jobs() -> dashboard.QueryVariable:
    """Return the choice of jobs: routers and engines are jobs of their own, and each fleet has others."""
    everything = VariableOption(selected=True, text="All", value="$__all")
    return (
        dashboard.QueryVariable("job")
        .label("Jobs")
        .datasource(DATASOURCE)
        .query('label_values({__name__=~"gc_router_workers|gc_peers_live"}, job)')
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
        .current(everything)
    )


def _panel(panel: panels.Panel) -> stat.Panel | timeseries.Panel:
    width, height = NUMBER_SIZE if panel.number else CURVE_SIZE
    made = stat.Panel() if panel.number else timeseries.Panel().legend(_legend()).fill_opacity(8).show_points("never")
    made = made.title(panel.title).unit(panel.unit).datasource(DATASOURCE).span(width).height(height)
    if panel.text:
        made = made.description(panel.text)
    for number, query in enumerate(panel.queries):
        made = made.with_target(
            prometheus.Dataquery()
            .expr(query.expression)
            .legend_format(query.legend)
            .range()
            .ref_id(chr(ord("A") + number))
            .datasource(DATASOURCE)
        )
    return made


def _legend() -> common.VizLegendOptions:
    return common.VizLegendOptions().show_legend(True).display_mode("list").placement("bottom").calcs([])


def main(arguments: Sequence[str]) -> int:
    """Write the dashboard, or with --check compare it; return the exit code."""
    return keep({DASHBOARD: whole()}, arguments, target="dashboard")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
