"""Digests of model files: what changes them, what does not, and what happens when there are none."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from ghostcacher_connector.core.errors import ConfigError
from ghostcacher_connector.identity.model_files import (
    config_digest,
    locate_model,
    model_name,
    resolved_digest,
    weights_digest,
)
from ghostcacher_connector.identity.weight_files import PIECE_BYTES, WHOLE_BYTES_MAX

LARGE = WHOLE_BYTES_MAX + 5 * PIECE_BYTES


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model directory with a large weight file, a small one, an index and a config."""
    return fill(tmp_path / "model")


def fill(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "model-1.safetensors").write_bytes(bytes(LARGE))
    (folder / "model-2.safetensors").write_bytes(b"small")
    (folder / "model.safetensors.index.json").write_text("{}")
    (folder / "config.json").write_text(json.dumps({"layers": 4, "transformers_version": "1", "_name_or_path": "x"}))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def poke(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\x01")


CHANGES: dict[str, Callable[[Path], object]] = {
    "first byte": lambda model: poke(model / "model-1.safetensors", 0),
    "last byte": lambda model: poke(model / "model-1.safetensors", LARGE - 1),
    "inner sample": lambda model: poke(model / "model-1.safetensors", LARGE // 2),
    "small file": lambda model: (model / "model-2.safetensors").write_bytes(b"smalL"),
    "size": lambda model: (model / "model-1.safetensors").write_bytes(bytes(LARGE + 1)),
    "index": lambda model: (model / "model.safetensors.index.json").write_text('{"a": 1}'),
    "name": lambda model: (model / "model-2.safetensors").rename(model / "model-3.safetensors"),
    "one more": lambda model: (model / "extra.gguf").write_bytes(b"x"),
    "one less": lambda model: (model / "model-2.safetensors").unlink(),
}


@pytest.mark.parametrize("what", CHANGES)
def test_weights_changed_digest_changes(model: Path, what: str) -> None:
    """Any change that fine-tuning or re-quantising makes to the weight files shows."""
    before = weights_digest(str(model), None)
    CHANGES[what](model)
    assert weights_digest(str(model), None) != before


def test_weights_elsewhere_digest_equal(model: Path, tmp_path: Path) -> None:
    """The same files in another place, or with other files beside them, are the same weights."""
    copy = fill(tmp_path / "elsewhere" / "copy")
    (copy / "README.md").write_text("hello")
    assert weights_digest(str(copy), None) == weights_digest(str(model), None)


def test_weights_behind_links_digest_equal(model: Path, tmp_path: Path) -> None:
    """Links, as the Hugging Face cache has them, count as what they point to."""
    linked = tmp_path / "linked"
    linked.mkdir()
    for number, path in enumerate(sorted(model.iterdir())):
        blob = tmp_path / f"blob{number}"
        blob.write_bytes(path.read_bytes())
        (linked / path.name).symlink_to(blob)
    assert weights_digest(str(linked), None) == weights_digest(str(model), None)
    assert config_digest(str(linked), None) == config_digest(str(model), None)


def test_weights_link_broken_refused(model: Path) -> None:
    """A weight file that cannot be read is an error, not a smaller model."""
    (model / "model-9.safetensors").symlink_to(model / "gone")
    with pytest.raises(ConfigError, match=r"model-9\.safetensors"):
        weights_digest(str(model), None)


def test_gguf_file_is_a_model(tmp_path: Path) -> None:
    """A single file is a model; it holds its own configuration."""
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF weights")
    assert weights_digest(str(path), None) == weights_digest(str(path), None)
    assert config_digest(str(path), None) == "inside-the-weights"


def test_weights_missing_shares_with_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Unknown weights give a value that no other worker has, and a warning that names the way out."""
    with caplog.at_level(logging.WARNING):
        one = weights_digest(str(tmp_path), None)
    assert "weights_id" in caplog.text
    assert one != weights_digest(str(tmp_path), None)
    assert weights_digest(str(tmp_path), None, owner="e1") == weights_digest(str(tmp_path), None, owner="e1")
    assert weights_digest(str(tmp_path), None, owner="e1") != weights_digest(str(tmp_path), None, owner="e2")


def test_weights_id_given_is_the_identity(model: Path, tmp_path: Path) -> None:
    """The operator's name for the weights stands for them, whether files are there or not."""
    assert weights_digest(str(model), "v7") == weights_digest(str(tmp_path / "none"), "v7")
    assert weights_digest(str(model), "v7") != weights_digest(str(model), "v8")
    assert config_digest(str(tmp_path), "v7") == config_digest(str(tmp_path / "none"), "v7")
    with pytest.raises(ConfigError, match="weights_id"):
        weights_digest(str(model), " ")


def test_config_volatile_keys_ignored(model: Path, tmp_path: Path) -> None:
    """What tools write into config.json does not change its digest, at any depth; what matters does."""
    before = config_digest(str(model), None)
    path = model / "config.json"
    path.write_text('{"_name_or_path": "y",\n "transformers_version": "2", "layers": 4}')
    assert config_digest(str(model), None) == before
    path.write_text('{"layers": 4, "text_config": {"a": 1, "transformers_version": "2"}}')
    nested = config_digest(str(model), None)
    path.write_text('{"layers": 4, "text_config": {"a": 1}}')
    assert config_digest(str(model), None) == nested != before


@pytest.mark.parametrize("text", ["[]", "{", "", "3"])
def test_config_malformed_refused(model: Path, text: str) -> None:
    """A config that is no JSON object is an error."""
    (model / "config.json").write_text(text)
    with pytest.raises(ConfigError, match=r"config\.json"):
        config_digest(str(model), None)


def test_name_in_the_hub_cache_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that is given by name is found in the local Hugging Face cache, without the network."""
    hub = pytest.importorskip("huggingface_hub")
    snapshot = tmp_path / "models--org--model" / "snapshots" / ("a" * 40)
    fill(snapshot)
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert locate_model("org/model") == snapshot
    assert weights_digest("org/model", None) == weights_digest(str(snapshot), None)
    assert locate_model("org/other") is None
    assert locate_model("no such name at all!") is None


def test_names_of_one_snapshot_are_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine without a network is given the snapshot's path, one with a network a name or a branch: one model."""
    hub = pytest.importorskip("huggingface_hub")
    snapshot = fill(tmp_path / "models--org--model" / "snapshots" / ("a" * 40))
    refs = tmp_path / "models--org--model" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    expected = ("org/model", "a" * 40)
    assert model_name("org/model", cache_dir=str(tmp_path)) == expected
    assert model_name("org/model", "main", str(tmp_path)) == model_name(str(snapshot)) == expected
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    assert model_name("org/model") == ("org/model", "none")
    assert weights_digest("org/model", None, cache_dir=str(tmp_path)) == weights_digest(str(snapshot), None)


def test_folder_has_its_own_name(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However a path is written, and where it lies, does not matter; it is never empty."""
    assert model_name(str(model)) == model_name(f"{model}/") == ("model", "none")
    monkeypatch.chdir(model)
    assert model_name(".") == ("model", "none")
    assert model_name("/")[0] == "/"


def test_function_that_overrides_the_config_is_the_same_in_each_process() -> None:
    """The ranks of one engine have it at other addresses; two functions are two overrides."""
    found = {resolved_digest("f", {"a": 1}, override, context_tokens=1) for override in (fill, fill, poke)}
    assert len(found) == 2


def test_volatile_keys_ignored_at_any_depth() -> None:
    """What the tools' versions write into a part of a configuration does not keep workers apart."""
    one, other = ({"text_config": {"a": 1, "transformers_version": version}} for version in "12")
    digests = {resolved_digest("f", resolved, {}, context_tokens=1) for resolved in (one, other)}
    assert len(digests) == 1


def test_large_file_read_in_samples_only(tmp_path: Path) -> None:
    """A file of a terabyte, all of it a hole, takes no time to speak of: only samples are read."""
    with (tmp_path / "model.safetensors").open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    assert weights_digest(str(tmp_path), None)
