"""Daemon threads that wait for a store: one that hangs must hold up neither an engine nor the end of its process."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from ghostcacher_connector.core.threads import daemon_thread

Result = TypeVar("Result")


class ReadThreads(Generic[Result]):
    """A few threads with a bounded queue. Thread-safe."""

    def __init__(self, count: int, *, waiting_max: int, name: str = "gc-obj-read") -> None:
        """name: how the threads are called, before their numbers."""
        self.count = count
        self._queue: queue.Queue[tuple[Future[Result], Callable[[], Result]] | None] = queue.Queue(waiting_max)
        self._closed = threading.Event()
        self._threads = [daemon_thread(f"{name}-{index}", self._run) for index in range(count)]
        for thread in self._threads:
            thread.start()

    def submit(self, read: Callable[[], Result]) -> Future[Result]:
        """Have `read` called; raises queue.Full when too many wait."""
        future: Future[Result] = Future()
        if self._closed.is_set():
            raise queue.Full
        self._queue.put_nowait((future, read))
        return future

    def close(self, deadline_s: float) -> None:
        """End the threads, and wait for that for at most `deadline_s`. Who waits for a read gets an error."""
        self._closed.set()
        while True:
            try:
                job = self._queue.get_nowait()
            except queue.Empty:
                break
            if job is not None:
                job[0].cancel()
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join(deadline_s / len(self._threads))

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            future, read = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(read())
            except BaseException as error:  # it is raised where the result is waited for
                future.set_exception(error)
            # Nothing of a read stays in memory while the thread waits for the next one.
            del job, future, read
