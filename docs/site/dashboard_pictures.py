"""Makes the pictures of docs/operating/dashboard.md: of a real router before simulated engines that serve traffic.

    python docs/site/dashboard_pictures.py [SECONDS]     # of traffic before the pictures; 150 without

`make screenshots` does this. It needs what the tests of the dashboard need: tests/support/browser.py.
"""

from __future__ import annotations

import json
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from benchmarks.harness.redis_server import RedisServer  # noqa: E402
from benchmarks.harness.router import RouterProcess  # noqa: E402
from ghostcacher_simulator.engine import Profile  # noqa: E402
from tests.support.browser import Window, chromium  # noqa: E402
from tests.support.shown_fleet import ShownFleet, ask  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
WORKERS = tuple(f"gpu-{letter}{number}" for letter in "ab" for number in range(4))
PROFILE = Profile(kv_blocks=3000, prefill_tokens_per_s=6_000.0, decode_s=0.25, pull_bytes_per_s=4e9)
MODEL = "qwen3-32b"
CLIENTS = 10
POPULAR = 0.95
SYSTEMS = [
    f"You are the assistant of team {team}. Answer from the documents. " * 60 for team in ("red", "blue", "green")
]
WIDE = {"width": 1440, "height": 1120}
TALL = {"width": 1440, "height": 1500}
PHONE = {"width": 390, "height": 844}
READY = "() => document.querySelectorAll('#prefixes tbody tr').length > 3"


def document_text(number: int) -> str:
    return f"Document {number}: the terms of the contract are as follows. " * (90 + number % 7 * 40)


def one_client(url: str, number: int, ended: threading.Event) -> None:
    """Ask on documents, of which a few are popular and now and then one is new, until all is over."""
    rng = random.Random(number)  # noqa: S311 - which documents are asked for
    while not ended.is_set():
        popular = rng.random() < POPULAR
        document = min(int(rng.expovariate(0.15)), 60) if popular else rng.randrange(1000, 100_000)
        system = SYSTEMS[document % len(SYSTEMS)]
        ask(url, f"Question {rng.randrange(10_000)}?", system=system, documents=[document_text(document)], model=MODEL)
        ended.wait(rng.expovariate(0.8))


@contextmanager
def traffic(url: str) -> Iterator[None]:
    """Have clients ask all the time. Raises what a client met."""
    ended = threading.Event()
    with ThreadPoolExecutor(CLIENTS) as pool:
        clients = [pool.submit(one_client, url, number, ended) for number in range(CLIENTS)]
        try:
            yield
        finally:
            ended.set()
        for client in clients:
            client.result()


def window_of(browser: Any, url: str, **options: Any) -> Window:
    window = Window(browser, **options)
    window.open(url)
    window.page.select_option("#range", "300")
    window.until(READY)
    time.sleep(8)  # Until everything has been asked for twice: the charts are those of a page that stays open.
    return window


def take(window: Window, name: str, selector: str | None = None) -> None:
    path = PICTURES / f"dashboard-{name}.png"
    if selector is not None:
        window.page.evaluate(f"document.querySelector('{selector}').scrollIntoView()")
        window.page.evaluate("scrollBy(0, -70)")
    window.page.screenshot(path=path)
    # So many colours are enough, and the file is a third as large.
    Image.open(path).convert("RGB").quantize(192, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1024:.0f} KiB")


def main(seconds: float) -> None:
    """Run the fleet, and take the pictures."""
    folder = Path(tempfile.mkdtemp(prefix="ghostcacher-pictures-"))
    with ExitStack() as stack:
        redis = stack.enter_context(RedisServer(tcp=True))
        stack.enter_context(ShownFleet(redis.url, WORKERS, model=MODEL, profile=PROFILE, host_blocks=9000))
        router = stack.enter_context(RouterProcess(redis_url=redis.url, log_dir=folder)).wait_workers(len(WORKERS))
        browser = stack.enter_context(chromium())
        stack.enter_context(traffic(router.url))
        time.sleep(seconds)
        dark = window_of(browser, router.url, viewport=WIDE, color_scheme="dark")
        take(dark, "dark")
        dark.close(router.url)
        light = window_of(browser, router.url, viewport=TALL, color_scheme="light")
        texts = [("system", SYSTEMS[1]), ("user", document_text(1)), ("user", "What does the contract say of delays?")]
        messages = [{"role": role, "content": text} for role, text in texts]
        body = {"model": MODEL, "messages": messages, "metadata": {"gc_sections": "doc=1"}}
        light.page.fill("#body", json.dumps(body))
        light.page.press("#body", "Control+Enter")
        light.until("() => document.querySelectorAll('#explained tbody tr').length > 0")
        take(light, "light", "#prefixes-title")
        light.close(router.url)
        phone = window_of(browser, router.url, viewport=PHONE, color_scheme="dark", is_mobile=True, has_touch=True)
        take(phone, "phone")
        phone.close(router.url)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 150.0)
