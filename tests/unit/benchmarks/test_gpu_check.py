"""gpu-check, as far as it starts no engine: results, resuming, budget, packing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement

from benchmarks.gpu_check import pack
from benchmarks.gpu_check.__main__ import arguments, run
from benchmarks.gpu_check.engines import FULL_GRAPHS, options_of
from benchmarks.gpu_check.kinds import KINDS
from benchmarks.gpu_check.results import Check, Result, all_right, load, numbers_of, report, save
from benchmarks.gpu_check.sizes import CPU, GPU, GPU_KINDS
from benchmarks.gpu_check.stages import ENGINES_S, KIND_STAGES, STAGES, Context, Stage, named
from benchmarks.harness.launch import command_line
from benchmarks.harness.model_recipe import recipe
from benchmarks.harness.report import ProgressLine

RIGHT = Check("tokens", "3", "3", True, "right")
WRONG = Check("tokens", "2", "3", False, "right")
MISSED = Check("speed", "1 GB/s", "2 GB/s", False, "goal")


def result(device: str, *checks: Check) -> Result:
    return Result("stage", device, list(checks), {"a_s": 1.5}, 2.0, "machine", 0.0)


def stage(name: str, ran: list[str], *checks: Check, estimate_s: int = 10) -> Stage:
    def work(_: Context) -> tuple[list[Check], dict[str, float]]:
        ran.append(name)
        return list(checks), {}

    return Stage(name, None, estimate_s, work)


def check_run(folder: Path, stages: list[Stage], *options: str, device: str = "cpu") -> int:
    chosen = arguments(["--device", device, "--out", str(folder), *options])
    chosen.stages = stages
    return run(chosen, ProgressLine())


def test_result_is_what_was_saved_and_of_one_device(tmp_path: Path) -> None:
    """A trial on a CPU never passes for a result of a GPU."""
    save(result("cpu", RIGHT), tmp_path)
    assert load(tmp_path, "stage", "cpu") == result("cpu", RIGHT)
    assert load(tmp_path, "stage", "cuda") is None
    assert numbers_of(tmp_path, "stage", "cpu") == {"a_s": 1.5}
    with pytest.raises(FileNotFoundError, match="stage decode"):
        numbers_of(tmp_path, "decode", "cpu")
    assert [path.name for path in tmp_path.iterdir()] == ["stage.json"]


def test_goals_count_on_a_gpu_only() -> None:
    """What must be right counts everywhere."""
    assert all_right([result("cpu", RIGHT, MISSED)])
    assert not all_right([result("cuda", RIGHT, MISSED)])
    assert not all_right([result("cpu", WRONG)])
    assert "not met" in report([result("cuda", MISSED)])
    assert "not met" not in report([result("cpu", MISSED)])
    assert "WRONG" in report([result("cpu", WRONG)])


def test_stages_with_results_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run that was cut short goes on where it stopped."""
    ran: list[str] = []
    stages = [stage("one", ran, RIGHT), stage("two", ran, RIGHT)]
    assert check_run(tmp_path, stages[:1]) == 0
    assert check_run(tmp_path, stages) == 0
    assert ran == ["one", "two"]
    assert check_run(tmp_path, stages, "--again") == 0
    assert ran == ["one", "two", "one", "two"]
    assert check_run(tmp_path, [*stages, stage("three", ran)], "--table") == 1
    assert "not run yet: three" in capsys.readouterr().out
    assert len(ran) == 4


def test_wrong_answer_is_the_exit_status(tmp_path: Path) -> None:
    """Whatever else was right."""
    assert check_run(tmp_path, [stage("one", [], RIGHT), stage("two", [], WRONG)]) == 1


@pytest.mark.parametrize(("device", "begun"), [("cuda", ["short"]), ("cpu", ["short", "long"])])
def test_stage_that_might_not_end_in_time_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, begun: list[str]
) -> None:
    """On a device that is lent for minutes; a trial on a CPU has no such limit."""
    monkeypatch.setattr("benchmarks.gpu_check.__main__.hardware", lambda _: "machine")
    ran: list[str] = []
    stages = [stage("short", ran, RIGHT), stage("long", ran, RIGHT, estimate_s=500)]
    status = check_run(tmp_path, stages, "--budget-s", "100", device=device)
    assert ran == begun
    assert (status == 0) is (begun == ["short", "long"])


def test_unknown_stage_is_refused_by_name(capsys: pytest.CaptureFixture[str]) -> None:
    """With the names that there are."""
    with pytest.raises(SystemExit):
        arguments(["answer"])
    assert "owner-killed" in capsys.readouterr().err
    assert [one.name for one in named(["ttft", "pull"])] == ["pull", "ttft"]
    assert [one.name for one in named(["answers-fp8", "pull"])] == ["pull", "answers-fp8"]
    assert [one.name for one in named([])] == [one.name for one in STAGES]


def test_stages_of_kinds_are_run_where_they_are_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    """By kind, in their order, with engines shared between those of one kind; on a CPU without MLA."""
    stages = arguments(["--kinds", "eagle,mla", "ttft"]).stages
    eagle = ["answers-eagle", "drafts-eagle", "torture-eagle"]
    assert [one.name for one in stages] == ["ttft", "answers-mla", "torture-mla", *eagle]
    assert {one.engines for one in arguments(["--kinds", "all"]).stages} == set(KINDS)
    assert [one.name for one in arguments(["--kinds", "eagle,mla", "--device", "cpu"]).stages] == eagle
    with pytest.raises(SystemExit):
        arguments(["--kinds", "mamba"])
    assert "expected all, or some of mla, window, hybrid" in capsys.readouterr().err


def test_each_stage_with_its_engines_is_under_six_minutes() -> None:
    """By the estimates; and engines that are left dead serve no stage after that."""
    assert all(one.estimate_s + ENGINES_S < 360 for one in (*STAGES, *KIND_STAGES))
    names = [one.name for one in STAGES if one.engines == "block-major"]
    assert names[-1] == "owner-killed"


def test_lengths_fit_the_engines() -> None:
    """Prompts and answers fit what an engine is started for, and a tortured cache holds a document, but not all."""
    for sizes, block in ((GPU, 16), (GPU_KINDS, 16), (CPU, 32)):
        lengths = () if sizes is GPU_KINDS else sizes.ttft_lengths  # no kind's stage measures times
        assert max(*lengths, *sizes.answer_lengths, sizes.torture_length) + 16 <= sizes.max_model_len
        assert sizes.max_model_len <= recipe(sizes.model).max_position
        assert sizes.torture_blocks * block >= sizes.max_model_len
        assert sizes.torture_documents * sizes.torture_length > 2 * sizes.torture_blocks * block


def test_engines_are_started_as_the_stage_needs_them() -> None:
    """Block-major is what GhostCacher does by itself; on a GPU full CUDA graphs, unless they are turned off."""
    line = command_line(options_of("A", "block-major", Path("m"), "redis://x", "cuda", eager=False), 1)
    assert FULL_GRAPHS in line
    assert "--enforce-eager" not in line
    assert "kv_layout" not in " ".join(line)
    own = command_line(options_of("A", "engine-layout", Path("m"), "redis://x", "cuda", eager=True), 1)
    assert "--enforce-eager" in own
    assert '"kv_layout": "engine"' in " ".join(own)
    window = command_line(options_of("A", "window-fp8", Path("m"), "redis://x", "cuda", eager=False), 1)
    assert window[-3:] == ["--disable-hybrid-kv-cache-manager", "--kv-cache-dtype", "fp8"]
    assert FULL_GRAPHS in window
    small = command_line(options_of("A", "small-kv", Path("m"), "redis://x", "cpu", eager=False), 1)
    assert small[small.index("--num-gpu-blocks-override") + 1] == str(CPU.torture_blocks)
    assert "--enforce-eager" in small


@pytest.mark.parametrize(("kind", "blocks"), [("fp8", "700"), ("hybrid", "1400"), ("mla", "175")])
def test_kinds_have_one_size_of_cache(kind: str, blocks: str) -> None:
    """In blocks of 16 tokens, of 64 for MLA, and in as many groups as there are."""
    line = command_line(options_of("A", kind, Path("m"), "redis://x", "cuda", eager=True), 1)
    assert line[line.index("--num-gpu-blocks-override") + 1] == blocks
    assert ("64" in line) is (kind == "mla")


def test_drafters_and_adapters_are_named_to_the_engine() -> None:
    """A draft model is the model itself; requests are for the adapter."""
    line = command_line(options_of("A", "draft-model", Path("m"), "redis://x", "cpu", eager=True), 1)
    drafter = json.loads(line[line.index("--speculative-config") + 1])
    assert (drafter["method"], drafter["model"]) == ("draft_model", "m")
    assert "--no-async-scheduling" in line
    adapted = command_line(options_of("A", "adapter", Path("m"), "redis://x", "cpu", eager=True, adapter="/a"), 1)
    assert "adapter=/a" in adapted


def test_graphs_are_what_vllm_understands() -> None:
    """A typing error there would cost the first minutes on a device."""
    pytest.importorskip("vllm")
    from vllm.config import CompilationConfig, CUDAGraphMode

    config = CompilationConfig(**json.loads(FULL_GRAPHS))
    assert config.cudagraph_mode is CUDAGraphMode.FULL_DECODE_ONLY
    assert int(config.mode) == 0


def test_pack_leaves_out_what_is_there_and_what_is_not_needed() -> None:
    """Names are compared as registries compare them."""
    have = pack.names_in("Typing_Extensions==4.1\nnumpy\n\nruamel.yaml==1 # there\n")
    assert have == {"typing-extensions", "numpy", "ruamel-yaml"}
    there = [Requirement(name) for name in ("torch==2.13.0", "nvidia-nccl-cu13", "flashinfer-python==0.7", "msgspec")]
    assert [one.name for one in there if not pack.left_there(one)] == ["msgspec"]


def test_pack_reads_what_a_wheel_needs_for_the_python_there(tmp_path: Path) -> None:
    """Markers are those of the other Python; extras count when they are asked for."""
    wheel = tmp_path / "a-1-py3-none-any.whl"
    lines = ["b>=2", 'c; python_version < "3.12"', 'd==1; extra == "fast"', 'e; sys_platform == "linux"']
    with zipfile.ZipFile(wheel, "w") as archived:
        archived.writestr("a-1.dist-info/METADATA", "\n".join(f"Requires-Dist: {line}" for line in lines) + "\n\ntext")
    there = {**default_environment(), "python_version": "3.12", "sys_platform": "linux"}
    assert [one.name for one in pack.needs(wheel, there, set())] == ["b", "e"]
    assert [one.name for one in pack.needs(wheel, there, {"fast"})] == ["b", "d", "e"]


def test_pack_strips_and_unpacks_to_the_same_tree(tmp_path: Path) -> None:
    """The parts, put together by the script beside them, are the tree without what was left out."""
    tree, folder, there = tmp_path / "tree", tmp_path / "parts", tmp_path / "there"
    kept = tree / "vllm" / "vllm_flash_attn" / "_vllm_fa3_C.abi3.so"
    for path in (
        kept,
        kept.with_name("_vllm_fa2_C.abi3.so"),
        tree / "vllm" / "third_party" / "deep_gemm" / "x.py",
        tree / "flashinfer_python.dist-info" / "METADATA",
        tree / "a" / "__pycache__" / "b.pyc",
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(path.name.encode() * 1000)
    folder.mkdir()
    (folder / "site.tar.xz.07").touch()  # of an earlier, larger pack
    assert "vllm/third_party/deep_gemm" in pack.strip(tree, pack.LEFT_OUT)
    parts = pack.archive(tree, folder, part_bytes=200)
    assert len(parts) > 1
    assert sorted(folder.iterdir()) == parts
    script = folder / "unpack.sh"
    script.write_text(pack.UNPACK)
    subprocess.run(["sh", str(script), str(there)], check=True)
    assert [path.relative_to(there) for path in there.rglob("*") if path.is_file()] == [kept.relative_to(tree)]


def test_help_names_every_stage() -> None:
    """The program says what there is without a GPU, and without vLLM being loaded."""
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--help"]
    wide = {**os.environ, "COLUMNS": "10000"}  # or names would be broken between lines
    text = subprocess.run(command, check=True, capture_output=True, text=True, env=wide).stdout
    assert all(one.name in text for one in (*STAGES, *KIND_STAGES))
