"""Reads the dashboard's files once, and says with which headers a browser gets them.

Nothing is built, and nothing is asked of anybody else: the page loads its style sheet and scripts from this router, and
asks `/gc/*` for data. The headers hold the browser to that. Even a script that found its way into the page, through the
name of a worker say, would not be run, and could not send the token anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files

from ghostcacher_router.http.protocol.local_response import LocalResponse

PAGE = "/gc/ui"
INDEX = "index.html"
TYPES = {
    ".html": b"text/html; charset=utf-8",
    ".css": b"text/css; charset=utf-8",
    ".js": b"text/javascript; charset=utf-8",
    ".svg": b"image/svg+xml",
}

POLICY = (
    b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    b"require-trusted-types-for 'script'; trusted-types 'none'"
)
"""No inline script or style, no other site, no frame around it, and no text that becomes markup."""

HEADERS = (
    (b"content-security-policy", POLICY),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    # A router of another version has other files under the same names.
    (b"cache-control", b"no-store"),
)


def ui_files() -> Mapping[str, LocalResponse]:
    """Return the answer to each path of the dashboard: the page, and its files below it."""
    found = {}
    for file in files("ghostcacher_router.ui").joinpath("static").iterdir():
        kind = TYPES.get(file.name[file.name.rfind(".") :])
        if kind is not None:
            headers = ((b"content-type", kind), *HEADERS)
            path = PAGE if file.name == INDEX else f"{PAGE}/{file.name}"
            found[path] = LocalResponse(200, headers, file.read_bytes())
    # As people type it: the names of the files in the page are relative to the page without a slash.
    found[f"{PAGE}/"] = LocalResponse(308, ((b"location", b"../ui"),), b"")
    return found
