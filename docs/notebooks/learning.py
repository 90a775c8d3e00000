"""What the notebooks share: a fleet to ask, texts to ask about, and how long they may take.

`open_fleet` runs `ghostcacher up` with a private Redis, and ends both with the notebook. The model has random weights
and is made here: it talks nonsense, and costs what a real one of its size costs.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from tokenizers import Tokenizer

from benchmarks.harness import Client, Completion, GuardedProcess, RedisServer, ensure_model, free_port
from benchmarks.harness.model import standard_library_texts
from benchmarks.harness.scenario import block_tokens, nudge
from ghostcacher.client import GhostCacherClient, GhostCacherError, PromptRequest

T = TypeVar("T")

SHORT = os.environ.get("GHOSTCACHER_NOTEBOOKS") == "short"
"""Whether the notebooks run in their short form: a tiny model, few and short prompts."""

SIZE = "tiny" if SHORT else "small"
"""Of the model: 5 or 205 million parameters."""

JOINED = "GHOSTCACHER_NOTEBOOKS_FLEET"
"""Variable that names a fleet that `open_fleet` made elsewhere, as the URLs of its router and its Redis."""

CONTEXT_TOKENS = 4096 if SHORT else 9216
START_TIMEOUT_S = 600.0
WAIT_S = 60.0
POLL_S = 0.1
CHARACTERS_PER_TOKEN_MAX = 12
SETTINGS = {
    "GC_PULL": "always",  # whatever the forecast: so short a prompt of so small a model is computed about as fast
    "GC_LOOKUP_DEADLINE_MS": "1000",  # a laptop that is busy is late, and a late look-up is a miss
    "VLLM_SERVER_DEV_MODE": "1",  # lets a notebook empty an engine's cache
    "HF_HUB_OFFLINE": "1",
}
"""What engines are started with beyond the defaults. For measuring: a real fleet keeps the defaults."""


class Fleet(AbstractContextManager["Fleet"]):
    """Engines, a router and a Redis. engines: a measuring client for each engine, in the order of their names."""

    def __init__(self, router_url: str, redis_url: str, *owned: GuardedProcess | RedisServer) -> None:
        """owned: what ends with this fleet, in this order."""
        self.router_url = router_url
        self.redis_url = redis_url
        self.model_folder = ensure_model(SIZE)
        self._owned = owned
        self._tokenizer = Tokenizer.from_file(str(self.model_folder / "tokenizer.json"))
        self.router = GhostCacherClient(provider="openai", ghostcacher_url=router_url)
        workers = sorted(self.router.admin.workers(), key=lambda worker: worker.id)
        self.names = [worker.id for worker in workers]
        self.engines = [Client(worker.url) for worker in workers]
        self.block_tokens = block_tokens(self.engines[0].metrics())

    def __repr__(self) -> str:
        return f"Fleet({self.router_url}, {len(self.engines)} engines, {self.redis_url})"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __enter__(self) -> Self:
        return self

    def close(self) -> None:
        """End what was started for this fleet. Idempotent."""
        self.router.close()
        for each in self._owned:
            each.stop()

    def text(self, tokens: int, *, seed: int) -> str:
        """Return a text of about so many tokens. Texts of different seeds share no prefix."""
        ids: list[int] = []
        for source in standard_library_texts():
            ids += self._tokenizer.encode(source[: tokens * CHARACTERS_PER_TOKEN_MAX]).ids
            if len(ids) >= tokens:
                break
        return f"Document {seed:08x}.\n" + self._tokenizer.decode(ids[: tokens - 8])

    def compute_and_publish(self, engine: Client, prompt: str, *, max_tokens: int = 4) -> Completion:
        """Have an engine compute a prompt, and return its answer once the index holds the prompt's blocks."""
        before = engine.metrics().sum("gc_published_entries_total")
        answer = engine.complete(prompt, max_tokens=max_tokens, pull=False)
        expected = before + answer.prompt_tokens // self.block_tokens

        def published() -> bool:
            nudge(engine)  # an engine shows what it has counted with its next step
            return engine.metrics().sum("gc_published_entries_total") >= expected

        wait_until(published, "the index to hold the prompt's blocks")
        return answer

    def wait_until_held(self, request: PromptRequest) -> None:
        """Return once the router knows of a worker that holds a part of a prompt: workers tell, beside their work."""
        wait_until(
            lambda: any(worker.local_tokens for worker in self.router.admin.explain(request).workers),
            "the router to know who holds the prompt",
        )


def open_fleet(*, workers: int) -> Fleet:
    """Return a fleet of so many engines, or more, that are warm and know each other: the one that is named, or a new one.

    Raises RuntimeError, with the end of the log, when it does not start.
    """
    if urls := os.environ.get(JOINED):
        return Fleet(*urls.split())
    redis, port = RedisServer(), free_port()
    log = Path(tempfile.mkdtemp(prefix="ghostcacher-notebook-")) / "up.log"
    command = ["ghostcacher", "up", str(ensure_model(SIZE)), "--workers", str(workers), "--port", str(port)]
    command += ["--redis-url", redis.url, "--kv-gib", "1", "--served-model-name", "m", "--enforce-eager"]
    command += ["--max-model-len", str(CONTEXT_TOKENS), "--enable-prompt-tokens-details"]
    print("$", *command, f"\n(40 s on two idle cores; its output: {log})")
    up = GuardedProcess(
        [sys.executable, "-m", "ghostcacher_cli.main", *command[1:]], log=log, env={**os.environ, **SETTINGS}
    )
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(up, url, workers)
        fleet = Fleet(url, redis.url, up, redis)
        _warm_up(fleet)
    except BaseException:
        up.stop()
        redis.stop()
        raise
    return fleet


def wait_until(condition: Callable[[], T], what: str, *, timeout_s: float = WAIT_S) -> T:
    """Return the first true value of a condition. Raises TimeoutError that says what was awaited."""
    deadline = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)
    return value


def _wait_until_ready(up: GuardedProcess, url: str, workers: int) -> None:
    def ready() -> bool:
        if up.poll() is not None:
            raise RuntimeError(f"`ghostcacher up` has ended:\n{up.log_tail(40)}")
        try:
            return client.admin.status().workers.get("ready", 0) >= workers
        except GhostCacherError:  # it does not listen yet
            return False

    with GhostCacherClient(provider="openai", ghostcacher_url=url, retries_max=0) as client:
        wait_until(ready, f"{workers} engines to be ready; see {up.log}", timeout_s=START_TIMEOUT_S)


def _warm_up(fleet: Fleet) -> None:
    """Have engines do once what takes longer the first time, and wait until each knows all others."""
    for engine in fleet.engines:
        engine.complete(fleet.text(CONTEXT_TOKENS // 2, seed=0), max_tokens=2, pull=False)
        engine.reset_prefix_cache()

    def joined(engine: Client) -> bool:
        nudge(engine)
        return engine.metrics().sum("gc_peers_live") >= len(fleet.engines) - 1

    for engine in fleet.engines:
        wait_until(lambda engine=engine: joined(engine), f"{engine} to know the other engines")
