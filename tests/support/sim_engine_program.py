"""A program with one simulated engine on the vLLM of its Python: the other half of a fleet of two versions.

Arguments: name, folder of the model, URL of Redis, "share" or "apart". It computes one prompt and prints what came of
it as one line of JSON behind RESULT; then it stays in the fleet until its standard input ends.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.integration.connector.enginesim import SimEngine

PROMPT = list(range(90))
SETTINGS = {"pull": "always", "redis_timeout_s": 10.0, "lookup_deadline_ms": 30_000.0, "pull_timeout_s": 60.0}
LEASE_S = 60.0
SETTLE_S = 60.0
MARK = "RESULT "


def main() -> None:
    """Be one engine of a fleet."""
    name, model, url, how = sys.argv[1:]
    engine = SimEngine(name, Path(model), {"redis_url": url, "lease_ttl_s": LEASE_S, **SETTINGS})
    deadline = time.monotonic() + SETTLE_S
    while how == "share" and not engine.peers_ready(1) and time.monotonic() < deadline:
        time.sleep(0.05)
    engine.add("r", PROMPT)
    engine.run(timeout_s=SETTLE_S)
    result = {
        "outputs": engine.outputs("r"),
        "hits": engine.counted("gc_cache_hits_total"),
        "wrong": engine.wrong,
    }
    print(MARK + json.dumps(result), flush=True)
    sys.stdin.read()
    engine.close()


if __name__ == "__main__":
    main()
