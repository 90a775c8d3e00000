"""HTTP that asks servers of this machine itself, whatever proxy the environment names (``http_proxy``).

A proxy would look for them on its own machine, and be told their tokens. Others are asked as the environment says.
"""

from __future__ import annotations

import urllib.request
from http.client import HTTPResponse
from typing import cast

from ghostcacher_connector.core.addresses import is_loopback_url


def open_url(request: urllib.request.Request, *, timeout_s: float) -> HTTPResponse:
    """Return the answer to a request. Raises OSError (URLError, HTTPError), HTTPException or ValueError."""
    proxies = urllib.request.ProxyHandler({} if is_loopback_url(request.full_url) else None)
    return cast(HTTPResponse, urllib.request.build_opener(proxies).open(request, timeout=timeout_s))
