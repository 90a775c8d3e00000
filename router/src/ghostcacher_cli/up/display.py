"""What `ghostcacher up` shows: where each server stands, what to do when all are ready. Pure: state in, lines out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ghostcacher_cli.terminal.text import duration
from ghostcacher_cli.up.arguments import UpOptions, engine_value
from ghostcacher_cli.up.plan import base_url
from ghostcacher_cli.up.supervisor import State

ROUTER = "router"
"""The name of the one server that is up before it is of any use: it waits for engines."""


class Standing(NamedTuple):
    """Where one server stands."""

    name: str
    """Short, for people."""
    where: str
    """Its cores or GPUs; empty for the router."""
    state: State
    """As the supervisor sees it."""
    url: str
    """Its base URL."""
    elapsed_s: float
    """How long it has been in this state, in s."""
    phase: str
    """How far its start is, in a few words."""


def standing_lines(standings: Sequence[Standing]) -> list[str]:
    """Return a line for each server, in columns."""
    names = max(len(each.name) for each in standings)
    places = max(len(each.where) for each in standings)
    return [f"{each.name:<{names}}  {each.where:<{places}}  {_words(each)}" for each in standings]


def summary(standings: Sequence[Standing]) -> str:
    """Return one line on all of them, for where lines cannot be overwritten."""
    return "; ".join(f"{each.name} {_words(each)}" for each in standings)


def readiness(standings: Sequence[Standing]) -> str:
    """Return how many engines are ready, and what the others do."""
    ready = sum(each.state is State.READY for each in standings)
    others = [f"{each.name} {_words(each)}" for each in standings if each.state is not State.READY]
    return "; ".join([f"{ready} of {len(standings)} engines ready", *others])


def start_lines(options: UpOptions, redis: str, logs: Path) -> list[str]:
    """Return what is said before anything is started."""
    many = "s" * (options.workers > 1)
    lines = [f"Starting {options.workers} engine{many} of {options.model}, index in {redis}, logs in {logs}"]
    if options.engine_arguments:
        lines.append(f"Passed on to the engine{many}: {' '.join(options.engine_arguments)}")
    return lines


def ready_lines(options: UpOptions) -> list[str]:
    """Return what is said once all are ready: where it is, and how to try it."""
    url = base_url(options)
    model = engine_value(options.engine_arguments, "--served-model-name") or options.model
    body = json.dumps({"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 32})
    return [
        "",
        f"Ready at {url}/v1 (OpenAI and Anthropic compatible)",
        f"  curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'",
        f"  ghostcacher top --url {url}",
        "Ctrl-C stops all.",
        "",
    ]


def _words(standing: Standing) -> str:
    if standing.state is State.STARTING:
        return f"{standing.phase} ({duration(standing.elapsed_s)})"
    if standing.state is State.READY:
        return f"{'listens' if standing.name == ROUTER else 'ready'} at {standing.url}"
    return "ended, to be started again" if standing.state is State.WAITING else str(standing.state.value)
