"""A real router before a simulated engine, and three ways to use the clients: each test runs with all of them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from tests.integration.sdk.drivers import Ask, AsyncPython, Driver, Node, Result, SyncPython
from tests.support.spoken_engine import SpokenEngine
from tests.unit.architecture import ROOT

TYPESCRIPT = ROOT / "sdk" / "typescript"
BUILD_TIMEOUT_S = 600.0


@pytest.fixture(scope="session")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """@ghostcacher/client as npm would install it, built from this tree; skips where Node or tsc is not."""
    if shutil.which("node") is None or not (TYPESCRIPT / "node_modules").is_dir():
        pytest.skip("needs Node and TypeScript: install nodejs and npm, and run make test-sdk")
    folder = tmp_path_factory.mktemp("node") / "node_modules" / "@ghostcacher" / "client"
    folder.mkdir(parents=True)
    build = ["node", TYPESCRIPT / "build.mjs", folder / "dist"]
    done = subprocess.run(build, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copy(TYPESCRIPT / "package.json", folder)
    return folder


@pytest.fixture(scope="session", params=["python", "asyncio", "node"])
def driver(request: pytest.FixtureRequest) -> Iterator[Driver]:
    kinds = {"python": SyncPython, "asyncio": AsyncPython}
    with closing(
        Node(request.getfixturevalue("package")) if request.param == "node" else kinds[request.param]()
    ) as used:
        yield used


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RouterProcess, SpokenEngine]]:
    with (
        RedisServer(tcp=True) as redis,
        SpokenEngine(redis.url, "w") as engine,
        RouterProcess(redis_url=redis.url, log_dir=tmp_path_factory.mktemp("router")) as router,
    ):
        yield router.wait_workers(1), engine


class Used:
    """A client, by one driver, of the router before an engine. engine: what came of it there."""

    def __init__(self, driver: Driver, url: str, engine: SpokenEngine) -> None:
        self._driver, self._url, self.engine = driver, url, engine

    def __call__(
        self,
        call: str = "messages.create",
        *,
        client: dict[str, Any] | None = None,
        options: dict[str, Any] | None = None,
        stop_after: int | None = None,
        **given: Any,
    ) -> Result:
        """Use it. Where no provider is named it is OpenAI's; where a call of an engine has no prompt, it gets one."""
        setup = {"provider": "openai", "ghostcacher_url": self._url, "retries_max": 0} | (client or {})
        if not call.startswith("admin."):
            given = {"model": "m", **given}
            if call == "completions.create":
                given = {"prompt": "p", **given}
            else:
                given = {"messages": [{"role": "user", "content": "Why?"}], **given}
        return self._driver(Ask(setup, call, given, options or {}, stop_after))


@pytest.fixture
def use(driver: Driver, fleet: tuple[RouterProcess, SpokenEngine]) -> Used:
    router, engine = fleet
    return Used(driver, router.url, engine)


@pytest.fixture
def use_directly(driver: Driver, fleet: tuple[RouterProcess, SpokenEngine]) -> Used:
    """The same without the router between, which would mend some failures."""
    return Used(driver, fleet[1].url, fleet[1])
