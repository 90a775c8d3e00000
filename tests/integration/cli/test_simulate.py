"""`ghostcacher simulate` as a program: what people and programs get of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "ghostcacher_cli.main", "simulate")
KINDS = "documents, rag, chat, agents"
OF = "of weights and a KV cache"
LOAD = ("documents:requests=60,documents=6,tokens=2000", "--workers", "2,3", "--policies", "hashing,ghostcacher")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=280, check=False)


def test_load_is_simulated_as_text_as_json_and_as_a_picture(tmp_path: Path) -> None:
    """Both say the same, and the same again; nothing goes to the standard error."""
    picture = tmp_path / "runs.svg"
    text, data = run(*LOAD), run(*LOAD, "--json", "--plot", picture)
    assert (text.returncode, text.stderr, data.returncode, data.stderr) == (0, "", 0, "")
    report = json.loads(data.stdout)
    runs = report["runs"]
    assert [(each["policy"], each["workers"]) for each in runs] == [
        ("hashing", 2),
        ("ghostcacher", 2),
        ("hashing", 3),
        ("ghostcacher", 3),
    ]
    assert all(each["endings"] == {"answered": 60} for each in runs)
    for each in runs:
        assert sum(each["sources"].values()) == pytest.approx(1)
        assert f"{1e3 * each['ttft']['p50_s']:.1f} ms" in text.stdout
    assert picture.read_text().startswith("<?xml")


def test_trace_is_simulated_and_a_wrong_line_of_it_is_named(tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    lines = [f"2023-11-16 18:17:{second:02}.5000000,{100 + second},10" for second in range(20)]
    trace.write_text("\n".join(["TIMESTAMP,ContextTokens,GeneratedTokens", *lines]))
    report = json.loads(run(trace, "--json", "--requests", "15", "--gpu", "l4", "--usd-per-hour", "0.8").stdout)
    assert (report["load"]["requests"], report["runs"][0]["endings"]) == (15, {"answered": 15})
    assert report["runs"][0]["usd_per_million_tokens"] > 0
    trace.write_text(trace.read_text() + "\n2023-11-16 18:17:30,many,10\n")
    done = run(trace)
    assert (done.returncode, done.stdout) == (1, "")
    said = "line 22: ContextTokens: expected a whole number from 1 to 16777216, got 'many'"
    assert done.stderr == f"ghostcacher: trace {trace}, {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such/file.jsonl"], f"LOAD: expected a file, or one of {KINDS}; there is no file no/such/file.jsonl"),
        (["chat:turns=none"], "load chat, turns: expected `int`, got `str`, got 'none'"),
        (["chat", "--plot", "no/folder/a.svg"], "--plot: expected a file in a folder that exists, got no/folder/a.svg"),
        (["chat", "--model", "qwen3-32b", "--gpu", "l4"], f"gpus: expected room for 66 GB {OF}, got 24 GB of memory"),
    ],
)
def test_wrong_usage_ends_it_with_2(words: list[str], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (2, f"ghostcacher: {said}\n")
