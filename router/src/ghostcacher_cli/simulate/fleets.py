"""What a command line says of a fleet: a preset, numbers, or a preset with some numbers instead of its own."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NamedTuple, get_args

from ghostcacher_cli.terminal.numbers import Number, Whole
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.retention.retention_settings import PolicyName
from ghostcacher_simulator.machines.presets import (
    GPUS,
    HOST_BYTES_PER_S,
    MODELS,
    PRICED,
    gpu_named,
    model_named,
    worker_of,
)
from ghostcacher_simulator.machines.workers import FleetSpec, HostTier, ObjectTier, WorkerSpec

GIB = 1 << 30
EVICTION_POLICIES: Sequence[str] = get_args(PolicyName)
DEFAULT_GPU, DEFAULT_MODEL = "h100", "llama-3.1-8b"


class FleetOptions(NamedTuple):
    """A worker, and where its figures come from."""

    worker: WorkerSpec
    sources: Sequence[str]
    """For people: each a preset with its source, or what was given."""
    objects: ObjectTier | None = None
    """What all workers keep together."""

    def of(self, workers: int) -> FleetSpec:
        """Return a fleet of so many."""
        return FleetSpec(workers, self.worker, objects=self.objects)


def add_fleet(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe a worker."""
    add = parser.add_argument_group("a worker: a preset, and what is given instead of its figures").add_argument
    add("--gpu", default=DEFAULT_GPU, metavar="NAME", help=f"one of {', '.join(GPUS)} ({DEFAULT_GPU})")
    add("--gpus", type=Whole(1, 64), default=1, metavar="N", help="of one worker (1)")
    add("--model", default=DEFAULT_MODEL, metavar="NAME", help=f"one of {', '.join(MODELS)} ({DEFAULT_MODEL})")
    add("--kv-tokens", type=Whole(1, 10**12), metavar="N", help="tokens that its KV cache holds")
    add("--kv-bytes-per-token", type=Whole(1, 10**9), metavar="N", help="KV of one token in all layers, in bytes")
    add("--prefill-tokens-per-second", type=Number(), metavar="N", help="prompt tokens that it computes")
    add("--step-ms", type=Number(), metavar="N", help="time of a step, whatever is in it")
    add("--answer-ms", type=Number(at_least_0=True), metavar="N", help="what each running answer adds to a step")
    add("--step-tokens", type=Whole(1, 1 << 24), metavar="N", help="tokens of a step, at most (8192)")
    add("--link-gb-per-second", type=Number(), metavar="N", help="at which it pulls from a peer, in 10^9 bytes/s")
    add("--host-gib", type=Number(at_least_0=True), default=0.0, metavar="N", help="host tier of each worker (0: none)")
    add(
        "--host-policy",
        choices=EVICTION_POLICIES,
        default=EVICTION_POLICIES[0],
        help=f"by what a full host tier chooses the block that goes ({EVICTION_POLICIES[0]})",
    )
    add("--host-gb-per-second", type=Number(), metavar="N", help="at which it loads from there (20)")
    add("--object-gb-per-second", type=Number(), metavar="N", help="an object tier, and its rate at one worker (none)")
    add("--object-ms", type=Number(at_least_0=True), default=20.0, metavar="N", help="of one read from it (20)")
    add("--object-gib", type=Number(), metavar="N", help="what it holds, of all workers (any amount)")
    add("--object-usd-per-gb-month", type=Number(at_least_0=True), metavar="N", help="price of storing there (none)")
    add("--usd-per-hour", type=Number(), metavar="N", help="price of one worker (of the GPUs: see its source)")


def fleet_options(given: argparse.Namespace, block_tokens: int) -> FleetOptions:
    """Return the worker that options describe. Raises ConfigError."""
    gpu, model = gpu_named(given.gpu), model_named(given.model)
    if given.kv_bytes_per_token is not None:
        model = model._replace(kv_bytes_per_token=given.kv_bytes_per_token)
    worker = worker_of(gpu, model, gpus=given.gpus, block_tokens=block_tokens)
    profile, batching = worker.profile, worker.batching
    if given.kv_tokens is not None:
        if given.kv_tokens < block_tokens:
            raise ConfigError(f"--kv-tokens: expected at least one block of {block_tokens}, got {given.kv_tokens}")
        profile = profile._replace(kv_blocks=given.kv_tokens // block_tokens)
    if given.prefill_tokens_per_second is not None:
        profile = profile._replace(prefill_tokens_per_s=given.prefill_tokens_per_second)
    if given.link_gb_per_second is not None:
        profile = profile._replace(pull_bytes_per_s=given.link_gb_per_second * 1e9)
    if given.step_ms is not None:
        batching = batching._replace(step_s=given.step_ms / 1e3)
    if given.answer_ms is not None:
        batching = batching._replace(decode_s=given.answer_ms / 1e3)
    if given.step_tokens is not None:
        batching = batching._replace(step_tokens=given.step_tokens)
    host_blocks = int(given.host_gib * GIB // profile.block_bytes)
    if given.host_gib and not host_blocks:
        raise ConfigError(
            f"--host-gib: expected at least one block of {profile.block_bytes:,} bytes, got {given.host_gib}"
        )
    rate = HOST_BYTES_PER_S if given.host_gb_per_second is None else given.host_gb_per_second * 1e9
    host = HostTier(host_blocks, rate, given.host_policy) if host_blocks else None
    price = worker.usd_per_hour if given.usd_per_hour is None else given.usd_per_hour
    sources: tuple[str, ...] = (f"{given.gpus} x {given.gpu}: {gpu.source}", f"{given.model}: {model.source}")
    if given.usd_per_hour is None:
        sources = (*sources, f"price: {given.gpus} x {gpu.usd_per_hour} USD/h, {gpu.priced}, {PRICED}")
    return FleetOptions(WorkerSpec(profile, batching, host, price), sources, _objects(given, profile.block_bytes))


def _objects(given: argparse.Namespace, block_bytes: int) -> ObjectTier | None:
    """Return the object tier that options describe. Raises ConfigError."""
    if given.object_gb_per_second is None:
        for name in ("object_gib", "object_usd_per_gb_month"):
            if getattr(given, name) is not None:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag}: expected an object tier, with --object-gb-per-second, got none")
        return None
    if not given.host_gib:
        raise ConfigError(
            "--object-gb-per-second: expected a host tier, with --host-gib, which it lies behind, got none"
        )
    blocks = None if given.object_gib is None else int(given.object_gib * GIB // block_bytes)
    if blocks == 0:
        raise ConfigError(f"--object-gib: expected at least one block of {block_bytes:,} bytes, got {given.object_gib}")
    rate, fixed_s, price = given.object_gb_per_second * 1e9, given.object_ms / 1e3, given.object_usd_per_gb_month
    return ObjectTier(rate, fixed_s, blocks, usd_per_gb_month=price)
