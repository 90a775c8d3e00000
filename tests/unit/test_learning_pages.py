"""The numbers on pages that compute them are what their code prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.page_code import run_page
from tests.unit.architecture import ROOT

PAGES = [path for path in sorted((ROOT / "docs" / "learning").glob("*.md")) if "```python" in path.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.stem)
def test_page_says_what_its_code_prints(page: Path, tmp_path: Path) -> None:
    """Prices, formulas and defaults change; whoever changes one is told which page speaks of it."""
    results = run_page(page.read_text(), tmp_path)
    assert results, "no code of the page prints"
    for one in results:
        assert one.said == one.found, f"write it anew: python -m tests.support.page_code {page.relative_to(ROOT)}"


def test_pages_are_found() -> None:
    """A page that computes is on the list."""
    assert len(PAGES) > 1


def test_wrong_number_is_seen(tmp_path: Path) -> None:
    """What a page says beside what its code prints is compared with it, and is not taken from it."""
    (one,) = run_page("```python\nprint(6 * 7)\n```\n\n```text\n41\n```\n", tmp_path)
    assert (one.said, one.found) == ("41\n", "42\n")


@pytest.mark.parametrize("page", ["```python\nprint(1)\n```\n", "```text\n1\n```\n"], ids=["unsaid", "unprinted"])
def test_code_without_result_or_result_without_code_is_refused(page: str, tmp_path: Path) -> None:
    """A result that nothing prints would stand there for good, and one that is left out is compared with nothing."""
    with pytest.raises(AssertionError, match=r"on the page|behind no code"):
        run_page(page, tmp_path)


def test_shell_has_the_command_and_its_failure_is_told(tmp_path: Path) -> None:
    """Commands of a page run as a reader would run them, and one that fails is no result."""
    (one,) = run_page("```sh\nghostcacher version | head -n 1\n```\n```text\n```\n", tmp_path)
    assert one.found.startswith("ghostcacher ")
    with pytest.raises(AssertionError, match="expected"):
        run_page("```sh\nghostcacher analyze missing.jsonl --prefixes x\n```\n", tmp_path)
