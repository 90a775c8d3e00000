"""The demo, as far as it starts nothing: its load, the comparison, what it prints of it, and its settings."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import demo
from benchmarks.harness.client import Completion
from benchmarks.harness.comparison import Round, comparison_table, sentence, unpulled, wrong_answers
from benchmarks.harness.documents import Documents
from benchmarks.harness.scenario import PullNumbers
from benchmarks.harness.workload import Result, make_load


def load_result(*ttft_ms: float, cached: int, seconds: float = 1.0, logprob: float = -0.5) -> Result:
    """Return what a load of prompts of 100 tokens cost, of which `cached` came from a cache."""
    return Result(
        "a policy",
        [Completion("", (1,), (logprob,), value / 1e3, 1.0, 100, 1, cached, "length") for value in ttft_ms],
        seconds,
    )


def pulled(tokens: int, **misses: float) -> PullNumbers:
    """Return what an engine pulled, and by which reason it did not."""
    return PullNumbers(tokens, 0, 0.0, misses)


ROUNDS = [
    Round(
        sharing=load_result(200, 210, 900, cached=80, seconds=3),
        alone=load_result(1000, 1240, 5000, cached=20, seconds=9),
        pulls=(pulled(10, not_indexed=8), pulled(20, lookup_deadline=2)),
    ),
    Round(
        sharing=load_result(180, 190, 300, cached=80, seconds=5),
        alone=load_result(1100, 1200, 6000, cached=20, seconds=11),
        pulls=(pulled(60, lookup_deadline=1), pulled(0, timeout=4, not_indexed=1)),
    ),
]


def test_result_p90_not_above_the_slowest() -> None:
    """A load's percentiles are times that a request took."""
    assert load_result(100, 200, 300, cached=0).p90_s == 0.3
    assert load_result(100, 200, 300, 400, cached=0).p50_s == 0.2


class Texts(Documents):
    """Documents without a tokenizer."""

    def __init__(self) -> None:
        pass

    def text(self, count: int, *, seed: int) -> str:
        return f"{count} tokens of {seed}"


def test_make_load_without_skew_asks_each_document_equally_often() -> None:
    """Each document gets as many questions as any other, in an order of its own for each seed, none of them twice."""
    loads = [make_load(Texts(), documents=4, document_tokens=9, requests=12, seed=seed, skew=None) for seed in (1, 2)]
    for load in loads:
        assert [load.documents.count(index) for index in range(4)] == [3, 3, 3, 3]
        assert len(set(load.prompts)) == 12
    assert loads[0].documents != loads[1].documents
    assert set(loads[0].prompts).isdisjoint(loads[1].prompts)


def test_make_load_asks_for_other_documents_in_the_same_order() -> None:
    loads = [make_load(Texts(), documents=4, document_tokens=9, requests=12, seed=seed, order=3) for seed in (1, 2)]
    assert loads[0].documents == loads[1].documents
    assert set(loads[0].prompts).isdisjoint(loads[1].prompts)


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


def test_unpulled_adds_up_reasons_of_all_engines_and_rounds() -> None:
    """What no peer had is not counted against sharing; every other reason is."""
    assert unpulled(ROUNDS) == {"lookup_deadline": 3, "timeout": 4}


def test_sentence_says_what_was_saved() -> None:
    """The last line holds the outcome, with its numbers."""
    assert sentence(ROUNDS) == (
        "Sharing: the same 3 questions, median time to first token 1,220 ms -> 200 ms (6.1x), "
        "75% fewer prompt tokens computed, every answer the same."
    )


def test_sentence_says_what_was_lost() -> None:
    """A comparison that sharing loses is told as such."""
    lost = Round(sharing=load_result(300, cached=0), alone=load_result(150, cached=50), pulls=())
    assert "150 ms -> 300 ms (0.5x), 100% MORE prompt tokens computed" in sentence([lost])


def test_wrong_answers_beyond_rounding_counted() -> None:
    """Answers whose log-probabilities are apart by more than rounding are counted, and said in the sentence."""
    near = Round(load_result(1, 1, cached=0, logprob=-0.5), load_result(1, 1, cached=0, logprob=-0.59), ())
    wrong = Round(load_result(1, 1, cached=0, logprob=-0.5), load_result(1, 1, cached=0, logprob=-0.61), ())
    assert wrong_answers([near]) == 0
    assert wrong_answers([near, wrong]) == 2
    assert "2 of 4 answers DIFFER" in sentence([near, wrong])


def test_wrong_answers_empty_answer_counted() -> None:
    """An answer without tokens agrees with nothing."""
    whole, empty = load_result(1, cached=0), load_result(1, cached=0)
    empty.answers[0] = empty.answers[0]._replace(tokens=(), logprobs=())
    assert wrong_answers([Round(empty, whole, ())]) == 1


def test_demo_notes_name_every_setting_that_is_no_default(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was compared fits a terminal, and says which settings are not defaults, wherever they come from."""
    monkeypatch.setenv("GC_LOOKUP_DEADLINE_MS", "900")
    plain, changed = (demo.notes(ROUNDS, demo.arguments(argv)) for argv in ([], ["--pull", "always", "--rounds", "2"]))
    assert max(map(len, plain + changed)) <= 100
    text = "\n".join(plain)
    assert "Rounds: 2 of 3, for want of time; each" in text
    assert "Settings: GhostCacher's and the router's defaults." in text
    assert "21,376 tokens an engine, 65% of the documents" in text
    assert "Blocks that were not pulled, by reason: lookup_deadline 3, timeout 4." in text
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
