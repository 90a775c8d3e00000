"""A small client of OpenAI-compatible servers, which measures what it sees.

Standard library only, one thread a request. Every completion is streamed, so that the time to the first token is the
client's own measurement.
"""

from __future__ import annotations

import http.client
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

Prompt = str | Sequence[int]
Item = TypeVar("Item")
Answer = TypeVar("Answer")

TIMEOUT_S = 300.0


class ServerError(RuntimeError):
    """The server refused a request; the message has its status and answer."""


class Completion(NamedTuple):
    """What came back for one prompt.

    tokens: ids; empty when the server does not give them. logprobs: of the chosen tokens, natural logarithm.
    ttft_s, total_s: from before the connection was made to the first token, to the last. cached_tokens: of the prompt,
    as the engine reports it (local and pulled together), None when it does not. gaps_s: between the events that brought
    tokens, one fewer than there were. began_at: on the clock of time.perf_counter. worker: chosen by a router, and
    forecast_ms, the TTFT that it has forecast there, as its headers say; None without a router.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    ttft_s: float
    total_s: float
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None
    finish_reason: str | None
    gaps_s: tuple[float, ...] = ()
    began_at: float = 0.0
    worker: str | None = None
    forecast_ms: float | None = None


class Difference(NamedTuple):
    """How two answers to one prompt compare. logprob_max: largest distance over the tokens before they part."""

    same_tokens: bool
    logprob_max: float

    @property
    def identical(self) -> bool:
        """Equal to the last bit that the API shows."""
        return self.same_tokens and self.logprob_max == 0.0


class Client:
    """Speaks to one server. Stateless: may be used from any thread."""

    def __init__(self, url: str, *, model: str = "m", timeout_s: float = TIMEOUT_S) -> None:
        self.url = url
        self.model = model
        self._timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Client({self.url})"

    def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        request_id: str | None = None,
        cache_salt: str | None = None,
        pull: bool | None = None,
        **extra: Any,
    ) -> Completion:
        """Complete a text or a list of token ids. Raises ServerError, OSError.

        pull: False asks GhostCacher not to pull for this request. extra: further fields of the request's body.
        """
        body = {
            "model": self.model,
            "prompt": prompt if isinstance(prompt, str) else list(prompt),
            "max_tokens": max_tokens,
            "temperature": temperature,
            "logprobs": 0,
            "return_token_ids": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            **extra,
        }
        if cache_salt is not None:
            body["cache_salt"] = cache_salt
        if pull is not None:
            body["kv_transfer_params"] = {"gc_pull": pull}
        headers = {"X-Request-Id": request_id} if request_id else {}
        return _Stream(self._post("/v1/completions", body, headers)).completion()

    def chat(self, messages: Sequence[dict[str, Any]], *, max_tokens: int = 16, **extra: Any) -> dict[str, Any]:
        """Return the whole answer of one chat completion, not streamed."""
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens, "temperature": 0.0, **extra}
        return self._json(self._post("/v1/chat/completions", body, {}))

    def ask(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole answer to a request of any kind. Raises ServerError, OSError."""
        return self._json(self._post(path, dict(body), {}))

    def tokenize(self, text: str) -> list[int]:
        """Return the server's token ids of a text."""
        return list(self._json(self._post("/tokenize", {"model": self.model, "prompt": text}, {}))["tokens"])

    def metrics(self) -> Metrics:
        """Return the server's metrics page."""
        return metrics(self.url, timeout_s=self._timeout_s)

    def call_ranks(self, method: str, *args: str) -> list[Any]:
        """Call a method on every rank; return their answers (needs VLLM_SERVER_DEV_MODE=1, which the harness sets)."""
        return list(self._json(self._post("/collective_rpc", {"method": method, "args": list(args)}, {}))["results"])

    def reset_prefix_cache(self, *, deadline_s: float = 60.0) -> None:
        """Make the engine forget its own cached prefixes (needs VLLM_SERVER_DEV_MODE=1, which the harness sets).

        Blocks of requests that are just ending are still held: asks again until the deadline, then raises ServerError.
        """
        deadline = time.monotonic() + deadline_s
        while True:
            answer = self._post("/reset_prefix_cache", None, {}).read()
            if not answer or json.loads(answer).get("success", True):
                return
            if time.monotonic() > deadline:
                raise ServerError(f"{self.url}: prefix cache not reset within {deadline_s} s: blocks are in use")
            time.sleep(0.05)

    def _post(self, path: str, body: dict[str, Any] | None, headers: dict[str, str]) -> _Reply:
        return _request(
            self.url + path,
            "POST",
            b"" if body is None else json.dumps(body).encode(),
            {"Content-Type": "application/json", **headers},
            timeout_s=self._timeout_s,
        )

    def _json(self, reply: _Reply) -> dict[str, Any]:
        answer: dict[str, Any] = json.loads(reply.read())
        return answer


class _Reply:
    """An answer that is being read; closes its connection when it ends."""

    def __init__(
        self, connection: http.client.HTTPConnection, response: http.client.HTTPResponse, start: float
    ) -> None:
        self._connection, self._response, self.start = connection, response, start

    def header(self, name: str) -> str | None:
        return self._response.getheader(name)

    def read(self) -> bytes:
        try:
            return self._response.read()
        finally:
            self._connection.close()

    def events(self) -> Iterator[dict[str, Any]]:
        """Yield the data of each server-sent event, up to ``[DONE]``."""
        try:
            for line in self._response:
                if line.startswith(b"data: ") and line.strip() != b"data: [DONE]":
                    yield json.loads(line[6:])
        finally:
            self._connection.close()


def _request(url: str, method: str, body: bytes | None, headers: dict[str, str], *, timeout_s: float) -> _Reply:
    start = time.perf_counter()
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request(method, parts.path, body, headers)
        response = connection.getresponse()
        if response.status != http.HTTPStatus.OK:
            raise ServerError(
                f"{method} {url}: status {response.status}: {response.read(2000).decode(errors='replace')}"
            )
    except BaseException:
        connection.close()
        raise
    return _Reply(connection, response, start)


class _Stream:
    """Gathers one streamed completion."""

    def __init__(self, reply: _Reply) -> None:
        self._reply = reply
        self._text: list[str] = []
        self._tokens: list[int] = []
        self._logprobs: list[float] = []
        self._finish: str | None = None
        self._usage: dict[str, Any] = {}

    def completion(self) -> Completion:
        first = last = math.nan
        gaps_s = []
        for event in self._reply.events():
            if "error" in event:
                raise ServerError(f"stream ended with an error: {event['error']}")
            if event["choices"]:
                now = time.perf_counter()
                if math.isnan(first):
                    first = now
                else:
                    gaps_s.append(now - last)
                last = now
                self._add(event["choices"][0])
            self._usage = event.get("usage") or self._usage
        start, forecast_ms = self._reply.start, self._reply.header("x-gc-forecast-ms")
        details = self._usage.get("prompt_tokens_details") or {}
        return Completion(
            text="".join(self._text),
            tokens=tuple(self._tokens),
            logprobs=tuple(self._logprobs),
            ttft_s=first - start,
            total_s=last - start,
            prompt_tokens=int(self._usage.get("prompt_tokens", 0)),
            completion_tokens=int(self._usage.get("completion_tokens", 0)),
            cached_tokens=details.get("cached_tokens"),
            finish_reason=self._finish,
            gaps_s=tuple(gaps_s),
            began_at=start,
            worker=self._reply.header("x-gc-worker"),
            forecast_ms=None if forecast_ms is None else float(forecast_ms),
        )

    def _add(self, choice: dict[str, Any]) -> None:
        self._text.append(choice.get("text") or "")
        self._tokens += choice.get("token_ids") or []
        self._logprobs += (choice.get("logprobs") or {}).get("token_logprobs") or []
        self._finish = choice.get("finish_reason") or self._finish


def compare(one: Completion, other: Completion) -> Difference:
    """Compare two answers token by token; log-probabilities up to and including the first token that differs."""
    pairs = list(zip(one.tokens, other.tokens, strict=False))
    agreed = next((index for index, (a, b) in enumerate(pairs) if a != b), len(pairs))
    distances = [abs(a - b) for a, b in zip(one.logprobs[: agreed + 1], other.logprobs[: agreed + 1], strict=False)]
    return Difference(one.tokens == other.tokens, max(distances, default=math.inf))


def run_concurrently(work: Callable[[Item], Answer], items: Iterable[Item], *, concurrency: int) -> list[Answer]:
    """Return work(item) for each item, in order, at most `concurrency` at a time. The first error is raised."""
    with ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="client") as pool:
        return list(pool.map(work, items))


class Metrics:
    """One reading of a Prometheus page: (name, labels) -> value."""

    def __init__(self, samples: dict[tuple[str, frozenset[tuple[str, str]]], float]) -> None:
        self.samples = samples

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum over all series of this name that carry these labels; 0 when there are none."""
        wanted = set(labels.items())
        return sum(value for (found, held), value in self.samples.items() if found == name and wanted <= held)

    def has(self, name: str) -> bool:
        return any(found == name for found, _ in self.samples)

    def names(self, prefix: str = "") -> list[str]:
        return sorted({name for name, _ in self.samples if name.startswith(prefix)})

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sums of a name, by the value of one label."""
        found: dict[str, float] = {}
        for (series, held), value in self.samples.items():
            if series == name:
                key = dict(held).get(label, "")
                found[key] = found.get(key, 0.0) + value
        return found


def metrics(url: str, *, timeout_s: float = 10.0) -> Metrics:
    """Read the metrics page of a server: `url` is its base URL."""
    return parse_metrics(_request(url + "/metrics", "GET", None, {}, timeout_s=timeout_s).read().decode())


def parse_metrics(text: str) -> Metrics:
    """Parse the Prometheus text format; timestamps of creation are left out."""
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415

    return Metrics(
        {
            (sample.name, frozenset(sample.labels.items())): float(sample.value)
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
    )
