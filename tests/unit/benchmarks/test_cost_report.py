"""CPU time by threads, and what is made of it."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from benchmarks.harness.cost_report import Pair, Turn, as_json, report
from benchmarks.harness.cpu_time import ENDED, Group, Use, snapshot, used
from ghostcacher_connector.core.threads import daemon_thread
from tests.support.index_parts import wait_until

SPIN_S = 0.05
MAIN, OURS = Group("engine core", "main"), Group("engine core", "gc-publisher")


def spin() -> None:
    """Compute for some time, by this thread's own clock."""
    until = time.thread_time() + SPIN_S
    while time.thread_time() < until:
        pass


def test_thread_is_charged_with_what_it_ran() -> None:
    """What a thread has computed is found under its name, and its waits as wake-ups."""
    turns, go_on, done = 3, threading.Semaphore(0), threading.Semaphore(0)

    def work() -> None:
        for _ in range(turns):
            go_on.acquire()
            done.release()
        spin()
        done.release()
        go_on.acquire()

    thread = daemon_thread("gc-test", work)
    thread.start()
    before = snapshot({"me": [os.getpid()]})
    for _ in range(turns):
        go_on.release()
        done.acquire()
    done.acquire()
    found = used(before, snapshot({"me": [os.getpid()]}))[Group("me", "gc-test")]
    go_on.release()
    thread.join()
    assert found.cpu_s >= 0.9 * SPIN_S
    assert found.wakeups >= 1


def test_thread_that_ended_is_charged_to_its_process() -> None:
    """A thread that is gone when it is looked for has computed all the same."""
    before = snapshot({"me": [os.getpid()]})
    thread = threading.Thread(target=spin)
    thread.start()
    folder = Path(f"/proc/self/task/{thread.native_id}")
    thread.join()
    wait_until(lambda: not folder.exists(), what="the kernel to let go of the thread")
    assert used(before, snapshot({"me": [os.getpid()]}))[Group("me", ENDED)].cpu_s >= 0.9 * SPIN_S


def test_process_that_is_gone_is_left_out() -> None:
    """Processes end while they are looked at."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    empty = snapshot({"gone": [child]})
    assert used(empty, empty) == {}


def test_part_of_a_thread_is_counted_by_itself() -> None:
    """What is measured inside a thread is taken from it, and the sum stays what it was."""
    main, part = Group("me", "main"), Group("me", "gc-calls")
    before = snapshot({"me": [os.getpid()]}).split(main, part, Use(0.0, 0))
    spin()
    after = snapshot({"me": [os.getpid()]})
    whole, split = used(before, after), used(before, after.split(main, part, Use(0.01, 7)))
    assert split[part] == Use(0.01, 7)
    assert split[main].cpu_s == pytest.approx(whole[main].cpu_s - 0.01)


def pair(plain_s: float, shared_s: float, publisher_s: float) -> Pair:
    plain = Turn({MAIN: Use(plain_s, 10)}, 1.0)
    return Pair(plain, Turn({MAIN: Use(shared_s, 10), OURS: Use(publisher_s, 4)}, 1.0))


def test_report_says_what_is_added_in_all_and_by_whom() -> None:
    """The cost is that of all threads together; ours have lines of their own."""
    pairs = [pair(1.0, 1.01, 0.02), pair(2.0, 2.02, 0.04), pair(1.0, 0.99, 0.02)]
    lines = {
        line.split("  ")[0]: line.split() for line in report(pairs, tokens=1000).replace("  gc", "gc").splitlines()
    }
    assert lines["all"][1:4] == ["500.00", "515.00", "+3.00%"]
    assert lines["all"][4:7] == ["+1.00%", "to", "+3.00%"]
    assert lines["direct"][1:4] == ["0.00", "10.00", "+2.00%"]
    assert lines["gc-publisher"][1:4] == ["0.00", "10.00", "+2.00%"]
    assert lines["gc-publisher"][-2:] == ["0", "2"]
    assert as_json(pairs, {}, {})["cost"]["median"] == pytest.approx(0.03)


def test_turns_add_up() -> None:
    """Two turns are one with the sums of their threads, also of those that only one had."""
    both = Turn({MAIN: Use(1.0, 2)}, 1.0) + Turn({MAIN: Use(2.0, 3), OURS: Use(0.5, 1)}, 2.0)
    assert both == Turn({MAIN: Use(3.0, 5), OURS: Use(0.5, 1)}, 3.0)
    assert both.all == Use(3.5, 6)
