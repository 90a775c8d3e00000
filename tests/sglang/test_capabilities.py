"""What is asked of an SGLang before the linker trusts it, and what is said where something is missing."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
import sglang

from ghostcacher_connector.engines.sglang import capabilities, hooks, plugin
from ghostcacher_connector.engines.sglang.capabilities import CALLED, HOOKED, OVERRIDDEN, REPLACED, missing

SOURCES = Path(sglang.__path__[0]).parent
PLACES = [target for target, _, _ in hooks.hooks()] + [need.place for need in (*OVERRIDDEN, *REPLACED, *CALLED)]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    """A folder with copies of those sources of SGLang that are looked at."""
    for module in {place.rsplit(".", 2)[0] for place in PLACES} | {capabilities.DYNAMIC_BACKEND}:
        source = SOURCES.joinpath(*module.split(".")).with_suffix(".py")
        copy = tmp_path / source.relative_to(SOURCES)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, copy)
    return tmp_path


def change(sources: Path, place: str, old: str, new: str) -> None:
    """Replace a pattern in the source of a method's module."""
    path = sources.joinpath(*place.rsplit(".", 2)[0].split(".")).with_suffix(".py")
    text, count = re.subn(old, new, path.read_text())
    assert count
    path.write_text(text)


def test_this_sglang_has_all_that_is_needed(copied: Path) -> None:
    """The version that the suites run on passes, wherever its sources lie."""
    assert missing() == []
    assert missing(copied) == []


@pytest.mark.parametrize("place", PLACES)
def test_missing_method_is_named(place: str, copied: Path) -> None:
    """Each method that is overridden, hooked or replaced is missed when it is gone."""
    _, owner, name = place.rsplit(".", 2)
    change(copied, place, rf"def {name}\(", f"def {name}_of_old(")
    assert any(fault.startswith(f"{owner}.{name}: expected (") and "found none" in fault for fault in missing(copied))


@pytest.mark.parametrize("place", [*HOOKED, *(need.place for need in OVERRIDDEN if need.takes), REPLACED[1].place])
def test_method_with_other_parameters_is_named(place: str, copied: Path) -> None:
    """Parameters are told apart by their places: one that comes first now would be taken for another."""
    _, owner, name = place.rsplit(".", 2)
    change(copied, place, rf"def {name}\(\s*self,", f"def {name}(self, first,")
    assert any(fault.startswith(f"{owner}.{name}: expected (") and "found (first" in fault for fault in missing(copied))


def test_sglang_without_the_dynamic_backend_is_named(copied: Path) -> None:
    """Before 0.5.23 no linker could be given by name."""
    (copied / "sglang/srt/mem_cache/unified_cache/linker_factory.py").unlink()
    assert missing(copied) == ["linker backend dynamic: expected, found none"]


@pytest.mark.parametrize(
    ("argument", "level"),
    [('{"linker": "GhostCacherLinker"}', logging.WARNING), ("--model-path=m", logging.DEBUG)],
)
def test_hooks_are_set_only_where_nothing_is_missing(
    argument: str, level: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An SGLang that lacks something gets no hooks; whoever asks for the linker there is told what it lacks."""
    calls: list[int] = []
    monkeypatch.setattr(hooks, "install", lambda: calls.append(1))
    monkeypatch.setattr("sys.argv", ["launch_server", argument])
    with caplog.at_level(logging.DEBUG, logger=plugin.__name__):
        plugin.register()
        assert (len(calls), caplog.records) == (1, [])
        monkeypatch.setattr(capabilities, "missing", lambda: ["Scheduler.run_batch: expected (batch), found none"])
        plugin.register()
    assert len(calls) == 1
    (record,) = caplog.records
    assert record.levelno == level
    assert "Scheduler.run_batch" in record.getMessage()
