"""Makes the reference pages of the documents from the code, so that they cannot drift.

    python docs/site/generate_reference.py            # write docs/reference/*.md
    python docs/site/generate_reference.py --check    # exit 1, naming the pages that are not up to date

Settings and their ranges come from the settings classes, metrics from the two catalogs, the command line from its
parsers, the admin API from its schema.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import io
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from deploy.generated_files import keep
from ghostcacher_cli.analyze import report
from ghostcacher_cli.main import main as command_line
from ghostcacher_cli.simulate import results
from ghostcacher_connector.config import Settings
from ghostcacher_connector.core import admin_api, dashboard_api
from ghostcacher_connector.core.settings import (
    ENVIRONMENT_PREFIX,
    CheckedSettings,
    expectation,
    types_of,
)
from ghostcacher_connector.metrics.catalog import METRICS
from ghostcacher_router.config import SHARED_WITH_WORKERS, RouterSettings
from ghostcacher_router.epp.settings import PickerSettings
from ghostcacher_router.metrics import catalog as metrics_catalog

REFERENCE = Path(__file__).resolve().parents[1] / "reference"
NOTE = "<!-- Made by docs/site/generate_reference.py: change the code, then `make reference`. -->\n"
COMMANDS = ("", "up", "router", "epp", "status", "top", "doctor", "analyze", "simulate", "version")
COLUMNS = "100"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def settings_page() -> str:
    """Return the page of all settings."""
    return f"""# Settings

An unknown name, or a value of the wrong type or out of range, is refused at start, by name. Secrets never appear in
logs, messages or metrics.

## Connector

In `kv_connector_extra_config` (vLLM) or `linker_extra_config` (SGLang), or as environment variables: `GC_` and the name
in capitals. The first wins.

{settings_table(Settings)}
## Router

As options (`--retries-max 1`), in the file of `--config` (TOML, or JSON), or as environment variables: `GC_ROUTER_` and
the name in capitals; Redis and its key are shared with the engines: {shared_variables()}. The first wins. Secrets
have no option.

{settings_table(RouterSettings)}
## Endpoint picker

Those of a router, given in the same ways, and these:

{settings_table(PickerSettings, beside=RouterSettings)}"""


def shared_variables() -> str:
    return ", ".join(f"`{ENVIRONMENT_PREFIX}{name.upper()}`" for name in SHARED_WITH_WORKERS)


def settings_table(kind: type[CheckedSettings], beside: type[CheckedSettings] = CheckedSettings) -> str:
    rows = []
    fields = {field.name: field for field in msgspec.structs.fields(kind)}
    for name, annotation in types_of(kind).items():
        if name in beside.__struct_fields__:
            continue
        info = msgspec.inspect.type_info(annotation)
        assert isinstance(info, msgspec.inspect.Metadata), name
        description = (info.extra_json_schema or {})["description"]
        rows.append((f"`{name}`", shown_default(fields[name].default), expectation(annotation), description))
    return table(("setting", "default", "expected", "meaning"), rows)


def shown_default(value: object) -> str:
    if value in (None, ()):
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    return f"`{','.join(value)}`" if isinstance(value, tuple) else f"`{value}`"


def metrics_page() -> str:
    """Return the page of all metrics."""
    connector = [
        (f"`{metric.name}`", metric.kind.value, ", ".join(metric.labels) or "", metric.help)
        for metric in sorted(METRICS.values(), key=lambda each: each.name)
    ]
    return f"""# Metrics

Names end in their unit. A counter ends in `_total`.

## Connector

On the engine's own `/metrics` page, and on the page of `metrics_port`.

{table(("metric", "kind", "labels", "meaning"), connector)}
## Router

On its `/metrics`, beside those of its process (`process_*`).

{table(("metric", "kind", "labels", "meaning"), router_metrics())}"""


def router_metrics() -> list[tuple[str, str, str, str]]:
    """Return name, kind, labels and meaning of the router's metrics, read from where they are made."""
    found = {}
    for path in sorted(Path(inspect.getfile(metrics_catalog)).parents[1].rglob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and len(call.args) > 1 and is_metric_name(call.args[0]):
                name, text = (ast.literal_eval(argument) for argument in call.args[:2])
                kind = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
                found[name] = (f"`{name}`", kind.lower(), ", ".join(labels_of(call)), text)
    return [found[name] for name in sorted(found)]


def is_metric_name(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("gc_")


def labels_of(call: ast.Call) -> Sequence[str]:
    """Return the labels of a metric: a list as the third argument, or one as a keyword."""
    for node in [*call.args[2:3], *(word.value for word in call.keywords if word.arg == "label")]:
        value = getattr(metrics_catalog, node.id, None) if isinstance(node, ast.Name) else literal(node)
        if isinstance(value, str):
            return [value]
        if isinstance(value, list | tuple) and all(isinstance(each, str) for each in value):
            return value
    return ()


def literal(node: ast.expr) -> object:
    try:
        return ast.literal_eval(node)
    except ValueError:
        return None


def cli_page() -> str:
    """Return the page of the command line: what each `--help` prints."""
    parts = ["# Command line\n"]
    for command in COMMANDS:
        words = [command] if command else []
        name = " ".join(["ghostcacher", *words])
        parts.append(f"\n## {name}\n\n```text\n{help_of(words)}\n```\n")
    parts.append(f"\n## What analyze --json prints\n\n{inspect.getdoc(report)}\n{structs(report, '###')}")
    parts.append(f"\n## What simulate --json prints\n\n{inspect.getdoc(results)}\n{structs(results, '###')}")
    return "".join(parts)


def help_of(words: Sequence[str]) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        command_line([*words, "--help"])
    return out.getvalue().strip()


def http_page() -> str:
    """Return the page of the HTTP API: what the router answers itself."""
    modules = (admin_api, dashboard_api)
    lines = [
        line.strip()
        for module in modules
        for line in (inspect.getdoc(module) or "").splitlines()
        if line.startswith("    ")
    ]
    parts = [
        "# HTTP API\n\nThe router passes on all that an engine serves: see [The router](../operating/router.md). "
        "What it answers itself:\n\n```text\n"
        "GET /health                        200 while the process serves\n"
        "GET /ready                         200 when a worker can take requests, else 503 and why\n"
        "GET /metrics                       Prometheus' text format\n"
        "GET /v1/models[/ID]                models, merged over all workers\n",
        "\n".join([*lines, "GET /gc/ui                         the dashboard, a page"]),
        "\n```\n\n`/gc/*` needs the admin token: see [Operating it](../operating/router.md#operating-it). "
        "Its bodies are JSON. Readers should ignore fields that they do not know.\n",
    ]
    parts += [structs(module, "##") for module in modules]
    return "".join(parts)


def structs(module: ModuleType, heading: str) -> str:
    """Return a part for each structure of a module: what it is, and its fields."""
    return "".join(
        f"\n{heading} {name}\n\n{inspect.getdoc(kind)}\n\n{fields_table(kind)}"
        for name, kind in vars(module).items()
        if inspect.isclass(kind) and issubclass(kind, msgspec.Struct) and kind.__module__ == module.__name__
    )


def fields_table(kind: type[msgspec.Struct]) -> str:
    docs = field_docs(kind)
    rows = [
        (f"`{field.encode_name}`", type_name(field.type), docs.get(field.name, ""))
        for field in msgspec.structs.fields(kind)
    ]
    return table(("field", "type", "meaning"), rows)


def type_name(annotation: Any) -> str:
    plain = inspect.isclass(annotation) and not hasattr(annotation, "__args__")
    text = annotation.__name__ if plain else str(annotation)
    return f"`{re.sub(r'[a-z_]+[.](?=[A-Za-z])', '', text)}`"


def field_docs(kind: type) -> dict[str, str]:
    """Return the docstrings that stand behind the fields of a class and its bases, by field."""
    found: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ != kind.__module__:
            continue
        body = ast.parse(inspect.getsource(base)).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and is_text(text):
                found[field.target.id] = re.sub(r"\s+", " ", ast.literal_eval(text.value))  # type: ignore[attr-defined]
    return found


def is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def pages() -> dict[str, str]:
    """Return the text of every reference page, by file name."""
    made = {
        "settings.md": settings_page(),
        "metrics.md": metrics_page(),
        "cli.md": cli_page(),
        "http-api.md": http_page(),
    }
    return {name: NOTE + text.rstrip() + "\n" for name, text in made.items()}


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check compare them; return the exit code."""
    os.environ["COLUMNS"] = COLUMNS
    return keep({REFERENCE / name: text for name, text in pages().items()}, arguments, target="reference")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
