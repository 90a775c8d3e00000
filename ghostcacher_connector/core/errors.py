"""Every exception that GhostCacher raises.

A cache miss is a value, never an exception. Messages say what, which, expected and got:
``slot 41 of worker w3: expected generation 7, found 8``.
"""


class GhostCacherError(Exception):
    """Base of all errors raised by this package."""


class ConfigError(GhostCacherError):
    """A setting is unknown, ill-typed or out of range; the message names the key."""


class UnsupportedEngine(GhostCacherError):
    """The engine lacks something, or a feature in use is not proven; the message names it."""


class IndexUnavailable(GhostCacherError):
    """Redis cannot be reached, refused the command, or answered too late."""


class IndexRefused(IndexUnavailable):
    """Redis answers, and refuses us: a wrong user or password, or a permission that this user lacks."""


class IndexReplyTooLarge(IndexUnavailable):
    """Redis began a reply that is larger than any that was asked for: it holds what is none of ours."""


class ProtocolError(GhostCacherError):
    """Bytes from Redis or a peer do not have the form that the schema prescribes."""


class DigestMismatch(ProtocolError):
    """A value of the index is damaged, stands where it does not belong, or was written with another index_key."""


class ValueExpired(ProtocolError):
    """A value of Redis was authentic once, and its time is over: somebody has put it back, or clocks differ."""


class FingerprintMismatch(GhostCacherError):
    """Two workers whose KV caches differ in kind were about to share blocks."""


class TransferError(GhostCacherError):
    """A pull could not be carried out."""


class PeerUnreachable(TransferError):
    """No transport leads to the peer, or the one that did has failed."""
