"""The doctor's words: lines, JSON, exit codes, who pulls from whom, and which field keeps workers apart."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from ghostcacher_cli.doctor import Check, Options, Status, exit_code, render, render_json, run
from ghostcacher_cli.doctor.fleet_checks import (
    check_addresses,
    check_fingerprints,
    check_gone,
    check_names,
    check_workers,
)
from ghostcacher_cli.doctor.link_checks import ask, check_links, collect, pairs_of
from ghostcacher_cli.main import main
from ghostcacher_connector.core.index.base import GoneWorker, ref_of
from ghostcacher_connector.core.index.link_report import LinkReport, links_report
from ghostcacher_connector.core.index.memory import MemoryIndex
from ghostcacher_connector.core.types import Role, WorkerRecord
from ghostcacher_connector.publish.publisher import Publisher
from tests.support.index_parts import FakeClock, make_record

FINE = Check("a", Status.OK, "well")
WARNED = Check("b", Status.WARN, "hm", "do this")
FAILED = Check("c", Status.FAIL, "broken", "do that")


OLD_LINK = LinkReport(ok=True, transport="nixl", bytes_per_s=1.0, rtt_us=1.0, error="", at=1.0, request="old")


def worker(name: str, namespace: str = "n1", role: Role = Role.BOTH, **fingerprint: str) -> WorkerRecord:
    record = make_record(name, namespace=namespace)
    return msgspec.structs.replace(record, role=role, fingerprint=record.fingerprint | fingerprint)


@pytest.mark.parametrize(("checks", "code"), [([], 0), ([FINE, WARNED], 0), ([FINE, FAILED, WARNED], 1)])
def test_exit_code_counts_failures_only(checks: list[Check], code: int) -> None:
    """A warning is no failure."""
    assert exit_code(checks) == code


def test_lines_say_how_to_fix() -> None:
    """One line a check, and under a bad one how to fix it."""
    assert list(render([FINE, FAILED])) == ["OK   a: well", "FAIL c: broken", "     fix: do that"]


def test_lines_control_characters_replaced() -> None:
    """What a worker wrote into the index cannot drive the terminal of who reads it."""
    (line,) = render([Check("worker \x1b[2Jx", Status.OK, "a\nb\r")])
    assert line == "OK   worker x: a?b?"


def test_json_has_everything() -> None:
    """The JSON form says the same as the lines."""
    assert json.loads(render_json([FINE, FAILED])) == {
        "ok": False,
        "checks": [
            {"name": "a", "status": "OK", "text": "well", "fix": ""},
            {"name": "c", "status": "FAIL", "text": "broken", "fix": "do that"},
        ],
    }


def test_fingerprints_equal_nothing_fails() -> None:
    """Workers of one namespace share; another model in another namespace is nobody's mistake."""
    checks = list(check_fingerprints([worker("w1"), worker("w2"), worker("w3", "n2", model="other")]))
    assert [check.status for check in checks] == [Status.OK, Status.OK]
    assert "w1, w2 share namespace n1" in checks[0].text


def test_fingerprints_of_one_model_differ_field_named() -> None:
    """Workers of one model that can never share are found, with the field and both values."""
    records = [worker("w1"), worker("w2"), worker("w3", "n2", kv_dtype="fp8", hash_seed="x")]
    _, bad = check_fingerprints(records)
    assert bad.status is Status.FAIL
    assert "w3 and w1, w2 never share" in bad.text
    assert "kv_dtype: fp8 on w3, bfloat16 on w1, w2" in bad.text
    assert "hash_seed: x on w3, (absent) on w1, w2" in bad.text
    assert "hash_seed, --kv-cache-dtype" in bad.fix


def test_fingerprints_differ_flags_named() -> None:
    """One flag that changes three fields is named once, as people write it, and nothing that follows from it."""
    one = {"engine": "vllm", "kv_dtype": "auto/torch.bfloat16", "quantization": "none/torch.bfloat16", "layout": "A::1"}
    two = {"engine": "vllm", "kv_dtype": "auto/torch.float32", "quantization": "none/torch.float32", "layout": "A::2"}
    _, bad = check_fingerprints([worker("w1", **one), worker("w2", "n2", **two)])
    assert bad.fix == "make --dtype equal on all of them"
    _, bad = check_fingerprints([worker("w1", **one), worker("w2", "n2", **one | {"layout": "B::1"})])
    assert bad.fix == "make --attention-backend equal on all of them"
    _, bad = check_fingerprints([worker("w1", **one), worker("w2", "n2", **one | {"layout": "A::2"})])
    switches = "--attention-backend, VLLM_KV_CACHE_LAYOUT, kv_layout (GC_KV_LAYOUT), the version of GhostCacher"
    assert bad.fix == f"make {switches} equal on all of them"
    _, bad = check_fingerprints([worker("w1", **one, tp="1"), worker("w2", "n2", **one, tp="2")])
    assert bad.fix == "make --tensor-parallel-size equal on all of them"


@pytest.mark.parametrize(
    ("engine", "fields", "fix"),
    [
        ("vllm", {"hash_seed": "1", "known_hash": "a"}, "PYTHONHASHSEED (unset and empty are two values)"),
        ("vllm", {"hash_algorithm": "xxhash", "known_hash": "a"}, "--prefix-caching-hash-algo"),
        (
            "vllm",
            {"known_hash": "a"},
            "PYTHONHASHSEED (unset and empty are two values), the versions of vLLM and Python",
        ),
        ("sglang", {"known_hash": "a"}, "the version of SGLang"),
    ],
)
def test_known_prompt_hashed_otherwise_cause_named(engine: str, fields: dict[str, str], fix: str) -> None:
    """Workers that hash one known prompt differently never find each other's blocks; the doctor says why that is."""
    same = {"engine": engine, "hash_algorithm": "sha256", "hash_seed": "0", "known_hash": "0"}
    _, bad = check_fingerprints([worker("w1", **same), worker("w2", "n2", **same | fields)])
    assert "known_hash: a on w2, 0 on w1" in bad.text
    assert bad.fix == f"make {fix} equal on all of them"


def test_variable_that_changes_numbers_named() -> None:
    """Of many names with values, those that differ are what is to be made equal."""
    one, other = "A=1;B='x';C=None", "A=1;B='y';D=True"
    _, bad = check_fingerprints(
        [worker("w1", engine="vllm", numerics=one), worker("w2", "n2", engine="vllm", numerics=other)]
    )
    assert bad.fix == "make B, C, D equal on all of them"


def test_worker_of_an_older_version_named() -> None:
    """During an upgrade the field that only the newer version has is shown, and what to do is to go on upgrading."""
    old = {"engine": "vllm", "hash_seed": "0", "weights_digest": "w0"}
    new = old | {"known_hash": "a", "weights_digest": "w1"}  # another way to digest the same files
    _, bad = check_fingerprints([worker("new", **new), worker("old", "n2", **old)])
    assert bad.status is Status.FAIL
    assert "known_hash: (absent) on old, a on new" in bad.text
    assert bad.fix == "make the version of GhostCacher equal on all of them: what else differs may follow from it"


def test_gone_workers_are_failures_until_their_name_is_back() -> None:
    """A dead worker does not just vanish from the list."""
    gone = [GoneWorker("w2", "n1", 12.3), GoneWorker("w1", "other", 5.0)]
    (check,) = check_gone([worker("w1")], gone)
    assert check.status is Status.FAIL
    assert check.name == "worker w2"
    assert "12 s ago" in check.text


def test_engine_that_was_refused_its_name_is_named() -> None:
    """Both engines are: the one that has the name, and the one that does not share."""
    index = MemoryIndex()
    first, second = (make_record("w1", token=token) for token in ("one", "two"))
    for record in (first, second):
        Publisher(index, record).step()
    (check,) = check_names(index, index.workers())
    assert check.status is Status.FAIL
    assert check.name == "worker w1"
    assert "another engine was refused this name" in check.text
    assert "process 1 on m-two" in check.text
    assert "process 1 on m-one has it" in check.text
    assert "GC_WORKER_ID" in check.fix


def test_refusal_that_cannot_be_read_is_named_all_the_same() -> None:
    """Its words are missing, not the fact."""
    index, record = MemoryIndex(), make_record(token="one")
    index.join(record, lease_ttl_s=60)
    index.put_report(ref_of(record), "refused", {"engine": b"\xff"}, ttl_s=60)
    (check,) = check_names(index, index.workers())
    assert check.status is Status.FAIL
    assert "cannot be read" in check.text


@pytest.mark.parametrize(("tokens", "count"), [(("a", "b"), 1), (("a", "a"), 0), ((None, None), 0), (("a", None), 0)])
def test_one_name_in_two_namespaces_is_named_when_two_processes_have_it(
    tokens: tuple[str | None, str | None], count: int
) -> None:
    """A process that changes from one namespace to another is one engine; an earlier version does not say who it is."""
    records = [make_record("w1", namespace=name, token=token) for name, token in zip("mn", tokens, strict=True)]
    found = list(check_names(MemoryIndex(), records))
    assert [check.status for check in found] == [Status.FAIL] * count
    assert all("2 live engines have this name" in check.text for check in found)


def test_loopback_address_warns_when_workers_are_on_several_machines() -> None:
    """On one machine it is as good as any."""
    here, there = make_record("w1"), make_record("w2")
    rank = msgspec.structs.replace(there.ranks[0], host="another")
    there = msgspec.structs.replace(there, http="http://10.0.0.7:8000", ranks=(rank,))
    assert not list(check_addresses([here]))
    (check,) = check_addresses([here, there])
    assert (check.name, check.status) == ("address w1", Status.WARN)
    assert "GC_HTTP_URL" in check.fix


def test_fingerprints_of_two_engines_of_one_model_nothing_fails() -> None:
    """A mixed fleet is two fleets behind one router; within each kind, a difference is still one."""
    mixed = [worker("v1", engine="vllm"), worker("s1", "n2", engine="sglang"), worker("s2", "n2", engine="sglang")]
    assert not [check for check in check_fingerprints(mixed) if check.status is not Status.OK]
    odd = [*mixed, worker("s3", "n3", engine="sglang", block_tokens="64")]
    bad = [check for check in check_fingerprints(odd) if check.status is not Status.OK]
    assert len(bad) == 1
    assert "block_tokens" in bad[0].text


def test_fingerprint_private_value_names_the_setting() -> None:
    """When a worker could not read its weights, the doctor says which setting fixes that."""
    _, bad = check_fingerprints([worker("w1", weights_digest="abc"), worker("w2", "n2", weights_digest="private-1")])
    assert "weights_id" in bad.fix


def test_weights_given_to_one_engine_are_named() -> None:
    """No setting and no file makes these equal: the other engine has to be given the same weights."""
    started, changed = ({"engine": "vllm", "weights_epoch": epoch} for epoch in ("as started", "private-1"))
    _, bad = check_fingerprints([worker("w1", **started), worker("w2", "n2", **changed)])
    assert "weights_epoch" in bad.text
    assert "the weights given to running engines" in bad.fix
    assert "weights_id" not in bad.fix


def test_same_files_from_two_kinds_of_places_said() -> None:
    """One digest has the hub's own in it, and the other has not: equal files do not make them equal."""
    one, other = ({"engine": "vllm", "weights_digest": digest} for digest in ("hub-ab", "cd"))
    _, bad = check_fingerprints([worker("w1", **one), worker("w2", "n2", **other)])
    assert "where the model's files come from (a Hugging Face cache, or a folder), weights_id" in bad.fix


def test_hash_seed_drawn_at_random_names_the_variable() -> None:
    """A seed that each engine draws for itself is private, too, and no name for the weights helps there."""
    one, other = ({"engine": "vllm", "hash_seed": seed, "known_hash": seed} for seed in ("private-1", "private-2"))
    _, bad = check_fingerprints([worker("w1", **one), worker("w2", "n2", **other)])
    assert "PYTHONHASHSEED to one value" in bad.fix
    assert "weights_id" not in bad.fix


def test_no_workers_is_a_warning() -> None:
    """An empty fleet is no failure, but somebody who asks will want to know."""
    (check,) = check_workers([])
    assert check.status is Status.WARN


def test_pairs_need_a_reader_and_an_owner_of_one_namespace() -> None:
    """Only a worker that pulls reads, only one that publishes is read, and never across namespaces."""
    records = [
        worker("both"),
        worker("maker", role=Role.PRODUCER),
        worker("taker", role=Role.CONSUMER),
        worker("alien", "n2"),
    ]
    assert {str(pair) for pair in pairs_of(records)} == {
        "both:0 <- maker:0",
        "taker:0 <- both:0",
        "taker:0 <- maker:0",
    }


def test_links_of_an_old_request_not_taken() -> None:
    """A timed pull from before the doctor came is not passed off as a fresh one."""
    index, clock = MemoryIndex(), FakeClock()
    records = [worker("w1"), worker("w2")]
    for record in records:
        index.join(record, lease_ttl_s=60)
        for peer in records:
            field = {f"0:{peer.worker}": msgspec.msgpack.encode(OLD_LINK)}
            index.put_report(ref_of(record), links_report(0), field, ttl_s=60)
    asked = ask(index, records)
    assert set(asked) == {("n1", "w1"), ("n1", "w2")}
    found = collect(index, records, asked, 0.0, clock)
    assert found == {}
    checks = list(check_links(records, found, 3))
    assert [check.status for check in checks] == [Status.FAIL] * 2
    assert "no timed pull within 3 s" in checks[0].text


def test_links_of_a_lone_worker_fine() -> None:
    """A fleet of one has nobody to pull from, and that is no failure."""
    (check,) = check_links([worker("w1")], {}, 1)
    assert check.status is Status.OK


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["doctor", "--timeout", "0"], ["doctor", "--timeout", "nan"], ["doctor", "--no-such"]],
)
def test_usage_wrong_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Wrong usage is told apart from a sick fleet."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["--redis-url", "http://x"],
        ["--redis-url", "redis://h", "--relay-token-env", "NOT_SET_AT_ALL"],
        ["--redis-url", "redis://h", "--index-key-env", "NOT_SET_AT_ALL"],
    ],
)
def test_setting_wrong_exit_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A URL or variable that makes no sense is wrong usage, too, and is named."""
    assert main(["doctor", *arguments]) == 2
    assert "ghostcacher: " in capsys.readouterr().err


def test_router_alone_without_nixl_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """A router's Python has neither NIXL nor an engine: that no READ can be tried there is nothing wrong."""
    monkeypatch.setattr(run, "READERS", ("no_package_of_this_name",))
    redis, nixl = run.examine(Options("redis://127.0.0.1:1", None, 1.0))
    assert (redis.status, nixl.status) == (Status.FAIL, Status.WARN)
    assert "a router needs none" in nixl.text


@pytest.mark.parametrize(("url", "fix"), [("redis://127.0.0.1:1", "start Redis"), (None, "name the fleet's Redis")])
def test_redis_away_is_told_by_where_it_was_looked_for(
    url: str | None, fix: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Who has named no Redis is told that the private one of this user was looked for."""
    monkeypatch.setattr(run, "READERS", ())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    redis, _ = run.examine(Options(url, None, 1.0))
    assert (redis.status, redis.fix.startswith(fix)) == (Status.FAIL, True)


def test_version_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """The version command names GhostCacher and what it stands on."""
    assert main(["version"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("ghostcacher 0.")
    assert "redis " in printed


def test_options_never_show_secrets() -> None:
    """The doctor's options hold a token and a URL with a password, and show neither."""
    options = Options("redis://:hunter2@h", "hunter2hunter2", 1.0, "hunter2hunter2")
    assert "hunter2" not in f"{options!r} {options}"
