"""Requests whose pull is over run before any other one gets slots: they hold some, and vLLM cannot take these back.

vLLM 0.30 may look at a preempted request first, find no room for it because others hold slots for what was pulled, look
no further, and so wait for ever. (Later versions look at holders of slots first.) So that request is passed over until
the holders run, and with it all that come behind it in the same step: they would take the room for which it waits.
"""

from __future__ import annotations

from vllm.v1.request import RequestStatus

from ghostcacher_connector.engines.vllm.scheduling.requests import Tracked


class LoadedFirst:
    """Passes over whoever asks for slots while requests whose pull is over do not run yet."""

    def __init__(self) -> None:
        self._over: dict[str, Tracked] = {}
        self._passing = False

    def add(self, tracked: Tracked) -> None:
        """Take note that the pull of a request is over, well or not."""
        self._over[tracked.request_id] = tracked

    def forget(self, request_id: str) -> None:
        """A request has ended."""
        self._over.pop(request_id, None)

    def next_step(self) -> None:
        """A step has been scheduled; the next one begins with whoever comes first."""
        self._passing = False

    def passes(self, request_id: str) -> bool:
        """Say whether a request, for which vLLM asks, is to be passed over in this step."""
        self._over = {name: tracked for name, tracked in self._over.items() if _holds_and_waits(tracked)}
        self._passing = self._passing or any(name != request_id for name in self._over)
        return self._passing


def _holds_and_waits(tracked: Tracked) -> bool:
    """Say whether a request whose pull is over still holds slots without running."""
    request = tracked.request
    if request.status == RequestStatus.WAITING_FOR_REMOTE_KVS:
        return True  # vLLM has not looked at it since
    return bool(request.status != RequestStatus.RUNNING and request.num_computed_tokens > 0)
