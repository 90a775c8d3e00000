"""What a worker answers to a probe."""

from __future__ import annotations

import pytest

from ghostcacher_router.fleet.probes import ProbeFailed, parse_models


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data":1}', b'{"data":[1]}', b'{"data":[{"id":2}]}', b"\xff"])
def test_odd_model_list_is_a_failed_probe(body: bytes) -> None:
    """What is no model list says so, whatever it is."""
    with pytest.raises(ProbeFailed, match="/v1/models"):
        parse_models(body)
