"""What can go wrong with a request, as exceptions. All of them are `GhostCacherError`."""

from __future__ import annotations


class GhostCacherError(Exception):
    """The base of all errors of this client."""


class ArgumentError(GhostCacherError, ValueError):
    """An argument that makes no sense; nothing was sent.

    field: the argument, with its place: ``messages[1].role``.
    """

    def __init__(self, field: str, why: str) -> None:
        super().__init__(f"{field}: {why}")
        self.field = field


class ConnectFailed(GhostCacherError):
    """No connection could be made, or it closed before anything of an answer had come."""


class AnswerTimeout(GhostCacherError):
    """The answer, or its next part, did not come in time. Never tried again: the engine may still be at it."""


class AnswerBroken(GhostCacherError):
    """An answer that had begun broke off, or ended with an error. What has come of a stream until then is good.

    code: what the server calls the error; None where the connection just ended.
    """

    def __init__(self, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.code = code


class AnswerMalformed(GhostCacherError):
    """An answer that is not of the form that its API promises: likely no router is there."""


class StatusError(GhostCacherError):
    """The router or an engine refused the request, or failed.

    status: of HTTP. message: what the server says. code, param: OpenAI's code of the error and the field that is wrong,
    None where it names none. request_id: under which the router and its log know the request. retry_after_s: when to
    try again, None where the server does not say.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status
        self.message = message
        self.code = code
        self.param = param
        self.request_id = request_id
        self.retry_after_s = retry_after_s
