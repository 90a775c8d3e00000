"""How SGLang servers of tests and benchmarks are started, and a client of their native API. Starts nothing.

They run in a virtual environment of their own (`make setup-sglang`), without a GPU by tests/support/sglang_cpu.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.harness.client import Client, Completion, Prompt, ServerError
from benchmarks.harness.launch import READY_TIMEOUT_S
from ghostcacher_cli.up.launch import memory_needed_gib as host_memory_gib
from ghostcacher_cli.up.machine import core_shares
from ghostcacher_cli.up.sglang import linker_arguments, server_command

ROOT = Path(__file__).resolve().parents[2]
SHIM = ROOT / "tests" / "support" / "sglang_cpu"
SETTLE_S = 1.2
"""The linker hands its metrics over twice a second."""


def sglang_python() -> Path:
    """Return the interpreter that SGLang is installed for. It need not exist."""
    return Path(os.environ.get("GHOSTCACHER_SGLANG_PYTHON") or ROOT / ".venv-sglang" / "bin" / "python")


class SglangOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to start one SGLang engine.

    model: folder. connector: None for a plain engine, else GhostCacher's settings. pool_tokens: size of the KV pool.
    tp: ranks, on cores of their own. cores: of one rank, such as "0,1"; None: any, and one thread computes.
    overlap: schedule while the last batch computes.
    """

    model: str
    connector: Mapping[str, Any] | None = None
    name: str = "engine"
    served_name: str = "m"
    context_tokens: int = 8192
    pool_tokens: int = 16384
    page_tokens: int = 16
    chunk_tokens: int = 2048
    running_max: int = 16
    tp: int = 1
    dtype: str = "float32"
    overlap: bool = False
    cores: str | None = None
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    log_dir: Path | None = None
    ready_timeout_s: float = READY_TIMEOUT_S


CPU_ARGUMENTS = ("--device", "cpu", "--attention-backend", "torch_native", "--sampling-backend", "pytorch")


def command_line(options: SglangOptions, port: int) -> list[str]:
    """Return the command that starts the server."""
    pairs = {
        "--served-model-name": options.served_name,
        "--dtype": options.dtype,
        "--context-length": options.context_tokens,
        "--max-total-tokens": options.pool_tokens,
        "--page-size": options.page_tokens,
        "--chunked-prefill-size": options.chunk_tokens,
        "--max-running-requests": options.running_max,
        "--tp-size": options.tp,
    }
    flags = ["--enable-metrics", "--enable-cache-report", "--skip-server-warmup", *CPU_ARGUMENTS]
    if not options.overlap:
        flags.append("--disable-overlap-schedule")
    if options.connector is not None:
        flags += linker_arguments(options.connector, port)
    values = [text for flag, value in pairs.items() for text in (flag, str(value))]
    return server_command(options.model, port, [*values, *flags, *options.extra_args], python=str(sglang_python()))


def environment(options: SglangOptions) -> dict[str, str]:
    """Return the server's environment: the stand-ins for a GPU's libraries on its path, and no network."""
    path = os.pathsep.join(filter(None, [str(SHIM), str(ROOT), os.environ.get("PYTHONPATH")]))
    shares = core_shares(options.tp) if options.tp > 1 else [options.cores or "all"]
    threads = len(shares[0].split(",")) if options.cores or options.tp > 1 else 1
    added = {"SGLANG_USE_CPU_ENGINE": "1", "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
    added |= {"OMP_NUM_THREADS": str(threads), "SGLANG_CPU_OMP_THREADS_BIND": "|".join(shares)}
    return {**os.environ, "PYTHONPATH": path, **added, **options.env}


def memory_needed_gib(options: SglangOptions) -> float:
    """Estimate the memory of one engine in GiB."""
    return host_memory_gib(options.model, 0) * options.tp


class SglangClient(Client):
    """Speaks SGLang's native API: token ids in, token ids and log-probabilities out.

    A model that is named "MODEL:ADAPTER", as SGLang's OpenAI API has it, is the model with a LoRA adapter.
    """

    def complete(
        self,
        prompt: Prompt,
        *,
        max_tokens: int = 16,
        temperature: float = 0.0,
        request_id: str | None = None,
        cache_salt: str | None = None,
        pull: bool | None = None,  # noqa: ARG002 - SGLang cannot be told
        **extra: Any,
    ) -> Completion:
        sampling = {"max_new_tokens": max_tokens, "temperature": temperature, "ignore_eos": True, **extra}
        body: dict[str, Any] = {"sampling_params": sampling, "return_logprob": True, "stream": True}
        body |= {"text": prompt} if isinstance(prompt, str) else {"input_ids": list(prompt)}
        body |= {"rid": request_id} if request_id else {}
        body |= {"extra_key": cache_salt} if cache_salt else {}
        adapter = self.model.partition(":")[2]
        body |= {"lora_path": adapter} if adapter else {}
        reply = self._post("/generate", body, {})
        first, event, now = math.nan, {}, math.nan
        for event in reply.events():
            if "error" in event:
                raise ServerError(f"stream ended with an error: {event['error']}")
            now = time.perf_counter()
            first = now if math.isnan(first) else first
        return _completion(event, first - reply.start, now - reply.start)

    def openai(self, prompt: Prompt, **options: Any) -> Completion:
        """Complete by the OpenAI API, as through a router; without token ids."""
        return super().complete(prompt, **options)

    def update_weights(self, model: str, *, flush: bool = True) -> None:
        """Load the weights of a folder into the running engine. flush: forget its cached prefixes, too."""
        self._json(self._post("/update_weights_from_disk", {"model_path": model, "flush_cache": flush}, {}))

    def flush(self) -> None:
        """Make the engine forget its own cached prefixes. Raises ServerError while requests are under way."""
        self._post("/flush_cache", {}, {}).read()

    def settle(self) -> None:
        """Wait until the metrics page shows what has happened."""
        time.sleep(SETTLE_S)


def _completion(event: Mapping[str, Any], ttft_s: float, total_s: float) -> Completion:
    meta = event.get("meta_info")
    if not isinstance(meta, dict):
        raise ServerError(f"expected an answer with meta_info, got {json.dumps(event)[:500]}")
    tokens = meta["output_token_logprobs"]
    return Completion(
        text=event["text"],
        tokens=tuple(token for _, token, *_ in tokens),
        logprobs=tuple(logprob for logprob, *_ in tokens),
        ttft_s=ttft_s,
        total_s=total_s,
        prompt_tokens=meta["prompt_tokens"],
        completion_tokens=meta["completion_tokens"],
        cached_tokens=meta["cached_tokens"],
        finish_reason=(meta["finish_reason"] or {}).get("type"),
    )
