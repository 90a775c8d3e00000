"""The names of objects in a store, below the prefix of its URL.

    v1/objects/NAMESPACE/RANK/XX/DIGEST      blocks (object_format.py); XX: the digest's first byte, for folders' sake
    v1/notes/NAMESPACE/RANK/TIME-WORKER      segments of notes (object_notes.py); TIME: milliseconds since 1970
    v1/quarantine/NAME                       what was found damaged, for whoever wants to know why
    v1/sweeps/NUMBER                         says that somebody enforces the bounds in this stretch of time (sweeper.py)
    tmp/...                                  what files are called until they are whole

NAMESPACE is the digest of a namespace, RANK a number, DIGEST names the blocks. All digests are hexadecimal.
"""

from __future__ import annotations

import re

from ghostcacher_connector.objects.object_format import Identity

ROOT = "v1/"
OBJECTS = ROOT + "objects/"
NOTES = ROOT + "notes/"
QUARANTINE = ROOT + "quarantine/"
SWEEPS = ROOT + "sweeps/"

_OBJECT = re.compile(re.escape(OBJECTS) + r"[0-9a-f]+/\d+/[0-9a-f]{2}/([0-9a-f]+)")


def folder_of(identity: Identity) -> str:
    """Return what stands between `OBJECTS` or `NOTES` and the names of one rank of one namespace."""
    return f"{identity.namespace.hex()}/{identity.rank}/"


def object_name(identity: Identity, digest: bytes) -> str:
    """Return the name of an object."""
    text = digest.hex()
    return f"{OBJECTS}{folder_of(identity)}{text[:2]}/{text}"


def digest_of(name: str) -> bytes | None:
    """Return the digest in an object's name; None for another name."""
    found = _OBJECT.fullmatch(name)
    return bytes.fromhex(found[1]) if found and len(found[1]) % 2 == 0 else None


def quarantine_name(name: str) -> str:
    """Return where an object goes that was found damaged."""
    return QUARANTINE + name.removeprefix(ROOT).replace("/", "-")
