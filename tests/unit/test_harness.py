"""The harness, as far as it starts nothing."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import demo
from benchmarks.harness.client import Completion, compare, parse_metrics
from benchmarks.harness.comparison import Round, comparison_table, sentence, wrong_answers
from benchmarks.harness.launch import EngineOptions, command_line, environment, transfer_config
from benchmarks.harness.model import ModelNotFound, recipe, require_model
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from benchmarks.harness.scenario import pull_numbers
from benchmarks.harness.workload import Result
from ghostcacher_router.up.machine import NotEnoughMemory, require_memory

PAGE = """\
# TYPE gc_pulled_bytes_total counter
gc_pulled_bytes_total{transport="nixl"} 100.0
gc_pulled_bytes_total{transport="relay"} 5.0
gc_pulled_bytes_created{transport="nixl"} 1.7e9
# TYPE gc_tokens_cached_total counter
gc_tokens_cached_total 64.0
# TYPE gc_cache_misses_total counter
gc_cache_misses_total{reason="timeout"} 3.0
gc_cache_misses_total{reason="disabled"} 0.0
"""


def answer(tokens: tuple[int, ...], logprobs: tuple[float, ...]) -> Completion:
    return Completion("", tokens, logprobs, 0.1, 0.2, 10, len(tokens), 0, "length")


def test_recipe_other_seed_other_digest() -> None:
    """Two seeds are two models: they never share a folder."""
    assert recipe("tiny").digest() != recipe("tiny", seed=1).digest()
    assert recipe("tiny").digest() == recipe("tiny").digest()


def test_recipe_small_has_32_kib_of_kv_a_token() -> None:
    """The documented size of the small model's KV cache is the real one."""
    assert recipe("small").kv_bytes_per_token == 32 << 10


def test_require_model_folder_or_id_accepted(tmp_path: Path) -> None:
    """A model's folder and what may be a Hugging Face id are models."""
    (tmp_path / "config.json").touch()
    assert require_model(str(tmp_path)) == str(tmp_path)
    assert require_model("Qwen/Qwen3-0.6B") == "Qwen/Qwen3-0.6B"
    assert require_model("gpt2") == "gpt2"


@pytest.mark.parametrize("name", ["/nonexistent/dir", "./models/mine", "~/mine", "a/b/c", "", "../x", "/etc/hostname"])
def test_require_model_neither_says_what_was_expected(name: str) -> None:
    """A path at which there is no model is refused at once, in one line that says what would be one."""
    with pytest.raises(ModelNotFound, match=r"expected a folder with config\.json, or a Hugging Face id") as refused:
        require_model(name)
    assert "\n" not in str(refused.value)


def test_require_model_folder_without_config_refused(tmp_path: Path) -> None:
    """A folder that holds no model is refused by what it lacks."""
    with pytest.raises(ModelNotFound, match=r"this is a folder without config\.json"):
        require_model(str(tmp_path))


def test_compare_equal_answers_identical() -> None:
    """Equal tokens and log-probabilities compare as identical."""
    assert compare(answer((1, 2), (-0.5, -0.25)), answer((1, 2), (-0.5, -0.25))).identical


def test_compare_same_tokens_other_logprobs_not_identical() -> None:
    """A model that repeats itself cannot hide a wrong cache: the log-probabilities count."""
    found = compare(answer((1, 1), (-0.5, -0.25)), answer((1, 1), (-0.5, -0.75)))
    assert found.same_tokens
    assert found.logprob_max == 0.5
    assert not found.identical


def test_compare_tokens_part_ignores_what_follows() -> None:
    """After the first different token the contexts differ, so what follows is not compared."""
    found = compare(answer((1, 2, 3), (-0.5, -1.0, -9.0)), answer((1, 4, 3), (-0.5, -1.25, -1.0)))
    assert not found.same_tokens
    assert found.logprob_max == 0.25


def test_compare_nothing_to_compare_is_no_agreement() -> None:
    """Two answers without log-probabilities are not called equal."""
    assert compare(answer((), ()), answer((), ())).logprob_max == math.inf


def test_parse_metrics_sums_over_labels() -> None:
    """A name is summed over its series, and over those with given labels only."""
    page = parse_metrics(PAGE)
    assert page.sum("gc_pulled_bytes_total") == 105
    assert page.sum("gc_pulled_bytes_total", transport="relay") == 5
    assert page.by("gc_cache_misses_total", "reason") == {"timeout": 3, "disabled": 0}
    assert not page.has("gc_pulled_bytes_created")


def test_pull_numbers_are_what_grew() -> None:
    """Only what was counted between the two readings belongs to the pull."""
    before, after = parse_metrics(PAGE), parse_metrics(PAGE.replace("} 100.0", "} 700.0").replace("} 3.0", "} 4.0"))
    found = pull_numbers(before, after)
    assert (found.tokens, found.bytes, found.misses) == (0, 600, {"timeout": 1})


def test_transfer_config_has_module_path_and_settings() -> None:
    """The connector is named as the documentation says, and told where it is reached."""
    config = json.loads(transfer_config(EngineOptions(model="m", connector={"pull": "always"}), 81) or "")
    assert config == {
        "kv_connector": "GhostCacherConnector",
        "kv_connector_module_path": "ghostcacher_connector.engines.vllm",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"http_url": "http://127.0.0.1:81", "pull": "always"},
    }


def test_command_line_plain_engine_has_no_connector() -> None:
    """An engine without a connector is started as if this package did not exist."""
    command = command_line(EngineOptions(model="m", block_size=32, extra_args=("--seed", "1")), 81)
    assert "--kv-transfer-config" not in command
    assert command[command.index("--block-size") + 1] == "32"
    assert command[-2:] == ["--seed", "1"]


def test_environment_local_model_is_offline(tmp_path: Path) -> None:
    """A model that is here is never looked for on the network."""
    assert environment(EngineOptions(model=str(tmp_path)))["HF_HUB_OFFLINE"] == "1"


def test_require_memory_too_much_says_what_to_do() -> None:
    """A machine that is too small is told which option makes the need smaller."""
    with pytest.raises(NotEnoughMemory, match="--size tiny"):
        require_memory(1e9, "an engine", "use --size tiny")


def test_table_aligns_columns() -> None:
    """The first column is to the left, numbers are to the right."""
    assert table(["a", "n"], [["x", "10"], ["long", "2"]]) == "a      n\n----  --\nx     10\nlong   2"


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [([5.0], 90, 5.0), ([1, 2], 90, 2), ([3, 1, 2], 50, 2), ([1, 2, 3, 4], 50, 2), (range(1, 11), 90, 9)],
)
def test_percentile_is_a_measured_value(values: Sequence[float], percent: float, expected: float) -> None:
    """Percentiles are by nearest rank: no interpolation puts one above the slowest request."""
    assert percentile(values, percent) == expected


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_percentile_lies_among_the_values(values: list[float], percent: float) -> None:
    """A percentile is one of the values, and as many of them as it says are not above it."""
    found = percentile(values, percent)
    assert found in values
    assert sum(value <= found for value in values) >= percent * len(values) / 100


@pytest.mark.parametrize(("seconds", "text"), [(0.000521, "0.52 ms"), (0.0521, "52.1 ms"), (5.21, "5,210 ms")])
def test_milliseconds_about_three_digits(seconds: float, text: str) -> None:
    """Durations are shown with the digits that a measurement has."""
    assert milliseconds(seconds) == text


def load_result(*ttft_ms: float, cached: int, seconds: float = 1.0, logprob: float = -0.5) -> Result:
    """Return what a load of prompts of 100 tokens cost, of which `cached` came from a cache."""
    base = answer((1,), (logprob,))
    return Result(
        "a policy",
        [base._replace(ttft_s=value / 1e3, prompt_tokens=100, cached_tokens=cached) for value in ttft_ms],
        seconds,
    )


ROUNDS = [
    Round(
        sharing=load_result(200, 210, 900, cached=80, seconds=3),
        alone=load_result(1000, 1240, 5000, cached=20, seconds=9),
        pulled=30,
    ),
    Round(
        sharing=load_result(180, 190, 300, cached=80, seconds=5),
        alone=load_result(1100, 1200, 6000, cached=20, seconds=11),
        pulled=60,
    ),
]


def test_result_p90_not_above_the_slowest() -> None:
    """A load's percentiles are times that a request took."""
    assert load_result(100, 200, 300, cached=0).p90_s == 0.3
    assert load_result(100, 200, 300, 400, cached=0).p50_s == 0.2


def test_comparison_table_has_medians_and_spread() -> None:
    """Each measure is the median of its rounds with the lowest and highest, and their ratio; tokens add up to all."""
    cells = {line.split("  ")[0]: [cell for cell in line.split("  ")[1:] if cell] for line in
             comparison_table(ROUNDS).splitlines()}  # fmt: skip
    stripped = {name: [cell.strip() for cell in row] for name, row in cells.items()}
    assert stripped["time to first token, p50"] == ["1,220 ms (1,200-1,240)", "200 ms (190-210)", "6.1x"]
    assert stripped["time to first token, p90"] == ["5,500 ms (5,000-6,000)", "600 ms (300-900)", "9.2x"]
    assert stripped["all 3 questions answered in"] == ["10.0 s (9.0-11.0)", "4.0 s (3.0-5.0)", "2.5x"]
    assert stripped["prompt tokens computed"] == ["240 (240-240)", "60 (60-60)", "4.0x"]
    assert stripped["found in the engine's own cache"] == ["20%", "65%"]
    assert stripped["pulled from the other engine"] == ["0%", "15%"]


def test_sentence_says_what_was_saved() -> None:
    """The last line holds the outcome, with its numbers."""
    assert sentence(ROUNDS) == (
        "Sharing: the same 3 questions, median time to first token 1,220 ms -> 200 ms (6.1x), "
        "75% fewer prompt tokens computed, every answer the same."
    )


def test_sentence_says_what_was_lost() -> None:
    """A comparison that sharing loses is told as such."""
    lost = Round(sharing=load_result(300, cached=0), alone=load_result(150, cached=50), pulled=0)
    assert "150 ms -> 300 ms (0.5x), 100% MORE prompt tokens computed" in sentence([lost])


def test_wrong_answers_beyond_rounding_counted() -> None:
    """Answers whose log-probabilities are apart by more than rounding are counted, and said in the sentence."""
    near = Round(load_result(1, 1, cached=0, logprob=-0.5), load_result(1, 1, cached=0, logprob=-0.59), 0)
    wrong = Round(load_result(1, 1, cached=0, logprob=-0.5), load_result(1, 1, cached=0, logprob=-0.61), 0)
    assert wrong_answers([near]) == 0
    assert wrong_answers([near, wrong]) == 2
    assert "2 of 4 answers DIFFER" in sentence([near, wrong])


def test_wrong_answers_empty_answer_counted() -> None:
    """An answer without tokens agrees with nothing."""
    whole, empty = load_result(1, cached=0), load_result(1, cached=0)
    empty.answers[0] = answer((), ())
    assert wrong_answers([Round(empty, whole, 0)]) == 1


def test_progress_line_timed_begins_with_seconds() -> None:
    """Where a person waits, each line says since when."""
    stream = io.StringIO()
    ProgressLine(stream, timed=True).done("engines ready")
    ProgressLine(stream).done("as before")
    assert stream.getvalue() == "[  0 s] engines ready\nas before\n"


def test_demo_notes_name_every_setting_that_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared fits a terminal, and says which settings are not defaults, wherever they come from."""
    monkeypatch.setenv("GC_LOOKUP_DEADLINE_MS", "900")
    plain, changed = (demo.notes(ROUNDS, demo.arguments(argv)) for argv in ([], ["--pull", "always", "--rounds", "2"]))
    assert max(map(len, plain + changed)) <= 100
    text = "\n".join(plain)
    assert "Rounds: 2 of 3, for want of time; each" in text
    assert "Settings: GhostCacher's and the router's defaults." in text
    assert "22,144 tokens an engine, 60% of the documents" in text
    assert "The environment sets GC_LOOKUP_DEADLINE_MS." in text
    assert "Rounds: 2; each" in "\n".join(changed)
    assert "defaults, but pull=always" in "\n".join(changed)


def test_demo_engines_have_default_settings(tmp_path: Path) -> None:
    """Nothing but where Redis is is set for GhostCacher; the KV cache holds what the notes say."""
    chosen = demo.arguments([])
    for options in demo.engine_options(chosen, "m", "unix:///r", tmp_path):
        assert options.connector == {"redis_url": "unix:///r"}
        assert options.num_blocks == demo.kv_tokens(chosen) // demo.block_size(chosen) + 1


def test_demo_model_that_is_none_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that is nowhere is refused before anything is started, and leaves no folder behind."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert demo.main(["--model", "/nonexistent/dir"]) == 1
    assert capsys.readouterr().err.strip().startswith("model '/nonexistent/dir': expected a folder with config.json")
    assert list(tmp_path.iterdir()) == []
