"""The hooks into SGLang: they apply to this version, never raise, and leave the calls that they see as they are."""

from __future__ import annotations

import argparse
import json
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from sglang.srt.server_args import ServerArgs

from ghostcacher_connector.engines.sglang import hooks


class Linker:
    """Notes its calls, or fails at every one."""

    kept_tokens = 32

    def __init__(self, *, fail: bool = False) -> None:
        self.fail = fail
        self.calls: list[Any] = []

    def __getattr__(self, name: str) -> Any:
        def note(*args: Any) -> None:
            if self.fail:
                raise RuntimeError("a bug")
            self.calls.append((name, *args))

        return note


@pytest.fixture
def linker() -> Iterator[Linker]:
    made: Any = Linker()
    hooks.set_linker(made)
    yield made
    hooks.set_linker(None)


@pytest.mark.parametrize("target", [target for target, _, _ in hooks.hooks()])
def test_target_exists_in_this_sglang(target: str) -> None:
    """Each hook names a function of the installed SGLang: one that moved would never be called."""
    assert callable(pkgutil.resolve_name(target))


def test_missing_hooks_are_named_until_they_are_applied() -> None:
    """The linker can say at start which hooks SGLang did not apply."""
    assert set(hooks.missing()) <= {target for target, _, _ in hooks.hooks()}


def test_hooks_call_the_linker(linker: Linker) -> None:
    """Each hook passes its part on."""
    hooks.request_queued("scheduler", "req")
    hooks.request_aborted(None, "scheduler", SimpleNamespace(rid="r"))
    hooks.abort_sent(None, "scheduler", "abort", SimpleNamespace(rid="r"))
    hooks.batch_begins("scheduler", "batch")
    hooks.batch_done(None, "scheduler", "batch", "result")
    hooks.scheduler_idles("scheduler")
    hooks.memory_is_short("batch")
    hooks.node_offered(SimpleNamespace(cache="cache"), "node")
    seen = ["queued", "ended", "ended", "batch_begins", "batch_done", "idle", "memory_is_short", "node_offered"]
    assert [name for name, *_ in linker.calls] == seen
    assert linker.calls[-1] == ("node_offered", "cache", "node")


class Queue:
    """As much of SGLang's scheduler as builds a batch: who is looked at, and who is left in the queue."""

    def __init__(self, *rids: str) -> None:
        self.waiting_queue = [SimpleNamespace(rid=rid) for rid in rids]
        self.running_batch = SimpleNamespace(batch_is_full=False)

    def build(self, room: int, late: str) -> tuple[list[str], Any]:
        """Take this many out of the queue, and put one request into it, as SGLang does with one that it preempts."""
        taken, self.waiting_queue = self.waiting_queue[:room], self.waiting_queue[room:]
        self.waiting_queue.append(SimpleNamespace(rid=late))
        return [req.rid for req in taken], self.running_batch

    def find_no_room(self) -> tuple[None, Any]:
        """Admit nobody, as SGLang does while its pool is full: it looks at nobody again until a request has ended."""
        self.running_batch.batch_is_full = True
        return None, self.running_batch

    @property
    def rids(self) -> list[str]:
        return [req.rid for req in self.waiting_queue]


@contextmanager
def waiting(*rids: str, kept_tokens: int = 0) -> Iterator[None]:
    """Have these requests wait. kept_tokens: of pages that pulls hold."""
    made: Any = SimpleNamespace(waits=lambda rid: rid in rids, kept_tokens=kept_tokens)
    hooks.set_linker(made)
    try:
        yield
    finally:
        hooks.set_linker(None)


def test_request_that_waits_is_in_no_batch_and_keeps_its_place() -> None:
    """Those behind it are computed."""
    queue = Queue("a", "b", "c", "d")
    with waiting("a", "c"):
        assert hooks.prefill_built(Queue.build, queue, room=1, late="e")[0] == ["b"]
    assert queue.rids == ["a", "c", "d", "e"]


@pytest.mark.parametrize(
    ("waits", "kept_tokens", "full"), [(("a",), 0, False), ((), 32, False), ((), 0, True), (("of before",), 0, True)]
)
def test_full_batch_is_looked_at_again_while_pulls_hold_pages(
    waits: tuple[str, ...], kept_tokens: int, full: bool
) -> None:
    """SGLang would admit no request before one that runs has ended, though the pages of a pull are free meanwhile."""
    queue = Queue("a", "b")
    with waiting(*waits, kept_tokens=kept_tokens):
        hooks.prefill_built(Queue.find_no_room, queue)
    assert queue.running_batch.batch_is_full is full


def test_queue_is_whole_again_where_no_batch_could_be_built() -> None:
    queue = Queue("a", "b")
    with waiting("b"), pytest.raises(TypeError):
        hooks.prefill_built(Queue.build, queue)
    assert queue.rids == ["a", "b"]


@pytest.mark.parametrize(("waits", "added"), [((), "admitted"), (("r",), "go on")])
def test_request_that_waits_does_not_end_the_search_for_others(waits: tuple[str, ...], added: str) -> None:
    adder = SimpleNamespace(budget_state=lambda: "go on")
    with waiting(*waits):
        assert hooks.request_added(lambda *_, **__: "admitted", adder, SimpleNamespace(rid="r"), 0) == added


def test_request_that_begins_to_wait_while_it_is_added_does_not_end_the_search_for_others() -> None:
    """SGLang says OTHER of one whose load has to be tried again, and looks at no other."""
    rids: list[str] = []
    made: Any = SimpleNamespace(waits=lambda rid: rid in rids)
    hooks.set_linker(made)
    try:
        adder = SimpleNamespace(budget_state=lambda: "go on")
        found = hooks.request_added(lambda *_: rids.append("r") or "other", adder, SimpleNamespace(rid="r"))
    finally:
        hooks.set_linker(None)
    assert found == "go on"


@pytest.mark.parametrize("name", hooks.WEIGHT_CHANGES)
def test_every_change_of_weights_is_told_before_it_happens(linker: Linker, name: str) -> None:
    """With the model whose weights they are, and the name of the call."""
    runner = SimpleNamespace(model_runner=SimpleNamespace(model="model"))
    _, hook, kind = next(each for each in hooks.hooks() if each[0].endswith(f".{name}"))
    hook(SimpleNamespace(tp_worker=runner), "request")
    assert kind == "before"
    assert linker.calls == [("weights_may_change", "model", name)]


def test_methods_called_by_name_are_told_unless_they_are_harmless(linker: Linker) -> None:
    """`Engine.collective_rpc` may call whatever the scheduler has."""
    scheduler = SimpleNamespace(tp_worker=SimpleNamespace(model_runner=SimpleNamespace(model="model")))
    for method in ("save_remote_model", "anything_else"):
        hooks.method_called(scheduler, SimpleNamespace(method=method))
    assert linker.calls == [("weights_may_change", "model", "anything_else")]


def test_every_way_to_change_weights_is_hooked() -> None:
    """A method that SGLang's weight updater gets one day is not overlooked."""
    updater = pkgutil.resolve_name(hooks.WEIGHTS)
    harmless = {
        *("check_weights", "destroy_weights_update_group", "get_weights_by_name", "init_weights_update_group"),
        *("flush_cache_after_weight_update", "record_weight_version_after_update"),
        *("save_remote_model", "save_sharded_model"),
    }
    methods = {name for name, value in vars(updater).items() if callable(value) and not name.startswith("_")}
    assert methods - harmless == set(hooks.WEIGHT_CHANGES)


def test_wrong_settings_end_the_process_where_flags_are_parsed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hook behind SGLang's parser lets nothing past it, guarded as it is."""
    monkeypatch.setenv("GC_PUL", "auto")
    _, hook, kind = next(each for each in hooks.hooks() if each[0].endswith("ServerArgs.from_cli_args"))
    args = ["--model-path", "m", "--enable-unified-cache-external-linker"]
    args += ["--unified-cache-external-linker-backend", "dynamic", "--unified-cache-external-linker-config"]
    args += [json.dumps({"linker": "GhostCacherLinker", "linker_module_path": "ghostcacher_connector.engines.sglang"})]
    parser = argparse.ArgumentParser()
    ServerArgs.add_cli_args(parser)
    result = ServerArgs.from_cli_args(parser.parse_args(args))
    with pytest.raises(SystemExit):
        hook(result)
    assert kind == "after"
    assert "unknown environment variable GC_PUL: did you mean GC_PULL?" in capsys.readouterr().err.splitlines()[-1]


def test_failing_linker_is_a_line_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """A bug of ours must not end SGLang's scheduler."""
    made: Any = Linker(fail=True)
    hooks.set_linker(made)
    try:
        hooks.request_queued("scheduler", "req")
    finally:
        hooks.set_linker(None)
    assert "hook request_queued: unexpected error" in caplog.text


def test_held_pages_count_as_in_use(linker: Linker) -> None:
    """SGLang's check of its pool sees them, or it would end the engine."""
    assert hooks.full_pool_checked(lambda _, __, uncached: uncached, "checker", "stats", 16) == 48


@pytest.mark.parametrize(
    ("given", "header", "expected"),
    [(None, "gc-7", "gc-7-"), ("own", "gc-7", "own"), (None, None, None), (None, "x" * 300, None)],
)
def test_request_is_named_as_its_router_does(given: str | None, header: str | None, expected: str | None) -> None:
    """Only where the client gave no name of its own, and never twice the same."""
    raw = SimpleNamespace(headers={"x-request-id": header} if header else {})
    requests = [SimpleNamespace(rid=given, prompt=[1]) for _ in range(2)]
    for request in requests:
        hooks.request_received("serving", request, raw)
    if expected is None or not expected.endswith("-"):
        assert [request.rid for request in requests] == [expected, expected]
    else:
        assert all(str(request.rid).startswith(expected) for request in requests)
        assert requests[0].rid != requests[1].rid


def test_requests_without_a_name_are_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    """A prompt to be tokenised has no id to set, and that is no error."""
    request = SimpleNamespace(prompt="a")
    hooks.request_received("serving", request, SimpleNamespace(headers={"x-request-id": "gc-7"}))
    assert not hasattr(request, "rid")
    assert caplog.text == ""


def test_embeddings_keep_the_engines_names() -> None:
    """One name for a batch of inputs would be refused with a 500."""
    request = SimpleNamespace(rid=None, input=["a", "b"])
    hooks.request_received("serving", request, SimpleNamespace(headers={"x-request-id": "gc-7"}))
    assert request.rid is None
