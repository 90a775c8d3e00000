"""`ghostcacher up` with tiny HTTP servers for engines and router: everything else is real.

    python -m tests.support.up_program FOLDER MODEL [options of up...]

What each server does is written to FOLDER/journal. TINY_<NAME> in the environment: fail (end at once), stubborn (do
not listen to SIGTERM).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from unittest.mock import patch

from ghostcacher_cli.up import run
from ghostcacher_cli.up.arguments import UpOptions
from ghostcacher_cli.up.launch import Place
from ghostcacher_cli.up.plan import Command, EnginePlan, base_url

SERVER = """
import http.server, os, signal, sys
name, port, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
mode = os.environ.get("TINY_" + name.upper(), "")

def journal(word):
    with open(folder + "/journal", "a") as file:
        file.write(f"{word} {name} {os.getpid()}\\n")

def end(*_):
    journal("term")
    if mode != "stubborn":
        os._exit(0)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path in ("/health", "/ready") else 404)
        self.end_headers()

    def log_message(self, *_):
        print("asked for", self.path, flush=True)

signal.signal(signal.SIGTERM, end)
journal("start")
if mode == "fail":
    print("ValueError: there is no such model")
    sys.exit(1)
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""

FOLDER = sys.argv[1] if len(sys.argv) > 1 else ""


def tiny(name: str, port: int, url: str) -> Command:
    return Command((sys.executable, "-c", SERVER, name, str(port), FOLDER), dict(os.environ), url)


class TinyPlan(EnginePlan):
    def command(self, port: int) -> Command:
        return tiny(self.name, port, f"http://127.0.0.1:{port}")


def plan_engines(options: UpOptions, redis_url: str, environ: Mapping[str, str]) -> list[EnginePlan]:
    """Two or more tiny engines, somewhere."""
    Path(FOLDER, "redis").write_text(redis_url)
    names = [f"w{number}" for number in range(1, options.workers + 1)]
    return [TinyPlan(name, name, Place("somewhere", {}), options, environ) for name in names]


def plan_router(options: UpOptions, redis_url: str, environ: Mapping[str, str]) -> tuple[Command, float]:
    """A tiny router."""
    return tiny("router", options.port, base_url(options)), 5.0


if __name__ == "__main__":
    grace_s = float(os.environ.get("TINY_GRACE_S", "5"))
    with patch.multiple(run, plan_engines=plan_engines, plan_router=plan_router, ENGINE_GRACE_S=grace_s):
        sys.exit(run.main(sys.argv[2:], os.environ))
