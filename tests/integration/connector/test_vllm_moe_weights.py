"""Weights that change under a mixture of experts: a data-parallel rank computes with experts that only others hold."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("vllm")

from tests.integration.connector.conftest import Make
from tests.integration.connector.prefix_numbers import tokens_of

pytestmark = pytest.mark.engine


@pytest.mark.parametrize(("ranks", "kept"), [(1, True), (2, False)])
def test_own_weights_say_nothing_of_the_experts_of_other_ranks(make: Make, ranks: int, kept: bool) -> None:
    """Such a rank leaves its namespace for one of its own, though what it holds is as before."""

    def adapt(config: Any) -> None:
        config.parallel_config.data_parallel_size = ranks

    engines = [make(name, adapt=adapt) for name in "ab"]
    seen = {str(engine.connector._scheduler._fleet.record.namespace) for engine in engines}
    assert len(seen) == 1
    for engine in engines:
        engine.rpc("ping")
        engine.add("r", tokens_of(1, 40))
        engine.run()
        seen.add(str(engine.connector._scheduler._fleet.record.namespace))
    assert len(seen) == (1 if kept else 3)
