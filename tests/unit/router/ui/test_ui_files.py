"""The dashboard's files, as a browser gets them."""

from __future__ import annotations

import re

import pytest

from ghostcacher_router.ui import ui_files
from ghostcacher_router.ui.files import PAGE
from tests.unit.architecture import ROOT

STATIC = ROOT / "router" / "src" / "ghostcacher_router" / "ui" / "static"
FILES = sorted(path for path in STATIC.iterdir())
LINES_MAX = 300
MARKUP_SINKS = re.compile(
    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|createContextualFragment|DOMParser|srcdoc|\beval\b|"
    r"new Function|setTimeout\(\s*['\"`]|javascript:|\.href\s*=|\.src\s*=|localStorage\.setItem\((?!THEME\b)"
)
ELSEWHERE = re.compile(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w")


def body_of(path: str) -> str:
    return ui_files()[path].body.decode()


def test_every_file_is_served_and_named_by_another_one() -> None:
    """Nothing is left over, and nothing is missing: what the page and the scripts name is there."""
    served = set(ui_files()) - {f"{PAGE}/"}
    assert served == {PAGE, *(f"{PAGE}/{path.name}" for path in FILES if path.name != "index.html")}
    named = {f"/gc/{name}" for name in re.findall(r'(?:src|href)="(ui/[^"]+)"', body_of(PAGE))}
    for path in served:
        if path.endswith(".js"):
            named |= {f"{PAGE}/{name}" for name in re.findall(r'from "\./([^"]+)"', body_of(path))}
    assert named == served - {PAGE}


@pytest.mark.parametrize("path", sorted(ui_files()))
def test_headers_hold_the_browser(path: str) -> None:
    """No inline script, no other site, no frame, no guessing of types, nothing kept."""
    response = ui_files()[path]
    if path == f"{PAGE}/":
        assert (response.status, dict(response.headers)[b"location"]) == (308, b"../ui")
        return
    headers = {name.decode(): value.decode() for name, value in response.headers}
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[name] for name in ("script-src", "style-src", "img-src", "connect-src")} == {"'self'"}
    assert {policy[name] for name in ("base-uri", "form-action", "frame-ancestors", "trusted-types")} == {"'none'"}
    assert policy["require-trusted-types-for"] == "'script'"
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["cache-control"] == "no-store"
    assert headers["content-type"].endswith("charset=utf-8") or path.endswith(".svg")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_file_makes_no_markup_and_names_no_other_site(path: str) -> None:
    """What comes from data becomes text; nothing is loaded from elsewhere; no file holds two ideas."""
    text = STATIC.joinpath(path).read_text()
    assert MARKUP_SINKS.findall(text) == []
    assert ELSEWHERE.findall(text) == []
    assert text.isascii()
    assert len(text.splitlines()) <= LINES_MAX


def test_page_has_nothing_inline() -> None:
    """A browser under the policy would not run it."""
    page = body_of(PAGE)
    assert re.findall(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=", page) == []


def test_page_labels_what_it_asks_for() -> None:
    """Every id that a script looks for is there, once; every field has a label."""
    page = body_of(PAGE)
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    asked = {
        name for path in ui_files() if path.endswith(".js") for name in re.findall(r'byId\("([^"]+)"\)', body_of(path))
    }
    assert asked <= {*ids, "worker-links"}
    for field in re.findall(r"<(?:select|textarea|input)\b[^>]*>", page):
        name = re.search(r'id="([^"]+)"', field)
        assert name
        labelled = f'for="{name[1]}"' in page or re.search(rf'<label[^>]*>[^<]*\s*<\w+ id="{name[1]}"', page)
        assert labelled, field
