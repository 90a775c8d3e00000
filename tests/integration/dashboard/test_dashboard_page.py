"""The dashboard in a real browser, before a real router whose fleet serves traffic."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("playwright.sync_api")

from benchmarks.harness.router import RouterProcess
from tests.integration.dashboard.conftest import NAMES, Open
from tests.support.shown_fleet import ask

SYSTEM = "You answer from the documents that you are given. " * 100
DOCUMENT = "The fleet shares its cache. " * 400
READY = "() => document.querySelector('#state').textContent === 'ready'"
PHONE = {"width": 360, "height": 740}
CONTRAST = Path(__file__).with_name("contrast.js").read_text()
"""The text with the least contrast with what is behind it, behind that contrast."""

BODY = {"model": "m", "messages": [{"role": "user", "content": DOCUMENT}]}


def traffic(url: str, rounds: int = 3) -> None:
    for number in range(rounds):
        ask(url, f"Question {number}?", system=SYSTEM, documents=[DOCUMENT])


def test_page_shows_the_fleet_and_follows_it(router: RouterProcess, show: Open) -> None:
    """What comes while it is open is seen without a reload: figures, charts, prefixes with holders, misses."""
    window = show(router.url)
    window.until(READY)
    page = window.page
    assert [tile.inner_text().split("\n")[0] for tile in page.locator("#fleet button").all()] == list(NAMES)
    assert page.locator("#fleet button").first.locator("svg").count() == 2  # KV, and the host tier
    traffic(router.url)
    window.until("() => document.querySelectorAll('#forecast-chart circle.answer').length >= 3")
    window.until("() => document.querySelector('#ttft-chart path.one').getAttribute('d').length > 10")
    window.until("() => /[1-9]/.test(document.querySelector('#figures div:nth-child(2) dd').textContent)")
    window.until("() => [...document.querySelectorAll('#prefixes .tag')].some((tag) => tag.textContent === 'doc')")
    window.until("() => document.querySelectorAll('#prefixes .chip').length > 0")
    assert {chip.inner_text() for chip in page.locator("#prefixes .chip").all()} <= set(NAMES)
    # What workers had missed before this router looked at them first is not new.
    ask(router.url, "And this?", system=SYSTEM, documents=["Something else. " * 400])
    window.until("() => document.querySelector('#misses').textContent.includes('not indexed')")
    assert page.locator("#links td").count() == len(NAMES) ** 2
    assert "GB/s" in window.text("#links-about")
    page.locator("#sections button", has_text="sys").click()
    assert {tag.inner_text() for tag in page.locator("#prefixes .tag").all()} == {"sys"}


def test_page_outlives_a_restart_of_the_router(router: RouterProcess, show: Open) -> None:
    """It says that nobody answers, goes on by itself, and keeps what it has drawn."""
    window = show(router.url)
    traffic(router.url)
    drawn = "() => document.querySelector('#ttft-chart path.one').getAttribute('d').length"
    window.until(f"() => ({drawn})() > 10")
    before = window.text("#router")
    router.stop()
    window.until("() => document.querySelector('#state').textContent === 'no connection'")
    window.until("() => document.querySelector('#notice').textContent.includes('asked again')")
    router.start()
    window.until(READY)
    assert window.text("#router") != before
    assert window.page.evaluate(drawn) > 10
    window.page.wait_for_selector("#notice", state="hidden")
    router.wait_workers(len(NAMES))


def test_page_rests_while_nobody_looks(router: RouterProcess, show: Open) -> None:
    """Paused it asks for nothing; then it goes on."""
    window = show(router.url)
    window.until(READY)
    window.page.click("#pause")
    window.until("() => document.querySelector('#state').textContent === 'paused'")
    window.page.wait_for_load_state("networkidle")
    asked = len(window.asked)
    window.page.clock.install()
    window.page.clock.run_for(60_000)
    assert len(window.asked) == asked
    with window.page.expect_request("**/gc/status"):
        window.page.click("#pause")
    window.until(READY)


def test_request_is_explained(router: RouterProcess, show: Open) -> None:
    """By keyboard alone: every worker's forecast, term by term; what is wrong with a body is said in its place."""
    window = show(router.url)
    page = window.page
    window.until(READY)
    page.focus("#body")
    page.keyboard.type("{no json")
    page.keyboard.press("Control+Enter")
    window.until("() => document.querySelector('#explain-error').textContent.startsWith('The body is no JSON')")
    page.fill("#body", json.dumps(BODY))
    page.keyboard.press("Control+Enter")
    window.until("() => document.querySelectorAll('#explained tbody tr').length === 2")
    page.wait_for_selector("#explain-error", state="hidden")
    assert "compute" in window.text("#explained .legend")
    rows = [row.locator("td").all_inner_texts() for row in page.locator("#explained tbody tr").all()]
    assert {row[0] for row in rows} == set(NAMES)
    assert all(row[5] != "0" or row[3] != "0" for row in rows), rows
    page.fill("#body", json.dumps(BODY | {"model": "nobody's"}))
    page.click("text=Explain >> nth=-1")
    window.until("() => document.querySelector('#explain-error').textContent.includes(\"nobody's\")")
    step = {"total_ms": 1.0, "compute_ms": 1.0}
    both = {"path": "/v1/completions", "workers": [step | {"worker": "d"}], "prefill": [step | {"worker": "p"}]}
    page.route("**/gc/explain*", lambda route: route.fulfill(json=both))
    page.fill("#body", json.dumps(BODY))
    page.keyboard.press("Control+Enter")
    window.until("() => document.querySelectorAll('#explained h3').length === 2")
    chips = page.locator("#explained p .chip").all_inner_texts()
    assert chips == ["p", "d"]


def test_keyboard_reaches_everything(router: RouterProcess, show: Open) -> None:
    """Tab goes to all that can be used, arrows through workers and values; Enter opens a worker, Escape closes it."""
    window = show(router.url)
    page = window.page
    traffic(router.url, 1)
    window.until("() => document.querySelector('#ttft-chart path.one').getAttribute('d').length > 10")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    wanted = {"range", "pause", "theme", "find", "order", "body", "path"}
    seen: list[str] = []
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.id || document.activeElement.className.baseVal || ''"))
    assert wanted <= set(seen)
    assert "lines" in seen, "charts can be read by keyboard"
    assert page.evaluate("[...document.querySelectorAll('#fleet [tabindex=\"0\"]')].length") == 1
    page.locator("#fleet button").first.focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.textContent").startswith(NAMES[1])
    page.keyboard.press("Enter")
    page.wait_for_selector("#worker")
    assert window.text("#worker-title") == NAMES[1]
    window.until("() => document.querySelector('#worker-links table') !== null")
    page.keyboard.press("Escape")
    page.wait_for_selector("#worker", state="hidden")
    assert page.evaluate("document.activeElement.textContent").startswith(NAMES[1])
    page.locator("#ttft-chart svg.lines").focus()
    page.keyboard.press("ArrowLeft")
    assert window.text("#ttft-chart .when").startswith("at ")
    page.keyboard.press("Escape")
    assert window.text("#ttft-chart .when") == ""


def test_closed_dialog_takes_no_focus_back(router: RouterProcess, show: Open) -> None:
    """Who is elsewhere when the browser says that the dialog is closed, which comes later, stays there."""
    window = show(router.url)
    page = window.page
    window.until(READY)
    page.locator("#fleet button").first.click()
    page.wait_for_selector("#worker")
    page.evaluate(
        """() => new Promise((resolve) => {
            document.querySelector("#worker").addEventListener("close", resolve);
            document.querySelector("#worker").close();
            document.querySelector("#find").focus();
        })"""
    )
    assert page.evaluate("document.activeElement.id") == "find"


def test_chart_keeps_the_moment_that_is_read(router: RouterProcess, show: Open) -> None:
    """Newer steps that come and older ones that leave do not move it; with its own step the reading ends."""
    window = show(router.url)
    page = window.page
    window.until(READY)
    page.click("#pause")
    read = page.evaluate(
        """async () => {
            const { LineChart } = await import("/gc/ui/line-chart.js");
            const place = document.querySelector("#hits-chart");
            place.replaceChildren();
            const lines = [{ name: "value", kind: "one", of: (step) => step.value }];
            const chart = new LineChart(place, { label: "Values", lines, format: String });
            const step = (end) => ({ end, at: end, value: end / 10, width: 10 });
            const read = [];
            const show = (...ends) => {
                chart.update(ends.map(step), ends[ends.length - 1], 60);
                read.push([place.querySelector("strong").textContent, place.querySelector(".when").textContent !== ""]);
            };
            show(10, 20, 30);
            chart.drawing.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
            show(10, 20, 30);
            show(10, 20, 30, 40);
            show(20, 30, 40);
            chart.drawing.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight" }));
            show(20, 30, 40, 50);
            show(40, 50);
            return read;
        }"""
    )
    assert read == [["3", False], ["2", True], ["2", True], ["2", True], ["3", True], ["5", False]]


@pytest.mark.parametrize("scheme", ["dark", "light"])
def test_both_themes_can_be_read(router: RouterProcess, show: Open, scheme: str) -> None:
    """As the system is set, or as a person chooses, also after a reload; texts have the contrast of WCAG AA."""
    # Colours that are still changing are not looked at.
    window = show(router.url, color_scheme=scheme, reduced_motion="reduce")
    page = window.page
    window.until(READY)
    ground = "getComputedStyle(document.body).backgroundColor"
    own = page.evaluate(ground)
    assert page.evaluate(CONTRAST) >= [4.5]
    other = "light" if scheme == "dark" else "dark"
    while other not in window.text("#theme"):
        page.click("#theme")
    assert page.evaluate(ground) != own
    page.reload()
    window.until(READY)
    assert page.evaluate(ground) != own
    assert page.evaluate(CONTRAST) >= [4.5]


def test_phone_shows_all_of_it(router: RouterProcess, show: Open) -> None:
    """No part is wider than the screen, and what is touched is large enough."""
    window = show(router.url, viewport=PHONE, has_touch=True, is_mobile=True)
    page = window.page
    traffic(router.url, 1)
    window.until("() => document.querySelectorAll('#prefixes tbody tr').length > 0")
    page.fill("#body", json.dumps(BODY))
    page.tap("text=Explain >> nth=-1")
    window.until("() => document.querySelectorAll('#explained tbody tr').length === 2")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    heights = "(all) => all.filter((one) => one.checkVisibility()).map((one) => one.clientHeight)"
    assert min(page.eval_on_selector_all("button, select, input", heights)) >= 24
    page.locator("#fleet button").first.tap()
    page.wait_for_selector("#worker")
    assert page.evaluate("document.querySelector('#worker').getBoundingClientRect().right") <= PHONE["width"]
