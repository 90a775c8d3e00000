"""The objects of a Kubernetes cluster that are read, as far as they are: all else in them is left out."""

from __future__ import annotations

import msgspec


class Metadata(msgspec.Struct, rename="camel"):
    """What every object has."""

    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    deletion_timestamp: str | None = None


class Selector(msgspec.Struct, rename="camel"):
    match_labels: dict[str, str]


class TargetPort(msgspec.Struct):
    number: int


class PoolSpec(msgspec.Struct, rename="camel"):
    selector: Selector
    target_ports: list[TargetPort]


class Pool(msgspec.Struct):
    """An InferencePool."""

    spec: PoolSpec
    metadata: Metadata = msgspec.field(default_factory=Metadata)


class Condition(msgspec.Struct):
    type: str = ""
    status: str = ""


class PodStatus(msgspec.Struct):
    pod_ip: str | None = msgspec.field(default=None, name="podIP")
    conditions: list[Condition] | None = None


class Pod(msgspec.Struct):
    metadata: Metadata
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class PageMetadata(msgspec.Struct):
    following: str = msgspec.field(default="", name="continue")
    """What the next page is asked for with; empty: there is none."""


class PodList(msgspec.Struct):
    """A page of pods."""

    items: list[Pod] | None = None
    metadata: PageMetadata = msgspec.field(default_factory=PageMetadata)


class Failure(msgspec.Struct):
    """What the API says of a request that failed (`Status`)."""

    reason: str = ""
