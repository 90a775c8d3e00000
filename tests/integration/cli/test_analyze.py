"""`ghostcacher analyze` as a program: what people and programs get of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = (sys.executable, "-m", "ghostcacher_cli.main", "analyze")


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *map(str, words)], capture_output=True, text=True, timeout=280, check=False)


@pytest.fixture
def chats(tmp_path: Path) -> Path:
    """Requests of two conversations in turns, each longer than the one before; the last line has no end."""
    path = tmp_path / "chats.jsonl"
    talks = [[{"role": "system", "content": f"You are helper {name}. " * 50}] for name in "ab"]
    lines = []
    for turn in range(6):
        for talk in talks:
            talk.append({"role": "user", "content": f"question {turn} " * 20})
            lines.append(json.dumps({"model": "m", "messages": talk}))
            talk.append({"role": "assistant", "content": f"answer {turn} " * 20})
    path.write_text("\n".join(lines))
    return path


def test_file_is_analyzed_as_text_and_as_json(chats: Path) -> None:
    """Both say the same; nothing goes to the standard error."""
    text, data = run(chats, "--no-chart"), run(chats, "--json")
    assert (text.returncode, text.stderr, data.returncode, data.stderr) == (0, "", 0, "")
    report = json.loads(data.stdout)
    assert report["counts"]["requests"] == 12
    assert f"{report['counts']['saveable_tokens']:,}" in text.stdout
    assert text.stdout.startswith(f"{chats}: 12 requests, chat requests\n")
    assert {each["begins"][:25] for each in report["shared_prefixes"] if each["level"] == 0} == {
        "system: You are helper a.",
        "system: You are helper b.",
    }


def test_order_that_is_written_is_the_one_that_is_promised(chats: Path, tmp_path: Path) -> None:
    """Analyzed again, the reordered file hits in its own order what was forecast."""
    words = ("--json", "--engine-gib", "0.1")
    before = json.loads(run(chats, *words, "--write-order", tmp_path / "ordered.jsonl").stdout)
    after = json.loads(run(tmp_path / "ordered.jsonl", *words).stdout)
    assert before["best_order"]["file_order_engine_hit_ratio"] < before["best_order"]["engine_hit_ratio"]
    assert after["best_order"]["file_order_engine_hit_ratio"] == before["best_order"]["engine_hit_ratio"]
    assert sorted((tmp_path / "ordered.jsonl").read_text().splitlines()) == sorted(chats.read_text().splitlines())


def test_wrong_line_ends_it_with_a_word_and_no_traceback(chats: Path) -> None:
    with chats.open("a") as file:
        file.write('\n{"messages": [{"role": 5, "content": "x"}]}\n')
    done = run(chats)
    assert (done.returncode, done.stdout) == (1, "")
    said = "line 13: Invalid type for 'messages[0].role': expected a string, got integer."
    assert done.stderr == f"ghostcacher: {chats}, {said}\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["no/such/file.jsonl"], "FILE: no/such/file.jsonl cannot be read: No such file or directory"),
        (["f.jsonl", "--plot", "a.gif"], "--plot: expected a name that ends in .png or .svg, got 'a.gif'"),
    ],
)
def test_wrong_usage_ends_it_with_2(words: list[str], said: str) -> None:
    done = run(*words)
    assert (done.returncode, done.stderr) == (2, f"ghostcacher: {said}\n")


def test_nothing_is_loaded_that_could_reach_a_cache(chats: Path) -> None:
    """No client of Redis, no engine, no transport: the file and the terminal are all there is."""
    code = (
        "import sys; from ghostcacher_cli.analyze.run import main; main([sys.argv[1], '--no-chart'])\n"
        "print(sorted({'redis', 'hiredis', 'nixl', 'torch', 'vllm', 'sglang', 'httptools'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, chats], capture_output=True, text=True, timeout=280, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_reader_that_leaves_early_is_no_error(chats: Path) -> None:
    """As with any program before `head`."""
    with subprocess.Popen([*COMMAND, str(chats)], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141
