"""What the router answers to its dashboard, and the dashboard's own files."""

from __future__ import annotations

import msgspec
import pytest

from ghostcacher_connector.core.dashboard_api import History, Links, Locks, Prefixes
from ghostcacher_router.http.protocol.local_response import LocalRequest
from tests.integration.router.test_admin import router, run


def test_what_the_dashboard_shows_is_asked_for() -> None:
    """What was asked arrives, typed as the schema says."""

    async def main() -> None:
        async with router() as subject:
            assert msgspec.convert(await subject.get("/gc/history?after=12.5"), History).now == 12.5
            assert msgspec.convert(await subject.get("/gc/history"), History).now == 0.0
            assert msgspec.convert(await subject.get("/gc/prefixes"), Prefixes).seen == 7
            assert msgspec.convert(await subject.get("/gc/locks"), Locks) == Locks()
            assert msgspec.convert(await subject.get("/gc/links?worker=a%2Fb"), Links).readers == 1

    run(main())


@pytest.mark.parametrize("token", [None, "correct horse battery"])
def test_dashboard_comes_to_a_browser_that_has_no_token_yet(token: str | None) -> None:
    """Its files alone; also from elsewhere, where it will say what is missing."""

    async def main() -> None:
        async with router(token=token) as subject:
            for path in ("/gc/ui", "/gc/ui/main.js"):
                request = LocalRequest("GET", path, "", {b"host": b"router.example"}, b"", "192.0.2.1")
                response = await subject.admin.handle(request)
                assert (response.status, len(response.body) > 1000) == (200, True)
                head = await subject.admin.handle(request._replace(method="HEAD"))
                assert (head.status, head.body) == (200, b"")
            slash = await subject.send("GET", "/gc/ui/")
            assert (slash.status, dict(slash.headers)[b"location"]) == (308, b"../ui")

    run(main())
