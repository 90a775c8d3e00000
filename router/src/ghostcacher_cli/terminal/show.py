"""`ghostcacher status` and `ghostcacher top`."""

from __future__ import annotations

import json
import time

import msgspec

from ghostcacher_cli.terminal.fleet import RouterClient, RouterUnreachable, Snapshot, decoded, is_well
from ghostcacher_cli.terminal.render import fleet_lines, framed
from ghostcacher_cli.terminal.screen import Screen, is_interactive
from ghostcacher_cli.terminal.text import printable
from ghostcacher_connector.core.admin_api import Status

REFRESH_S = 1.0
TOP_TIMEOUT_S = 1.0
FOOTER = "q or Ctrl-C ends"
EXIT_TROUBLE = 1


def show_status(url: str, token: str | None, *, as_json: bool = False) -> int:
    """Print a fleet once. Return 0 when all is well with it, else 1.

    Raises RouterUnreachable, ConfigError.
    """
    client = RouterClient(url, token)
    if as_json:
        documents = client.documents()
        print(json.dumps(documents, indent=2))
        return 0 if is_well(decoded(msgspec.json.encode(documents["status"]), Status)) else EXIT_TROUBLE
    snapshot = client.snapshot(time.monotonic())
    print(*fleet_lines(snapshot), sep="\n")
    return 0 if is_well(snapshot.status) else EXIT_TROUBLE


def show_top(url: str, token: str | None) -> int:
    """Show a fleet anew each second until a person ends it. Where there is no terminal, print it once."""
    if not is_interactive():
        return show_status(url, token)
    client = RouterClient(url, token, timeout_s=TOP_TIMEOUT_S)
    before: Snapshot | None = None
    with Screen() as screen:
        try:
            while True:
                now, lines = _look(client, before)
                width, height = screen.size
                screen.draw(framed(lines, width=width, height=height, footer=FOOTER))
                before = now
                if "q" in screen.key(REFRESH_S).lower():
                    return 0
        except (KeyboardInterrupt, EOFError):
            return 0


def _look(client: RouterClient, before: Snapshot | None) -> tuple[Snapshot | None, list[str]]:
    """Return what there is to see: the fleet, or why it cannot be seen."""
    try:
        now = client.snapshot(time.monotonic())
    except RouterUnreachable as exc:
        return None, [printable(str(exc))]
    return now, fleet_lines(now, before)
