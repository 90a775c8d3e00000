"""What long and hostile bodies do to everybody else at the router: /health meanwhile, CPU time, memory.

    python -m benchmarks.router_bodies [--short]

A router and mock engines in C, each on a core. While a body of 60 MiB is sent and answered, /health is asked for over
a connection that stays open, again and again; so it is, too, while fifty bodies of 20 MB come at once.
- worst: the slowest answer of /health. What it is with nothing else to do is printed first.
- loop CPU: what the router's main thread computed for this body. other CPU: its other threads, and its child's.
- peak: resident memory of the router, and of its child, at most.
"""

from __future__ import annotations

import argparse
import http.client
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from benchmarks.harness.program import run_program
from benchmarks.harness.report import ProgressLine, mebibytes, milliseconds, percentile, table
from benchmarks.harness.router import RouterProcess
from benchmarks.proxy.long_bodies import CHAT, LongBody, hostile_bodies, text_body
from benchmarks.proxy.running import Mocks, two_cores

ANSWER_S_MAX = 300.0
MANY = 50
MB = 1_000_000
MIB = 1 << 20
PAUSE_S = 0.002
"""Between two questions for /health."""


class Use(NamedTuple):
    """What processes have used. loop_s, other_s: CPU time. peak_bytes: of each, since it was last reset."""

    loop_s: float
    other_s: float
    peak_bytes: tuple[int, ...]


class Watched:
    """The router's process and its child."""

    def __init__(self, router: RouterProcess) -> None:
        self._router = router

    def use(self) -> Use:
        """Return what was used so far. The child is always the last."""
        loop_s, other_s, peaks = 0.0, 0.0, []
        for number, pid in enumerate(self._pids()):
            for task in Path(f"/proc/{pid}/task").iterdir():
                with suppress(FileNotFoundError):
                    seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
                    if number == 0 and task.name == str(pid):
                        loop_s += seconds
                    else:
                        other_s += seconds
            status = Path(f"/proc/{pid}/status").read_text()
            peaks.append(int(status.split("VmHWM:")[1].split()[0]) << 10)
        return Use(loop_s, other_s, tuple(peaks))

    def reset_peaks(self) -> None:
        for pid in self._pids():
            Path(f"/proc/{pid}/clear_refs").write_text("5")

    def _pids(self) -> list[int]:
        processes = self._router.process.processes()
        return [pid for pid in processes if "ghostcacher" in Path(f"/proc/{pid}/cmdline").read_text()]


class Health:
    """Asks for /health until it is left. seconds: what each answer took."""

    def __init__(self, port: int) -> None:
        self.seconds: list[float] = []
        self._port = port
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Health:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=ANSWER_S_MAX)
        while not self._ended.wait(PAUSE_S):
            began = time.perf_counter()
            connection.request("GET", "/health")
            connection.getresponse().read()
            self.seconds.append(time.perf_counter() - began)
        connection.close()


def post(port: int, body: LongBody) -> str:
    """Send a body; return the status, or what went wrong."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_S_MAX)
    try:
        connection.request("POST", body.path, body.body, {"content-type": "application/json"})
        response = connection.getresponse()
        response.read()
        return str(response.status)
    except (OSError, http.client.HTTPException) as exc:
        return type(exc).__name__
    finally:
        connection.close()


def measure_one(port: int, watched: Watched, body: LongBody) -> list[str]:
    watched.reset_peaks()
    before = watched.use()
    with Health(port) as health:
        began = time.perf_counter()
        status = post(port, body)
        took = time.perf_counter() - began
    after = watched.use()
    return [
        body.name,
        mebibytes(len(body.body)),
        status,
        milliseconds(took),
        milliseconds(max(health.seconds)),
        milliseconds(after.loop_s - before.loop_s),
        milliseconds(after.other_s - before.other_s),
        " + ".join(map(mebibytes, after.peak_bytes)),
    ]


def measure_many(port: int, watched: Watched, size: int) -> list[str]:
    watched.reset_peaks()
    body = LongBody("", CHAT, text_body(size))
    statuses: list[str] = []
    threads = [threading.Thread(target=lambda: statuses.append(post(port, body))) for _ in range(MANY)]
    with Health(port) as health:
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
    counts = ", ".join(f"{statuses.count(status)} x {status}" for status in sorted(set(statuses)))
    return [
        f"{MANY} x {size / MB:.0f} MB",
        counts,
        milliseconds(took),
        *(milliseconds(percentile(health.seconds, rank)) for rank in (50, 99)),
        milliseconds(max(health.seconds)),
        " + ".join(map(mebibytes, watched.use().peak_bytes)),
    ]


def run(chosen: argparse.Namespace, progress: ProgressLine) -> int:
    """Measure and print; return 0."""
    cores = two_cores()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gc-bodies-")))
        mocks = Mocks(stack, folder, cores.others, 2)
        mocks.set(chunks=1, gap_us=0)
        os.sched_setaffinity(0, {cores.proxy, cores.others})
        workers = [f"http://127.0.0.1:{port}" for port in mocks.ports]
        router = stack.enter_context(RouterProcess(workers=workers, log_dir=folder)).wait_workers(2)
        watched = Watched(router)
        post(router.port, LongBody("", CHAT, text_body(MIB)))  # The child is started, and the connections are.
        with Health(router.port) as health:
            time.sleep(1.0)
        print(f"at rest: /health {milliseconds(max(health.seconds))} at worst")
        rows = []
        for body in hostile_bodies((8 if chosen.short else 60) * MIB):
            progress(body.name)
            rows.append(measure_one(router.port, watched, body))
        progress.done("one hostile body")
        print(table(["body", "size", "status", "took", "worst", "loop CPU", "other CPU", "peak: router + child"], rows))
        many = measure_many(router.port, watched, (2 if chosen.short else 20) * MB)
        progress.done("many at once")
        print(table(["bodies", "statuses", "took", "/health p50", "p99", "worst", "peak: router + child"], [many]))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.router_bodies",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--short", action="store_true", help="smaller bodies")
    chosen = parser.parse_args(argv)
    return run_program(lambda: run(chosen, ProgressLine()))


if __name__ == "__main__":
    sys.exit(main())
