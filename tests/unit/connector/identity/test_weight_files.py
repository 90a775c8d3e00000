"""Weight files: no changed tensor is missed, little is read, and a hub cache's own digests count."""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.identity import weight_files
from ghostcacher_connector.identity.model_files import weights_digest
from ghostcacher_connector.identity.weight_files import (
    PIECE_BYTES,
    PIECE_BYTES_MIN,
    PIECES,
    SAMPLED_BYTES_MAX,
    WHOLE_BYTES_MAX,
    Range,
    WeightFile,
    inspect,
    samples_of,
)

Tensors = dict[str, "np.ndarray[tuple[int, ...], np.dtype[np.float32]]"]

LAYERS = 40
HUB = "models--org--model"


def weights() -> Tensors:
    """Return the tensors of a small model: matrices, norms, and a head that comes last, as in a file."""
    rng = np.random.default_rng(7)
    tensors: Tensors = {"embed": rng.normal(size=(1000, 64)).astype(np.float32)}
    for layer in range(LAYERS):
        tensors[f"layers.{layer:02}.mlp"] = rng.normal(size=(64, 200)).astype(np.float32)
        tensors[f"layers.{layer:02}.norm"] = rng.normal(size=64).astype(np.float32)
    return {
        **tensors,
        "norm": rng.normal(size=64).astype(np.float32),
        "out": rng.normal(size=(64, 90)).astype(np.float32),
    }


def save(path: Path, tensors: Tensors, metadata: Mapping[str, str] | None = None) -> Path:
    """Write a safetensors file."""
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    packed = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(
        struct.pack("<Q", len(packed)) + packed + b"".join(tensor.tobytes() for tensor in tensors.values())
    )
    assert path.stat().st_size > WHOLE_BYTES_MAX
    return path


def digest(path: Path) -> str:
    return weights_digest(str(path), None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save(tmp_path / "model" / "model.safetensors", weights())
    return tmp_path / "model"


@pytest.mark.parametrize("name", weights())
def test_any_one_tensor_trained_digest_changes(model: Path, name: str) -> None:
    """A training step on one tensor moves its elements a little: seen for every tensor, the last one too."""
    before, tensors = digest(model), weights()
    tensors[name] = (tensors[name] * np.float32(1.0001)).astype(np.float32)
    save(model / "model.safetensors", tensors)
    assert digest(model) != before


def test_middle_of_a_tensor_changed_digest_changes(model: Path) -> None:
    """Where only some experts, heads or rows were trained, the ends of a tensor may be as they were."""
    before, tensors = digest(model), weights()
    tensors["embed"][450:550] *= np.float32(1.0001)
    save(model / "model.safetensors", tensors)
    assert digest(model) != before


def test_tensor_renamed_digest_changes(model: Path) -> None:
    """Equal bytes under other names, or in another order, are other weights."""
    before, tensors = digest(model), weights()
    names = list(tensors)
    names[1], names[3] = names[3], names[1]
    save(model / "model.safetensors", dict(zip(names, tensors.values(), strict=True)))
    assert digest(model) != before


def test_other_format_trained_digest_changes(tmp_path: Path) -> None:
    """Without a header that we know, pieces lie everywhere: of a small model hardly anything is left out."""
    data = np.random.default_rng(1).normal(size=4 << 20).astype(np.float32)
    path = tmp_path / "model.gguf"
    path.write_bytes(data.tobytes())
    before = digest(path)
    for start in range(0, len(data), len(data) // 16):
        changed = data.copy()
        changed[start : start + 4096] *= 1.0001
        path.write_bytes(changed.tobytes())
        assert digest(path) != before


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[]",
        b"{",
        b'{"a": {"data_offsets": [0]}}',
        b'{"a": {"data_offsets": [0, 99999999]}}',
        b'{"a": {"data_offsets": [-9, 4]}}',
        b'{"a": {"data_offsets": [0, 8]}, "b": {"data_offsets": [4, 12]}}',
        b'{"a": {"data_offsets": [8, 4]}}',
    ],
)
def test_header_broken_taken_as_any_file(tmp_path: Path, header: bytes) -> None:
    """A header that is none is no error of ours: the engine will say so, if it reads the file at all."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(2 << 20))
    assert inspect(path).tensors == []
    before = digest(path)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    assert digest(path) != before


def test_header_longer_than_the_file_taken_as_any_file(tmp_path: Path) -> None:
    """Nothing is read past the end, and no length makes us allocate it."""
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 1 << 60) + bytes(2 << 20))
    assert inspect(path).tensors == []
    assert digest(path)


@given(st.lists(st.integers(0, 1 << 40), min_size=1, max_size=30), st.integers(1, 1 << 20))
def test_samples_lie_in_order_and_cover_each_tensor(sizes: list[int], head: int) -> None:
    """Samples do not overlap, and hold the header, and the first and last byte of every tensor."""
    ends = np.cumsum([head, *sizes]).tolist()
    tensors = [Range(start, end) for start, end in pairwise(ends)]
    (ranges,) = samples_of([WeightFile(Path("m.safetensors"), ends[-1], "", head, tensors, whole=False)])
    assert all(one.end < other.start for one, other in pairwise(ranges))
    places = [0, head - 1, *(place for start, end in tensors if end > start for place in (start, end - 1))]
    for place in places:
        assert any(start <= place < end for start, end in ranges), place
    assert ranges[-1].end <= ends[-1]


@given(st.integers(1, 400), st.integers(1, 400))
def test_sampled_bytes_bounded(files: int, thousands: int) -> None:
    """However many tensors there are, no more is read than the bound, or the least that a piece may have."""
    tensors = [Range(8 + (index << 20), 8 + (index + 1 << 20)) for index in range(1000)]
    each = WeightFile(Path("m.safetensors"), tensors[-1].end, "", 8, tensors, whole=False)
    count = min(files, 1 + thousands // 100)
    read = sum(end - start for ranges in samples_of([each] * count) for start, end in ranges)
    assert read <= max(SAMPLED_BYTES_MAX, PIECES * PIECE_BYTES_MIN * 1000 * count) + 8 * count
    assert read <= PIECES * PIECE_BYTES * 1000 * count + 8 * count


def test_many_tensors_have_smaller_pieces(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    """A mixture of many experts is read in smaller pieces, and still in each of them."""
    monkeypatch.setattr(weight_files, "SAMPLED_BYTES_MAX", 1 << 10)
    before, tensors = digest(model), weights()
    tensors["out"] *= np.float32(1.0001)
    save(model / "model.safetensors", tensors)
    assert digest(model) != before


def test_file_cut_short_while_read_refused(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that are still being written are an error by name, not a digest of half of them."""
    monkeypatch.setattr(os, "pread", lambda *_: b"")
    with pytest.raises(ConfigError, match=r"weights of .*cut short"):
        digest(model)


# -- the Hugging Face cache ----------------------------------------------------------------------------------------


def snapshot(cache: Path, tensors: Tensors, blob: str, revision: str = "a" * 40) -> Path:
    """Lay a model out as the cache of the hub does: a link in a snapshot, and the file under its content's name."""
    save(cache / HUB / "blobs" / blob, tensors)
    folder = cache / HUB / "snapshots" / revision
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").unlink(missing_ok=True)
    (folder / "model.safetensors").symlink_to(Path("../../blobs") / blob)
    return folder


def test_hub_content_tells_apart_what_samples_cannot(tmp_path: Path) -> None:
    """Two rows of the embedding differ, where no sample is: the hub's digest says that the files do."""
    tensors = weights()
    one = snapshot(tmp_path / "one", tensors, "1" * 64)
    tensors["embed"][100:102] += 1
    other = snapshot(tmp_path / "other", tensors, "2" * 64)
    assert digest(one) != digest(other)
    assert digest(snapshot(tmp_path / "elsewhere", weights(), "1" * 64, revision="b" * 40)) == digest(one)
    assert digest(one).startswith("hub-")


def test_hub_file_changed_in_its_place_is_seen(tmp_path: Path) -> None:
    """A name that nobody has checked since does not stand for the samples."""
    before, tensors = digest(snapshot(tmp_path, weights(), "1" * 64)), weights()
    tensors["out"] *= np.float32(1.0001)
    assert digest(snapshot(tmp_path, tensors, "1" * 64)) != before


@pytest.mark.parametrize("blob", ["3" * 40, "x" * 64, "A" * 64, "1" * 64 + ".incomplete"])
def test_blob_with_another_name_not_believed(tmp_path: Path, blob: str) -> None:
    """Only a SHA-256 is a digest of content; another name gives the digest of a plain folder."""
    plain = save(tmp_path / "plain" / "model.safetensors", weights()).parent
    assert digest(snapshot(tmp_path, weights(), blob)) == digest(plain)


def test_links_that_are_no_hub_cache_not_believed(tmp_path: Path, model: Path) -> None:
    """A link to a file that has a digest for its name, or to a whole snapshot, is a plain folder with these files."""
    save(tmp_path / "store" / ("1" * 64), weights())
    for parent in (tmp_path / "links", tmp_path / HUB / "snapshots" / "a"):
        parent.mkdir(parents=True)
        (parent / "model.safetensors").symlink_to(tmp_path / "store" / ("1" * 64))
        assert digest(parent) == digest(model)
    tree = snapshot(tmp_path / "tree", weights(), "1" * 64)
    assert digest(tree.parent.rename(tree.parent.with_name("copies")) / tree.name) == digest(model)
    (tmp_path / "linked").symlink_to(snapshot(tmp_path / "cache", weights(), "1" * 64))
    assert digest(tmp_path / "linked") == digest(model)
