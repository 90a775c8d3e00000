"""Fingerprints: equal only when everything is, and nothing empty is anything."""

from __future__ import annotations

import subprocess
import sys

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.core.schema import is_namespace
from ghostcacher_connector.identity.fingerprint import ABSENT, Fingerprint, differences, private_value

BASE = {
    "model": "org/model",
    "revision": "main",
    "config_digest": "c0",
    "weights_digest": "w0",
    "weights_epoch": "as started",
    "kv_dtype": "bfloat16",
    "quantization": "none",
    "numerics": "a=1;b=2",
    "block_tokens": 16,
    "layers": 4,
    "kv_heads": 2,
    "head_size": 64,
    "layout": "CPU_ATTN:4x(16384/16384)",
    "tp": 1,
    "ranks_hold": "shards",
    "pp": 1,
    "dcp": 1,
    "hash_algorithm": "sha256",
    "hash_seed": "5eed",
    "known_hash": "0a1b",
    "engine": "vllm",
    "engine_version": "0.32.0",
    "schema_version": 1,
}
TEXTS = [name for name, value in BASE.items() if isinstance(value, str)]
NUMBERS = [name for name, value in BASE.items() if isinstance(value, int)]

fingerprints = st.fixed_dictionaries(
    {
        name: st.text(min_size=1, max_size=8).filter(str.strip) if name in TEXTS else st.integers(1, 1 << 40)
        for name in BASE
    }
)


def make(**changed: object) -> Fingerprint:
    return Fingerprint(**(BASE | changed))  # type: ignore[arg-type]


def test_fields_are_those_of_the_design() -> None:
    """No field is optional, and the test knows all of them."""
    fields = msgspec.structs.fields(Fingerprint)
    assert {field.name for field in fields} == BASE.keys()
    assert all(field.required for field in fields)


@pytest.mark.parametrize("name", BASE)
def test_any_field_changed_gives_another_namespace(name: str) -> None:
    """Each field alone keeps two caches apart, and the difference is named."""
    changed = BASE[name] + 1 if isinstance(BASE[name], int) else f"{BASE[name]}x"  # type: ignore[operator]
    other = make(**{name: changed})
    assert other.digest() != make().digest()
    assert differences(make().as_fields(), other.as_fields()) == [(name, str(BASE[name]), str(changed))]


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("blank", ["", " ", "\t\n", None, 7])
def test_text_blank_refused(name: str, blank: object) -> None:
    """Nothing empty compares equal: it cannot even be constructed."""
    with pytest.raises(ConfigError, match=name):
        make(**{name: blank})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("bad", [0, -1, None, True, "1", 1.0])
def test_number_not_positive_int_refused(name: str, bad: object) -> None:
    """A number that was not filled in is refused."""
    with pytest.raises(ConfigError, match=name):
        make(**{name: bad})


@given(fingerprints, fingerprints)
def test_digests_equal_exactly_when_fields_are(a: dict[str, object], b: dict[str, object]) -> None:
    """Two fingerprints share a namespace exactly when no field differs."""
    left, right = make(**a), make(**b)
    same = a == b
    assert (left.digest() == right.digest()) is same
    assert (not differences(left.as_fields(), right.as_fields())) is same


@given(fingerprints)
def test_digest_is_a_namespace(values: dict[str, object]) -> None:
    """A digest is a valid namespace, and round-trips through the text fields keep all of them."""
    fingerprint = make(**values)
    assert is_namespace(fingerprint.digest())
    assert len(fingerprint.digest()) == 32
    assert fingerprint.as_fields() == {name: str(value) for name, value in values.items()}


@given(st.tuples(st.sampled_from(TEXTS), st.sampled_from(TEXTS)), st.text("ab", min_size=1), st.text("ab", min_size=1))
def test_values_swapped_between_fields_differ(names: tuple[str, str], one: str, two: str) -> None:
    """A value counts together with the field that it is in."""
    first, second = names
    if first == second or one == two:
        return
    assert make(**{first: one, second: two}).digest() != make(**{first: two, second: one}).digest()


@given(st.text("ab", min_size=3, max_size=8), st.integers(1, 7), st.integers(1, 7))
def test_text_cut_elsewhere_differs(text: str, one: int, two: int) -> None:
    """Two neighbouring fields are not the same when only the place between them moves."""
    first, second = "engine", "engine_version"
    cuts = {min(one, len(text) - 1), min(two, len(text) - 1)}
    digests = {make(**{first: text[:cut], second: text[cut:]}).digest() for cut in cuts}
    assert len(digests) == len(cuts)


def test_digest_equal_in_another_process() -> None:
    """The namespace does not depend on the process: no hash seed, no order of creation."""
    code = (
        "import sys, msgspec; from ghostcacher_connector.identity.fingerprint import Fingerprint;"
        "print(Fingerprint(**msgspec.json.decode(sys.argv[1])).digest())"
    )
    reverse = dict(reversed(BASE.items()))
    output = subprocess.run(
        [sys.executable, "-c", code, msgspec.json.encode(reverse).decode()],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env={"PYTHONHASHSEED": "12345", "PYTHONPATH": ":".join(sys.path)},
    )
    assert output.stdout.strip() == make().digest()


def test_field_of_one_side_only_is_a_difference() -> None:
    """Between versions that know other fields, a missing field is a difference, not an equal nothing."""
    assert differences({"a": "1", "b": "2"}, {"b": "2", "c": "3"}) == [("a", "1", ABSENT), ("c", ABSENT, "3")]


@pytest.mark.parametrize("name", BASE)
def test_version_without_a_field_has_another_namespace(name: str) -> None:
    """While a fleet is upgraded, workers that know a field and workers that do not never meet, whatever its value."""
    fields = [(key, type(value)) for key, value in BASE.items() if key != name]
    older = msgspec.defstruct("Older", fields, kw_only=True, namespace={"digest": Fingerprint.digest})
    assert older(**{key: BASE[key] for key, _ in fields}).digest() != make().digest()


def test_private_value_of_one_owner_is_stable() -> None:
    """The processes of one worker agree on its private value, and no two workers do."""
    assert private_value("engine-1") == private_value("engine-1")
    assert private_value("engine-1") != private_value("engine-2")
    assert private_value() != private_value()
