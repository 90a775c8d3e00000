"""The benchmark that compares the simulator with real engines: what needs no engine."""

from __future__ import annotations

import pytest

from benchmarks import simulator_calibration as calibration
from benchmarks.harness.workload import Load as Questions


class Letters:
    """A tokenizer of letters."""

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]


def test_simulated_questions_share_what_the_engines_tokens_share() -> None:
    """Blocks of 32 tokens: the first three are one document's, the last one is the question's own."""
    document = "".join(chr(97 + number % 26) for number in range(96))
    questions = Questions([f"{document}{number}{'?' * 39}" for number in range(2)], [0, 0])
    load = calibration.simulated_load(questions, Letters())  # type: ignore[arg-type]
    first, second = (request.prompt for request in load.requests)
    assert (first.tokens, len(first.blocks), first.answer_tokens) == (136, 4, calibration.ANSWER_TOKENS)
    assert first.blocks[:3] == second.blocks[:3]
    assert first.blocks[3] != second.blocks[3]


def test_table_says_how_far_off_it_is() -> None:
    found = calibration.Compared(2, "GhostCacher", 0.100, 0.115, 0.2, 0.3, 2_000, 1_500)
    assert found.off == (pytest.approx(0.15), pytest.approx(-0.25))
    row = calibration.report([found]).splitlines()[-1]
    times = ["100", "ms", "115", "ms", "+15%", "200", "ms", "300", "ms"]
    assert row.split() == ["GhostCacher", "2", *times, "2,000", "1,500", "-25%"]


def test_fleet_holds_half_of_the_documents_and_is_shared_by_its_engines() -> None:
    chosen = calibration.arguments(["--documents", "40", "--document-tokens", "1600"])
    options = calibration.options_of(chosen, "model", "redis://x", 2)
    assert [option.num_blocks for option in options] == [40 * 1600 // 2 // 2 // 32] * 2
    assert len({option.name for option in options}) == 2


@pytest.mark.parametrize("sizes", ["1", "2,x", ""])
def test_wrong_sizes_are_refused(sizes: str) -> None:
    with pytest.raises(calibration.ConfigError, match="--engines: expected numbers from 2"):
        calibration.arguments(["--engines", sizes])
