"""Files that are made from code: written where they are old, and named by a check that writes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from deploy.generated_files import keep


def test_check_names_what_is_old_and_writing_mends_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is missing, one that is of before, and one that is as it should be."""
    missing, old, fine = tmp_path / "a" / "missing.md", tmp_path / "old.md", tmp_path / "fine.md"
    files = dict.fromkeys((missing, old, fine), "new")
    old.write_text("old")
    fine.write_text("new")
    assert keep(files, ["--check"], target="things") == 1
    said = capsys.readouterr().err
    assert [line.partition(":")[0] for line in said.splitlines()] == [str(missing), str(old)]
    assert "run `make things`" in said
    assert (missing.exists(), old.read_text()) == (False, "old")
    assert keep(files, [], target="things") == 0
    assert {path.read_text() for path in files} == {"new"}
    assert keep(files, ["--check"], target="things") == 0
