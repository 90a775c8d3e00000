"""A certificate authority of the tests' own."""

from __future__ import annotations

import pytest

from tests.support.providers.server import Authority, make_authority


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return make_authority(tmp_path_factory.mktemp("authority"))
