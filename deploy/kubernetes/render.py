"""Renders the plain manifests of this folder from the Helm chart.

``render.py`` writes them, ``render.py --check`` compares.
They are for those who do not use Helm, and are committed. Needs the packages of the extra ``dev``.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import helm_python
import yaml

from deploy.generated_files import keep

FOLDER = Path(__file__).parent
HELM = FOLDER.parent / "helm"
VALUES = HELM / "examples" / "plain.yaml"
PICKER_VALUES = HELM / "examples" / "endpoint-picker.yaml"
PICKER_PARTS = ("epp", "gateway", "networkPolicy")
"""Of these values, over the plain ones: what the example of an endpoint picker adds to the fleet."""
NAME = "ghostcacher"
"""Of the release and of its namespace."""
FILES = {
    "00-namespace.yaml": ["namespace"],
    "10-access.yaml": ["access"],
    "20-redis.yaml": ["redis/config", "redis/server"],
    "30-engines.yaml": ["engines/deployments"],
    "40-router.yaml": ["router/deployment", "router/service", "router/scaling"],
    "50-network-policies.yaml": ["network-policies"],
    "monitoring/60-monitors.yaml": ["monitoring/monitors"],
}
"""File -> the chart's templates in it, in order. Subfolders are not applied with it: monitors need an operator."""
PICKER_FILE = "examples/endpoint-picker.yaml"
PICKER_TEMPLATES = ["gateway", "epp/access", "epp/deployment", "epp/service", "epp/network-policies"]
NOT_PLAIN = {"templates/NOTES.txt", "templates/tests/ready.yaml"}
"""Templates that mean nothing without Helm."""
OF_HELM = ("helm.sh/chart:", "app.kubernetes.io/managed-by:")
"""Labels that would say what is not so."""
HEAD = "# Made by deploy/kubernetes/render.py from deploy/helm: change the chart, then `make manifests`.\n"


def manifests() -> dict[str, str]:
    """Return file -> text, for all files. Raises ValueError for a template that renders something and has no file."""
    values = yaml.safe_load(VALUES.read_text())
    picker = yaml.safe_load(PICKER_VALUES.read_text())
    files = _files(values, FILES)
    added = {name: picker[name] for name in PICKER_PARTS}
    return files | {PICKER_FILE: _files(values | added, FILES | {PICKER_FILE: PICKER_TEMPLATES})[PICKER_FILE]}


def _files(values: Mapping[str, Any], files: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return file -> text of the templates in it. Raises ValueError for one that renders something and is in none."""
    with helm_python.Chart.load(str(HELM / NAME)) as chart:
        rendered = chart.render(dict(values), name=NAME, namespace=NAME)
    texts = {path.partition("/")[2]: text for path, text in rendered.items() if text.strip()}
    known = {_path(template) for templates in files.values() for template in templates} | NOT_PLAIN
    if left := sorted(set(texts) - known):
        raise ValueError(f"expected a place in FILES for every template, found none for {', '.join(left)}")
    return {
        file: HEAD + "".join(_plain(texts, template) for template in templates) for file, templates in files.items()
    }


def _plain(texts: Mapping[str, str], template: str) -> str:
    """Return the documents of a template, each with a line of dashes before it, without Helm's labels."""
    lines = [line for line in texts[_path(template)].splitlines() if not line.strip().startswith(OF_HELM)]
    documents = "\n".join(lines).strip().strip("-").strip()
    return f"---\n{documents}\n"


def _path(template: str) -> str:
    return f"templates/{template}.yaml"


def main(arguments: Sequence[str]) -> int:
    """Write the files, or with --check compare them; return the exit code."""
    return keep({FOLDER / file: text for file, text in manifests().items()}, arguments, target="manifests")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
