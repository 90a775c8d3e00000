"""The harness, as far as it starts nothing."""

from __future__ import annotations

import io
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.harness.client import Completion, compare, parse_metrics
from benchmarks.harness.engine import Engine, EngineEnded, watching
from benchmarks.harness.launch import EngineOptions, command_line, environment, placed, transfer_config
from benchmarks.harness.model import ModelNotFound, require_model
from benchmarks.harness.model_recipe import recipe
from benchmarks.harness.report import ProgressLine, milliseconds, percentile, table
from benchmarks.harness.scenario import pull_numbers
from benchmarks.harness.sglang import SglangOptions
from ghostcacher_cli.up.machine import NotEnoughMemory, require_memory
from ghostcacher_connector.core.process.guarded import GuardedProcess

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


def test_engines_are_placed_as_those_of_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cores of their own where they have several, else any; what is said of one engine stays as it is."""
    monkeypatch.setattr("benchmarks.harness.launch.is_cpu_build", lambda: True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    plain, told = EngineOptions(model="m"), EngineOptions(model="m", cores="3", env={"OMP_NUM_THREADS": "7"})
    wide, kept = (environment(option) for option in placed([plain, told]))
    assert (wide["OMP_PLACES"], kept["OMP_PLACES"], kept["OMP_NUM_THREADS"]) == ("{0,1}", "{3}", "7")
    places = placed([plain, SglangOptions(model="m"), plain, msgspec.structs.replace(told, cores=None)])
    assert [place.cores for place in places] == [None, "1", None, None]
    assert [environment(place).get("OMP_NUM_THREADS") for place in (places[0], places[3])] == ["1", "7"]
    assert environment(places[0])["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"


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


def test_progress_line_timed_begins_with_seconds() -> None:
    """Where a person waits, each line says since when."""
    stream = io.StringIO()
    ProgressLine(stream, timed=True).done("engines ready")
    ProgressLine(stream).done("as before")
    assert stream.getvalue() == "[  0 s] engines ready\nas before\n"


class EngineOf(Engine):
    """An engine that is a process of our choice."""

    def __init__(self, argv: list[str], folder: Path) -> None:
        self.options = EngineOptions(model="m", name="A")
        self.process = GuardedProcess(argv, log=folder / "a.log")


def test_watching_engine_killed_says_so(tmp_path: Path) -> None:
    """What a client saw of an engine's death gives way to how the engine died."""
    engine = EngineOf(["sh", "-c", "echo so far; kill -9 $$"], tmp_path)
    killed = r"engine A ended with status 137 \(128 \+ 9: it was killed"
    with pytest.raises(EngineEnded, match=killed) as ended, watching([engine]):
        raise ConnectionResetError("connection reset by peer")
    assert "so far" in str(ended.value)


def test_watching_engines_alive_error_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that no engine's end explains stays what it is."""
    monkeypatch.setattr("benchmarks.harness.engine.END_TIMEOUT_S", 0.01)
    engine = EngineOf(["sleep", "60"], tmp_path)
    try:
        with pytest.raises(ConnectionResetError), watching([engine]):
            raise ConnectionResetError("connection reset by peer")
    finally:
        engine.process.kill()
