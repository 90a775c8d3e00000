"""The dashboard in a real browser: who may look, and what strangers could do through what it shows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from benchmarks.harness.redis_server import RedisServer
from benchmarks.harness.router import RouterProcess
from tests.integration.dashboard.conftest import Open
from tests.support.browser import Window
from tests.support.shown_fleet import ManyWorkers

TOKEN = "correct horse battery staple"
READY = "() => document.querySelector('#state').textContent === 'ready'"
MANY = 512
MARKUP = "<img/src=x/onerror=alert(1)>"
MODEL = "<b/onclick=alert(4)>model</b>"
SCRIPT = "'\"><script>alert(2)</script>"
BACKWARDS = "\u202egnirts"
LONG = "w" * 200
ATTEMPTS = Path(__file__).with_name("attempts.js").read_text()
HOSTILE = (MARKUP, SCRIPT.replace(" ", "/"), BACKWARDS, LONG, "__proto__", "constructor", "javascript:alert(3)")


@pytest.fixture(scope="module")
def guarded(redis: RedisServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RouterProcess]:
    """A router with a token, before workers with names that somebody chose to do harm, and many others."""
    folder: Path = tmp_path_factory.mktemp("guarded")
    names = [*HOSTILE, *(f"worker-{number:03}" for number in range(MANY - len(HOSTILE)))]
    env = {"GC_ROUTER_ADMIN_TOKEN": TOKEN}
    slow = ("--health-interval-s", "60")
    with (
        ManyWorkers(redis.url, names, models=[MODEL, "m"]),
        RouterProcess(redis_url=redis.url, log_dir=folder, env=env, arguments=slow) as router,
    ):
        yield router


def sign_in(window: Window, token: str = TOKEN) -> None:
    window.page.wait_for_selector("#login[open]")
    window.page.fill("#token", token)
    window.page.keyboard.press("Enter")


def test_wrong_token_shows_nothing(guarded: RouterProcess, show: Open) -> None:
    """It is asked for again, and is in this tab alone: not in an address, a cookie, or what browsers keep for long."""
    window = show(guarded.url)
    page = window.page
    sign_in(window, "wrong")
    window.until("() => document.querySelector('#login-error').textContent.includes('refused')")
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    page.wait_for_selector("#login[open]")  # A second Escape closes it for a moment.
    assert page.locator("#fleet button").count() == 0
    sign_in(window, "\u00fcber")
    window.until("() => document.querySelector('#login-error').textContent.includes('ASCII')")
    assert page.evaluate("sessionStorage.length") == 0
    sign_in(window)
    window.until(READY)
    page.wait_for_selector("#login", state="hidden")
    assert page.evaluate("Object.values(sessionStorage)") == [TOKEN]
    assert TOKEN not in page.evaluate("JSON.stringify(localStorage) + document.cookie + location.href")
    assert not [url for url in window.asked if "correct" in url]
    assert page.evaluate("document.querySelector('#token').value") == ""
    page.click("#sign-out")
    page.wait_for_selector("#login[open]")
    assert page.evaluate("sessionStorage.length") == 0


def test_512_workers_are_one_picture(guarded: RouterProcess, show: Open) -> None:
    """A square each, of which the keyboard reaches any; one is found by name, and shows its tiers."""
    window = show(guarded.url)
    page = window.page
    sign_in(window)
    window.until(f"() => document.querySelectorAll('#fleet .square').length === {MANY}")
    window.until(f"() => document.querySelectorAll('#fleet .square.ready').length === {MANY - 1}")
    assert f"{MANY - 1} ready" in window.text("#fleet-legend")
    assert "1 not routable" in window.text("#fleet-legend")
    assert f"of {MANY}" in window.text("#figures")
    page.locator("#fleet [tabindex='0']").focus()
    page.keyboard.press("End")
    last = page.evaluate("document.activeElement.getAttribute('aria-label')")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") != last
    page.keyboard.press("Home")
    assert page.evaluate("document.querySelectorAll('#fleet [tabindex=\"0\"]').length") == 1
    page.fill("#find", "worker-123")
    window.until("() => document.querySelectorAll('#fleet button').length === 1")
    page.locator("#fleet button").click()
    assert window.text("#worker-title") == "worker-123"
    tiers = [row.locator("td").first.inner_text() for row in page.locator("#worker-body tbody tr").all()]
    assert tiers[:3] == ["engine", "host", "object"]
    assert "malformed" not in window.text("#worker-body")
    page.keyboard.press("Escape")
    page.fill("#find", "")
    page.select_option("#order", "kv")
    heat = "(all) => all.map((one) => Number(/heat-(.)/.exec(one.className)[1]))"
    shown = page.eval_on_selector_all("#fleet .square.ready", heat)
    assert shown == sorted(shown, reverse=True)
    assert shown[0] == 4


def test_hostile_names_stay_text(guarded: RouterProcess, show: Open) -> None:
    """Names of workers and models, and what a prompt makes the router say: shown as they are, and never obeyed."""
    window = show(guarded.url)
    page = window.page
    sign_in(window)
    window.until(f"() => document.querySelectorAll('#fleet button').length === {MANY}")
    for name in HOSTILE:
        page.fill("#find", name)
        window.until("() => document.querySelectorAll('#fleet button').length === 1")
        page.locator("#fleet button").click()
        assert page.locator("#worker-title").text_content() == name
        # Of a name that no header can carry the router says so, and asks for no models.
        expected = "not routable" if name == BACKWARDS else MODEL
        assert expected in (page.locator("#worker-body").text_content() or "")
        page.keyboard.press("Escape")
    page.fill("#find", "")
    page.fill("#body", json.dumps({"model": "m", "messages": [{"role": "user", "content": SCRIPT}]}))
    page.press("#body", "Control+Enter")
    window.until("() => document.querySelectorAll('#explained tbody tr').length > 0")
    page.fill("#body", json.dumps({"model": SCRIPT, "messages": [{"role": "user", "content": "x"}]}))
    page.press("#body", "Control+Enter")
    window.until("() => document.querySelector('#explain-error').textContent.includes('alert(2)')")
    assert page.locator("main img, main script, main a[href]:not(.skip), dialog img").count() == 0
    assert page.evaluate(
        "[...document.querySelectorAll('*')].every((one) => ![...one.attributes].some((a) => a.name.startsWith('on')))"
    )
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_browser_holds_the_page_to_its_policy(guarded: RouterProcess, show: Open) -> None:
    """Should a script get in all the same, it is not run, text becomes no markup, and nothing leaves for elsewhere."""
    window = show(guarded.url)
    page = window.page
    tried = page.evaluate(ATTEMPTS)
    assert tried["ran"] is None
    assert (tried["inner"], tried["script"], tried["elsewhere"]) == ("TypeError", "TypeError", "TypeError")
    assert {"connect-src", "img-src", "require-trusted-types-for"} <= set(tried["told"])
    # The browser's complaints about what this test has tried, and nothing else.
    assert all("Content Security Policy" in trouble or "trusted" in trouble.lower() for trouble in window.troubles)
    window.troubles.clear()
    window.asked[:] = [url for url in window.asked if ":9/" not in url]
