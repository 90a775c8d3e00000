"""Real vLLM and SGLang servers as context managers."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from http.client import HTTPException
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Self

from benchmarks.harness import launch, sglang
from benchmarks.harness.client import Client, ServerError
from benchmarks.harness.launch import EngineOptions, placed
from benchmarks.harness.sglang import SglangClient, SglangOptions
from ghostcacher_cli.up.diagnosis import answers, exit_text, explain
from ghostcacher_cli.up.machine import free_port, require_memory
from ghostcacher_connector.core.process.guarded import GuardedProcess

POLL_S = 0.25
PORT_ATTEMPTS = 3
END_TIMEOUT_S = 5.0
"""A server whose engine process is gone answers with errors for a moment before it ends, too."""
Progress = Callable[[str], None]
Options = EngineOptions | SglangOptions

ADVICE = "a smaller model (--size tiny), fewer tokens (--tokens), or a smaller KV cache (--kv-tokens)"


class EngineStartError(RuntimeError):
    """An engine ended before it was ready, or took too long; the message has the end of its log."""


class EngineEnded(RuntimeError):
    """An engine that was ready has ended; the message says how, and has the end of its log."""


class Engine(AbstractContextManager["Engine"]):
    """One server with an OpenAI-compatible API on loopback. Starts when constructed; see `wait_ready`."""

    def __init__(self, options: Options) -> None:
        """Launch the server and return at once. Raises NotEnoughMemory."""
        self.options = options
        self._launcher = _launcher(options)
        require_memory(self._launcher.memory_needed_gib(options), f"engine {options.name}", ADVICE)
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
        if isinstance(self.options, SglangOptions):
            return SglangClient(self.url, model=self.options.served_name)
        return Client(self.url, model=launch.ADAPTER if self.options.adapter else self.options.served_name)

    @property
    def log(self) -> Path:
        return self.process.log

    def _launch(self) -> None:
        self._attempts += 1
        self.port = free_port()
        log = self._log_dir / f"{self.options.name}-{os.getpid()}-{self.port}.log"
        argv, env = self._launcher.command_line(self.options, self.port), self._launcher.environment(self.options)
        self.process = GuardedProcess(argv, log=log, env=env)

    def check_ready(self) -> bool:
        """Say whether the server answers. Raises EngineStartError when it never will."""
        if self.ready_s is not None:
            return True
        if (status := self.process.poll()) is not None:
            if "address already in use" not in self.process.log_tail(400) or self._attempts >= PORT_ATTEMPTS:
                raise EngineStartError(self._failure(f"{exit_text(status)} before it was ready"))
            self._launch()
        elif answers(f"{self.url}/health"):
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

    def require_running(self) -> None:
        """Raise EngineEnded when the server has ended."""
        if (status := self.process.poll()) is not None:
            raise EngineEnded(self._failure(exit_text(status)))

    def _failure(self, what: str) -> str:
        return explain(f"engine {self.options.name} {what}.", self.process.log_tail(400), self.log)


def start_many(options: Sequence[Options], progress: Progress | None = None) -> list[Engine]:
    """Start engines side by side, each on cores or a GPU of its own, and return them ready.

    On failure none is left running. Fewer GPUs than engines: they share, each with its part of the memory.
    """
    needed = sum(_launcher(option).memory_needed_gib(option) for option in options)
    require_memory(needed, f"{len(options)} engines together", ADVICE)
    with ExitStack() as undo:
        engines = [undo.enter_context(Engine(option)) for option in placed(options)]
        wait_all_ready(engines, progress)
        undo.pop_all()
        return engines


@contextmanager
def watching(engines: Sequence[Engine]) -> Iterator[None]:
    """Raise EngineEnded in place of a client's error that an engine's end has caused."""
    try:
        yield
    except (ServerError, OSError, HTTPException):
        deadline = time.monotonic() + END_TIMEOUT_S
        while time.monotonic() < deadline:
            for engine in engines:
                engine.require_running()
            time.sleep(POLL_S)
        raise


def _launcher(options: Options) -> ModuleType:
    """Return what knows how such an engine is started."""
    return sglang if isinstance(options, SglangOptions) else launch


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
