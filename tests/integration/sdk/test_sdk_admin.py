"""The router's own API, through the clients, typed as its schema says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.router import RouterProcess
from ghostcacher_connector import __version__
from tests.integration.sdk.conftest import Used

REQUEST = {"model": "m", "messages": [{"role": "user", "content": "Why? " * 500}], "documents": ["shared " * 500]}
ANTHROPIC = {"provider": "anthropic"}
TOKEN = "correct horse battery"


def test_status_stats_workers(use: Used) -> None:
    status = use("admin.status")
    assert (status["version"], status["ready"], status["models"]) == (__version__, True, ["m"])
    before = use("admin.stats")["requests"]["total"]
    use()
    assert use("admin.stats")["requests"]["total"] > before
    (worker,) = use("admin.workers")
    assert (worker["id"], worker["state"], worker["url"]) == ("w", "ready", use.engine.url)


def test_what_the_dashboard_shows(use: Used) -> None:
    """Typed as the schema says; what cannot be asked for is named before anything is sent, or by the router."""
    use(documents=["shared " * 500])
    history = use("admin.history")
    assert (history["router"], history["interval_s"]) == (use("admin.status")["router"], 5.0)
    assert use("admin.history", after=history["now"])["points"] == []
    found = use("admin.prefixes")
    assert found["seen"] > 0
    assert {"doc", "user"} <= {one["section"] for one in found["prefixes"]}
    assert use("admin.locks") == {"locks": [], "total": 0}
    assert use("admin.links", worker="w") == {"links": [], "readers": 1}
    assert use("admin.links", worker="no/body")["status"] == 404
    assert use("admin.history", after=-1)["field"] == "after"


@pytest.mark.parametrize(
    ("client", "path", "more"), [({}, "/v1/chat/completions", {}), (ANTHROPIC, "/v1/messages", {"max_tokens": 9})]
)
def test_explain_sends_nothing(use: Used, client: Any, path: str, more: Any) -> None:
    asked = len(use.engine.asked)
    explained = use("admin.explain", client=client, request=REQUEST | more)
    assert explained["path"] == path
    (forecast,) = explained["workers"]
    assert (forecast["worker"], forecast["computed_tokens"] + forecast["local_tokens"] > 0) == ("w", True)
    assert len(use.engine.asked) == asked


@pytest.mark.parametrize(("client", "more"), [({}, {}), (ANTHROPIC, {"max_tokens": 9})], ids=["openai", "anthropic"])
def test_prefetched_prompt_is_the_one_that_comes(use: Used, client: Any, more: Any) -> None:
    """Byte for byte, documents included; and it is the engine's to compute but once. All of its tokens are counted."""
    for _ in range(2):
        warmed = use("admin.prefetch", client=client, request=REQUEST | more, worker="w")
        assert (warmed["worker"], warmed["prompt_tokens"] > 1000) == ("w", True)
    assert warmed["prompt_tokens"] >= warmed["cached_tokens"] > 1000
    messages = use.engine.body()["messages"]
    answer = use(client=client, **REQUEST, **more)
    assert use.engine.body()["messages"] == messages
    assert answer["cache"]["cached_tokens"] > 1000


def test_drain_and_back(use: Used) -> None:
    drained = use("admin.drain", worker="w")
    try:
        assert (drained["draining"], drained["state"]) == (True, "draining")
        assert use()["status"] == 503
    finally:
        assert use("admin.undrain", worker="w")["draining"] is False
    assert "nobody" in use("admin.drain", worker="nobody/else?")["message"]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    with RouterProcess(env={"GC_ROUTER_ADMIN_TOKEN": TOKEN}, workers=["http://127.0.0.1:1"], log_dir=folder) as router:
        yield router


def test_token(use: Used, guarded: RouterProcess) -> None:
    """Without the right one the router tells nothing; the engines' key is none."""
    url = {"ghostcacher_url": guarded.url}
    assert use("admin.status", client=url | {"admin_token": TOKEN})["version"] == __version__
    for wrong in ({}, {"admin_token": "other"}, {"api_key": TOKEN}):
        assert use("admin.status", client=url | wrong)["status"] == 401


def test_flush_names_what_it_takes(use: Used, guarded: RouterProcess) -> None:
    """A request's documents are found, since its body says where they are; a wrong key is named by the router."""
    client = {"ghostcacher_url": guarded.url, "admin_token": TOKEN}
    assert use("admin.flush", client=client, scope="doc", request=REQUEST)["flushed"] == "doc"
    assert use("admin.flush", client=client, scope="session", session="alice")["flushed"] == "session"
    refused = use("admin.flush", client=client, scope="prefix", key="nothex")
    assert (refused["status"], refused["param"]) == (400, "key")
    refused = use("admin.flush", client=client, scope="doc", request=REQUEST | {"documents": []})
    assert (refused["status"], "expected documents" in refused["message"]) == (400, True)
    refused = use("admin.flush", client=client, scope="everything")
    assert (refused["error"], refused["field"]) == ("ArgumentError", "scope")
