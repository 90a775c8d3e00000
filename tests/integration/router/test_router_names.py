"""Workers that are known by host names, to a real router: what names that cannot be resolved do to the others."""

from __future__ import annotations

import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.harness.client import metrics
from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from tests.support.engine_process import EngineProcess
from tests.support.index_parts import wait_until

pytestmark = pytest.mark.skipif(shutil.which("gcc") is None, reason="no C compiler")

SOURCE = Path(__file__).parents[2] / "support" / "named_hosts.c"
PATIENCE_S = 60.0
OFTEN = ("--health-interval-s", "0.1", "--dns-refresh-s", "0.2", "--health-timeout-s", "30")


class Names:
    """What looks names up in place of the system. hanging, unknown: files; see named_hosts.c."""

    def __init__(self, folder: Path) -> None:
        self.hanging, self.unknown = folder / "hanging", folder / "unknown"
        library = folder / "named_hosts.so"
        command = ["gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
        subprocess.run(command, check=True, timeout=60)
        self.env = {"LD_PRELOAD": str(library), "HANGING": str(self.hanging), "UNKNOWN": str(self.unknown)}


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    found = Names(tmp_path)
    yield found
    found.hanging.unlink(missing_ok=True)


def state_of(router: RouterProcess, worker: str) -> str:
    return str({row["id"]: row["state"] for row in router.get("/gc/workers")["workers"]}[worker])


def ask(router: RouterProcess, prompt: str) -> str:
    """Return which worker answered a request, on a connection of its own."""
    body = json.dumps({"model": "m", "prompt": prompt}).encode()
    request = urllib.request.Request(f"{router.url}/v1/completions", body, {"Connection": "close"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310
        return str(reply.read().decode())


def test_names_that_hang_hold_up_nobody_else(names: Names, tmp_path: Path) -> None:
    """More of them than a pool of threads has: other names are resolved, and a worker that comes is READY."""
    names.hanging.touch()
    with ExitStack() as stack:
        good = EngineProcess(stack, tmp_path, "good", host="good.test")
        hanging = [f"http://slow{number}.test:9" for number in range(80)]
        router = stack.enter_context(
            RouterProcess(workers=[*hanging, good.url], arguments=OFTEN, env=names.env, log_dir=tmp_path)
        )
        router.wait_workers(1, deadline_s=PATIENCE_S)
        assert {ask(router, f"{number}") for number in range(20)} == {"good"}
        threads = len(list(Path(f"/proc/{router.process.pid}/task").iterdir()))
        assert threads < 80 + 40


def test_names_that_begin_to_hang_change_nothing(names: Names, tmp_path: Path) -> None:
    """Workers stay READY at their last good addresses, and take new connections."""
    with ExitStack() as stack:
        engines = [EngineProcess(stack, tmp_path, f"slow{number}", host=f"slow{number}.test") for number in range(6)]
        engines.append(EngineProcess(stack, tmp_path, "good", host="good.test"))
        router = stack.enter_context(
            RouterProcess(workers=[e.url for e in engines], arguments=OFTEN, env=names.env, log_dir=tmp_path)
        )
        router.wait_workers(len(engines), deadline_s=PATIENCE_S)
        names.hanging.touch()
        probes = metrics(router.url).sum("gc_router_probes_total")
        wait_until(
            lambda: metrics(router.url).sum("gc_router_probes_total") > probes + 10 * len(engines),
            timeout_s=PATIENCE_S,
            what="each worker is probed some more times",
        )
        answered = {ask(router, f"{number} " * 300) for number in range(60)}
        assert answered == {engine.name for engine in engines}
        assert {state_of(router, engine.id) for engine in engines} == {"ready"}
        assert metrics(router.url).sum("gc_router_refusals_total") == 0


def test_name_that_is_lost_keeps_its_address(names: Names, tmp_path: Path) -> None:
    """A name that the DNS no longer knows is still served at its last good address, and is said to be lost."""
    with ExitStack() as stack:
        lost = EngineProcess(stack, tmp_path, "lost", host="lost.test")
        router = stack.enter_context(
            RouterProcess(workers=[lost.url], arguments=OFTEN, env=names.env, log_dir=tmp_path)
        )
        router.wait_workers(1, deadline_s=PATIENCE_S)
        names.unknown.touch()
        wait_until(
            lambda: metrics(router.url).sum("gc_router_dns_lookups_total", result="kept") > 2,
            timeout_s=PATIENCE_S,
            what="the name is lost",
        )
        assert ask(router, "x") == "lost"
        assert state_of(router, lost.id) == "ready"
        assert "the name lost.test cannot be resolved" in router.process.log.read_text()


def test_name_of_redis_that_hangs_is_redis_that_is_away(names: Names, tmp_path: Path) -> None:
    """Requests are answered, a drain holds here at once, and Redis is used again as soon as its name resolves."""
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=True))
        engine = EngineProcess(stack, tmp_path, "engine")
        port = urlsplit(redis.url).port
        router = stack.enter_context(
            RouterProcess(
                redis_url=f"redis://slow.test:{port}",
                workers=[engine.url],
                arguments=[*OFTEN, "--redis-timeout-s", "0.1"],
                env=names.env,
                log_dir=tmp_path,
            )
        )
        router.wait_workers(1, deadline_s=PATIENCE_S)
        assert is_available(router)
        names.hanging.touch()
        redis.kill()  # So that connections are made anew.
        redis.start()
        wait_until(lambda: not is_available(router), timeout_s=PATIENCE_S, what="Redis is away")
        assert ask(router, "x" * 3000) == "engine"
        request = urllib.request.Request(f"{router.url}/gc/workers/{engine.id}/drain", b"")  # noqa: S310
        with urllib.request.urlopen(request, timeout=PATIENCE_S) as reply:  # noqa: S310
            assert json.loads(reply.read())["state"] == "draining"
        names.hanging.unlink()
        wait_until(lambda: is_available(router), timeout_s=PATIENCE_S, what="Redis is back")


def is_available(router: RouterProcess) -> bool:
    return metrics(router.url).sum("gc_router_redis_available") == 1.0
