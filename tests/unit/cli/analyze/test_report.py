"""What is printed: text that is short and aligned, JSON, drawings."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import msgspec
import pytest

from ghostcacher_cli.analyze.arguments import parse
from ghostcacher_cli.analyze.charts import draw, require, write_picture
from ghostcacher_cli.analyze.policy_curves import POLICIES
from ghostcacher_cli.analyze.report import Report
from ghostcacher_cli.analyze.report_text import report_lines, seconds, size
from ghostcacher_cli.analyze.run import analyze
from ghostcacher_connector.core.errors import ConfigError


@pytest.fixture
def requests(tmp_path: Path) -> Path:
    """Forty questions on five long texts, in turns."""
    path = tmp_path / "requests.jsonl"
    lines = [{"prompt": f"manual {number % 5} " * 100 + f"question {number}"} for number in range(40)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def report_of(*words: str) -> Report:
    return analyze(parse(words), lambda _: None, lambda: 1.5)


def test_report_adds_up(requests: Path) -> None:
    """Tokens are distinct or saveable; the best order saves as much with one text's room as an endless cache."""
    report = report_of(str(requests), "--sizes-gib", "0.04,0.4", "--engine-gib", "0.04")
    counts = report.counts
    assert counts.requests == 40
    assert counts.distinct_tokens + counts.saveable_tokens == counts.prompt_tokens
    assert [each.begins[:11] for each in report.shared_prefixes] == [f"manual {number} ma"[:11] for number in range(5)]
    assert sum(each.saves_tokens for each in report.shared_prefixes) == counts.saveable_tokens
    small, large = report.sizes
    assert small.hit_ratio["lru"] == 0
    assert small.best_order_hit_ratio == large.best_order_hit_ratio == large.hit_ratio["lru"] == report.saveable_ratio
    assert report.best_order.saved_tokens == counts.saveable_tokens
    assert sum(tier.saved_tokens for tier in report.tiers) == counts.saveable_tokens
    assert [tier.saved_tokens for tier in report.tiers] == [0, counts.saveable_tokens, 0]


def test_text_says_all_of_it_in_short_lines(requests: Path) -> None:
    report = report_of(str(requests), "--prefixes", "2", "--bytes-per-token", "1000", "--block-size", "8")
    lines = report_lines(report, ["a drawing"])
    text = "\n".join(lines)
    assert lines[0] == f"{requests}: 40 requests, text prompts"
    assert max(map(len, lines[1:])) <= 100
    for said in (
        "saveable",
        "manual 0 manual 0",
        "lru, best order",
        "a drawing",
        "--write-order FILE",
        "objects  unlimited",
        "1,000 bytes  of KV a token, as given",
        "8 tokens  make a block",
        "4 bytes  of text make a token",
        "1 s  lie between two requests: the file does not say it",
        "took 1.5 s",
    ):
        assert said in text
    assert "manual 3" not in text
    assert "  cache " in text
    for policy in POLICIES:
        assert policy in text


def test_text_of_what_shares_nothing(tmp_path: Path) -> None:
    """No prefix, no hit, no line that divides by zero; times and hashes are not assumed where the file has them."""
    path = tmp_path / "requests.jsonl"
    path.write_text('{"hash_ids": [1], "timestamp": 0}\n{"hash_ids": [], "timestamp": 1}\n')
    text = "\n".join(report_lines(report_of(str(path)), []))
    assert "No two prompts begin with the same block." in text
    assert "lie between two requests" not in text
    assert "of text make a token" not in text
    path.write_text('{"prompt": ""}\n')
    assert report_of(str(path)).saveable_ratio == 0


def test_text_leaves_out_what_prefixes_begin_with_alike(requests: Path) -> None:
    """Texts that differ late in their first block are told apart by where they do; those of other places stay whole."""
    report = report_of(str(requests))
    begins = ("system: be brief user: manual 1", "system: be brief user: manual 2", "system: be brief user: other")
    first = report.shared_prefixes[0]
    prefixes = [msgspec.structs.replace(first, begins=begins[0]), msgspec.structs.replace(first, begins=begins[1])]
    prefixes.append(msgspec.structs.replace(first, begins=begins[2], start_tokens=16, level=1))
    text = "\n".join(report_lines(msgspec.structs.replace(report, shared_prefixes=prefixes), []))
    assert "  ~1\n" in text
    assert "  ~2\n" in text
    assert "    system: be brief user: other\n" in text


def test_json_is_the_whole_report(requests: Path) -> None:
    """Whoever reads it gets back what was found."""
    report = report_of(str(requests), "--policies", "lru")
    assert msgspec.json.decode(msgspec.json.encode(report), type=Report) == report


def test_numbers_have_about_three_digits() -> None:
    assert [size(value) for value in (0, 512, 1536, 1000 << 20, 3 << 40, 1.25 * 2**50)] == [
        "0 B", "512 B", "1.5 KiB", "1.0 GiB", "3 TiB", "1.2 PiB",
    ]  # fmt: skip
    assert [seconds(value) for value in (0, 0.01234, 5.678, 75)] == ["0 s", "0.0123 s", "5.68 s", "1 min 15 s"]


def test_drawing_is_plain_text_where_there_is_no_terminal(requests: Path) -> None:
    pytest.importorskip("plotext")
    lines = draw(report_of(str(requests), "--policies", "lru"), chart=True)
    assert len(lines) > 10
    assert lines[-1].split() == [".", "lru,", "best", "order", "l", "lru"]
    assert "\x1b" not in "".join(lines)
    assert any("l" in line and "%" in line for line in lines)
    assert draw(report_of(str(requests)), chart=False) == []


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_picture_is_of_the_kind_that_its_name_says(requests: Path, tmp_path: Path, name: str, begins: bytes) -> None:
    pytest.importorskip("matplotlib")
    write_picture(report_of(str(requests)), tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)


def test_missing_library_is_named_with_how_to_install_it(
    requests: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before the file is read; without an option, nothing is drawn and nothing is wrong."""
    for name in ("plotext", "matplotlib"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=r"--chart: expected plotext 5, .*: pip install 'ghostcacher\[analyze\]'"):
        require(chart=True, plot=None)
    with pytest.raises(ConfigError, match=r"--plot: expected matplotlib, .*: pip install 'ghostcacher\[analyze\]'"):
        require(chart=None, plot=tmp_path / "a.png")
    require(chart=None, plot=None)
    assert draw(report_of(str(requests), "--policies", "lru"), chart=None) == []
    monkeypatch.setitem(sys.modules, "plotext", ModuleType("plotext"))
    assert draw(report_of(str(requests), "--policies", "lru"), chart=None) == []


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["f", "--plot", "a.pdf"], "--plot: expected a name that ends in .png or .svg, got 'a.pdf'"),
        (["f", "--json", "--chart"], "--chart: expected text to draw below, got --json as well"),
        (["f", "--model-config", "/nowhere"], "--model-config: /nowhere cannot be read"),
    ],
)
def test_options_that_make_no_sense_are_refused(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse(words)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "required: FILE"),
        (["f", "--sizes-gib", "1,x"], "argument --sizes-gib: expected a number above 0, got 'x'"),
        (["f", "--engine-gib", "0"], "argument --engine-gib: expected a number above 0, got '0'"),
        (["f", "--host-gib", "-1"], "argument --host-gib: expected a number from 0, got '-1'"),
        (["f", "--load-gib-per-second", "nan"], "expected a number above 0, got 'nan'"),
        (["f", "--block-size", "0"], "argument --block-size: expected a whole number from 1 to 65536, got '0'"),
        (["f", "--policies", "lru,best"], "argument --policies: expected some of lru"),
        (["f", "--bytes-per-token", "5", "--model-config", "x"], "not allowed with argument --bytes-per-token"),
    ],
)
def test_wrong_usage_is_said_by_option(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse(words)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_options_reach_the_assumptions(requests: Path) -> None:
    report = report_of(
        *(str(requests), "--prefill-tokens-per-second", "5", "--load-gib-per-second", "2", "--host-gib", "0"),
        *("--object-gib-per-second", "3", "--engine-gib", "4.5", "--text-bytes-per-token", "2.5"),
    )
    found = report.assumptions
    assert (found.bytes_per_token, found.kv_of) == (131_072, "Llama 3 8B in 16 bits")
    assert (found.prefill_tokens_per_second, found.load_gib_per_second, found.object_gib_per_second) == (5, 2, 3)
    assert (found.engine_gib, found.host_gib, found.text_bytes_per_token) == (4.5, 0, 2.5)
    assert (found.arrival_spacing_s, found.sampled_one_in) == (1.0, 1)


def test_best_policy_of_a_size_is_marked(requests: Path) -> None:
    """And none where two are as good, as far as is printed."""
    report = report_of(str(requests), "--policies", "lru")
    row = report.sizes[-1]
    ratios = [{"lru": 0.25, "other": 0.3}, {"lru": 0.3001, "other": 0.3}]
    sizes = [msgspec.structs.replace(row, hit_ratio=each) for each in ratios]
    lines = report_lines(msgspec.structs.replace(report, sizes=sizes), [])
    first, second = (line.split() for line in lines if line.strip().startswith(size(row.size_bytes)))
    assert first[3:7] == ["25.0", "%", "30.0", "%*"]
    assert second[3:7] == ["30.0", "%", "30.0", "%"]
