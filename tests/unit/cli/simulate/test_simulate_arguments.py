"""The command line of `ghostcacher simulate`: what it says of loads and fleets, and what is refused."""

from __future__ import annotations

import pytest

from ghostcacher_cli.simulate.arguments import COMPARED, SimulateOptions, parse
from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_router.flow.settings import FlowSettings
from ghostcacher_simulator.load.generated import Chat
from ghostcacher_simulator.machines.workers import ObjectTier
from ghostcacher_simulator.replay.policies import GhostCacher, Policy
from ghostcacher_simulator.virtual_time import run_virtual


def test_load_that_is_made_and_trace_are_told_apart() -> None:
    made, trace = parse(["chat:turns=3"]).load, parse(["dir/chat.jsonl", "--first", "5", "--requests", "9"]).load
    assert (made.made, made.trace, made.block_tokens) == (Chat(turns=3), None, 128)
    assert (trace.made, str(trace.trace), trace.first, trace.requests) == (None, "dir/chat.jsonl", 5, 9)
    assert trace.block_tokens == 512


def test_given_figures_stand_instead_of_the_presets() -> None:
    words = ["chat", "--kv-tokens", "1300", "--prefill-tokens-per-second", "5000", "--step-ms", "7", "--answer-ms", "0"]
    more = ["--link-gb-per-second", "3", "--kv-bytes-per-token", "1024", "--step-tokens", "99", "--usd-per-hour", "2"]
    worker = parse(
        [*words, *more, "--host-gib", "0.5", "--host-gb-per-second", "4", "--host-policy", "lru"]
    ).fleet.worker
    profile, batching, host = worker.profile, worker.batching, worker.host
    assert (profile.kv_blocks, profile.prefill_tokens_per_s, profile.block_bytes) == (10, 5_000.0, 128 * 1_024)
    assert profile.pull_bytes_per_s == 3e9
    assert (batching.step_s, batching.decode_s, batching.step_tokens) == (0.007, 0.0, 99)
    assert host is not None
    assert (host.blocks, host.bytes_per_s, host.policy) == (4_096, 4e9, "lru")
    assert worker.usd_per_hour == 2.0


def test_object_tier_lies_behind_the_host_tier() -> None:
    words = [
        "chat",
        "--host-gib",
        "1",
        "--object-gb-per-second",
        "2",
        "--object-ms",
        "5",
        "--kv-bytes-per-token",
        "1024",
    ]
    more = ["--object-gib", "0.5", "--object-usd-per-gb-month", "0.02"]
    assert parse([*words, *more]).fleet.of(3).objects == ObjectTier(2e9, 0.005, 4_096, usd_per_gb_month=0.02)
    assert parse(words).fleet.objects == ObjectTier(2e9, 0.005)
    assert parse(["chat"]).fleet.objects is None


def test_price_is_that_of_the_gpus_where_none_is_given() -> None:
    fleet = parse(["chat", "--gpu", "l4", "--gpus", "2"]).fleet
    assert fleet.worker.usd_per_hour == pytest.approx(2 * 0.8048)
    assert fleet.sources[-1] == "price: 2 x 0.8048 USD/h, g6.xlarge, AWS on demand, us-east-1, January 2026"
    assert not any("price" in source for source in parse(["chat", "--usd-per-hour", "3"]).fleet.sources)


def test_fleets_and_policies_are_run_each_once_in_order() -> None:
    options = parse(["chat", "--workers", "8,2,8", "--policies", "oracle,hashing,oracle"])
    assert options.workers == [2, 8]
    assert [each.key for each in options.policies] == ["oracle", "hashing"]
    assert [each.key for each in parse(["chat"]).policies] == ["ghostcacher"]
    assert tuple(each.key for each in parse(["chat", "--compare"]).policies) == COMPARED
    assert len(parse(["chat", "--policies", "all"]).policies) == 11


def test_flow_control_is_of_the_projects_own_routers_and_goes_by_what_tenants_have() -> None:
    """What is given counts in its place; without a setting there is none."""
    words = ["chat", "--tenant", "flood", "--tenant", "urgent:share=0.1,priority=-5,deadline=2"]
    assert flow_of(parse([*words, "--flow", "queue_max=9"])) == FlowSettings(
        flow_queue_max=9,
        flow_priorities="client",
        flow_priority_min=-5,
        flow_tenants="cache_salt",
        flow_deadlines=True,
    )
    given = ["--flow", "queue_max=9", "--flow", "priorities=off", "--flow", "tenants=", "--flow", "deadlines=false"]
    assert flow_of(parse([*words, *given])) == FlowSettings(flow_queue_max=9, flow_priority_min=-5)
    weighted = parse([*words, "--flow", "queue_max=9", "--flow", "tenant_weights=flood=2,urgent=0.5"])
    assert flow_of(weighted).flow_tenant_weights == ("flood=2", "urgent=0.5")
    assert [tenant.name for tenant in parse(words).tenants] == ["flood", "urgent"]
    policy = run_virtual(made_of(parse(words)))
    assert isinstance(policy, GhostCacher)
    assert policy.flow is None


def flow_of(options: SimulateOptions) -> FlowSettings:
    """Return the settings of the routers that would be made."""
    policy = run_virtual(made_of(options))
    assert isinstance(policy, GhostCacher)
    assert policy.flow is not None
    return policy.flow


async def made_of(options: SimulateOptions) -> Policy:
    return options.policies[0].make([], None)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["chat", "--tenant", "a b"], r"--tenant: expected NAME, .*, got 'a b'"),
        (["chat", "--tenant", "a", "--tenant", "a"], r"--tenant: expected each name once, got a, a"),
        (["chat", "--flow", "queue=1"], r"--flow: expected NAME=VALUE with a name of queue_max, .*, got 'queue=1'"),
        (["chat", "--flow", "priority_to_engines=true"], r"--flow: expected NAME=VALUE"),
        (["chat", "--flow", "queue_max=many"], r"--flow queue_max: expected an int .*, got 'many'"),
        (["chat", "--flow", "queue_max=1", "--flow", "tenants=x-a"], r"--flow tenants: expected cache_salt or nothing"),
        (["chat", "--flow", "priorities=client"], r"flow_queue_max: expected at least 1 beside flow_priorities"),
        (["chat", "--slo", "ttft-p90=1", "--workers", "2"], r"--slo: expected no --workers, .*, got both"),
        (["chat", "--fail", "fire@3"], r"failure: expected death:WORKER@S, .*, got 'fire@3'"),
        (["chat", "--plot", "a.gif"], r"--plot: expected a name that ends in \.png or \.svg, got 'a\.gif'"),
        (["chat", "--policies", "best"], r"--policies: expected some of round-robin, .*, or all, got 'best'"),
        (["chat", "--first", "3"], r"--first: expected a trace, got the load 'chat', which is made"),
        (["chat", "--requests", "3"], r"--requests: expected a trace; of a load that is made: chat:requests=3"),
        (["chat", "--gpu", "h9"], r"gpu: expected one of h100, .*, got 'h9'"),
        (["chat", "--kv-tokens", "100"], r"--kv-tokens: expected at least one block of 128, got 100"),
        (["chat", "--object-gb-per-second", "1"], r"--object-gb-per-second: expected a host tier, .*, got none"),
        (["chat", "--object-gib", "1"], r"--object-gib: expected an object tier, .*, got none"),
        (
            ["chat", "--host-gib", "1", "--object-gb-per-second", "1", "--object-gib", "0.001"],
            r"--object-gib: expected at least one block of 16,777,216 bytes, got 0\.001",
        ),
        (["chat", "--host-gib", "0.001"], r"--host-gib: expected at least one block of 16,777,216 bytes, got 0\.001"),
    ],
)
def test_wrong_option_is_named(words: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=f"^{said}"):
        parse(words)


@pytest.mark.parametrize(
    "words", [["--workers", "0"], ["--workers", "2,x"], ["--speed", "0"], ["--usd-per-hour", "-1"]]
)
def test_number_out_of_range_is_wrong_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["chat", *words])
    assert f"argument {words[0]}: expected" in capsys.readouterr().err
