"""The check of a GPU: it runs here at a tiny size, stops what takes too long, judges figures."""

from __future__ import annotations

import argparse
import json
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import gpu_report, gpu_stages
from benchmarks.gpu_check import Check, main, result_file
from benchmarks.gpu_plan import TINY, Plan, Stage, read_json, read_run
from bertds.config.load import load_config, split_assignments
from bertds.engine.ds_config import load_deepspeed_json
from tests.benchmarks.results import CARRIED


@pytest.mark.slow
def test_it_runs_every_kind_of_stage_on_a_cpu(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "gpu.json"
    assert main(["--tiny", "--device", "cpu", "--out", str(out)]) == 0
    result, printed = json.loads(out.read_text()), capsys.readouterr().out
    assert set(result) >= CARRIED
    assert set(result["stages"]) == TINY
    for name, stage in result["stages"].items():
        assert stage["status"] == "ok", (name, stage)
        assert f"{name}: ok" in printed
    assert {check["verdict"] for check in result["stages"]["tests"]["result"]["checks"]} == {"PASS"}
    assert {"ms", "host_ms"} <= set(
        result["stages"]["attention 512"]["result"]["kernels"]["grouped, dropout 0.1"]
    )
    assert set(result["stages"]["passes base 128"]["result"]["variants"]) == {"modules", "compiled"}
    assert result["figures"]["step large 512: times transformers"] > 0
    run = result["stages"]["run large 512"]["result"]
    assert run["rows"] == 8 and 0 < run["mfu"] < 1 and run["memory_gib"] > 0
    assert 0 <= run["stalls"] < 1 and 0 < run["optimizer_share"] < 1
    # On a CPU nothing is judged but the tests.
    verdicts = {row["figure"]: row["verdict"] for row in result["verdicts"]}
    assert verdicts.pop("tests: failed") == "PASS" and set(verdicts.values()) == {"-"}
    assert out.with_suffix(".png").read_bytes()[:4] == b"\x89PNG"


def check_of(tmp_path: Path, minutes: float = 1.0) -> Check:
    args = argparse.Namespace(out=tmp_path / "r.json", minutes=minutes, device="cpu")
    return Check(args, tmp_path)


def stage_of(name: str, code: str, limit: float = 20.0) -> Stage:
    return Stage(name=name, limit=limit, read=read_json, command=["-S", "-c", code, "OUT"])


WRITE = (
    "import json, sys, time; "
    "json.dump({'matmul_size': 1, 'matmul_tflops': 2.0}, open(sys.argv[1], 'w')); "
)


def test_a_stage_that_takes_too_long_keeps_its_results(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = check_of(tmp_path)
    assert check.run(stage_of("ceilings", WRITE + "time.sleep(60)", limit=1.0))
    check.run(stage_of("ceilings 2", "print('one'); raise SystemExit('no such GPU')"))
    seconds_left = iter([6.0, 1.0, 0.0])
    check.left = lambda: next(seconds_left)  # type: ignore[method-assign]
    check.run(stage_of("ceilings 3", WRITE + "time.sleep(60)"))
    check.run(stage_of("ceilings 4", WRITE))
    stages = json.loads((tmp_path / "r.json").read_text())["stages"]
    assert stages["ceilings"]["status"] == "stopped after 1 s"
    assert stages["ceilings"]["result"]["matmul_tflops"] == 2.0
    assert stages["ceilings 2"]["status"] == "failed (1): no such GPU"
    assert stages["ceilings 2"]["log"] == ["one", "no such GPU"]
    assert stages["ceilings 3"]["status"] == "stopped after 1 s: no time left"
    assert stages["ceilings 4"]["status"] == "not run: no time left"
    printed = capsys.readouterr().out
    assert "product 1 cubed  2 TFLOP/s" in printed and "  | no such GPU" in printed


@pytest.mark.parametrize(("gib", "rows"), [(79.1, 512), (139.8, 512), (44.5, 256), (22.5, 128)])
def test_the_sizes_fit_the_memory_and_the_recipes_accept_them(
    repository: Path, gib: float, rows: int
) -> None:
    plan = Plan({"memory_gib": gib, "peak": 989e12}, "data", "cuda", tiny=False)
    assert plan.micro == {128: rows, 512: rows // 4}
    stages = plan.stages()
    assert {stage.name for stage in stages} >= TINY - {"machine"}
    assert sum(stage.name.startswith("step") for stage in stages) == 4
    for stage in stages:
        if stage.name.startswith("step"):
            options = dict(pairwise(stage.command))
            ours, theirs, count = (
                int(options[name]) for name in ("--rows", "--peer-rows", "--accumulation")
            )
            assert ours * count == 4 * theirs and ours <= 512  # both train on the same rows
        if stage.name.startswith("run"):
            given = stage.command[stage.command.index("--set") + 1 :]
            values = split_assignments(given)
            prefix = "deepspeed."
            settings = load_deepspeed_json(
                repository / stage.command[4],
                {k.removeprefix(prefix): v for k, v in values.items() if k.startswith(prefix)},
            )
            assert settings.batch_plan(1).gradient_accumulation_steps == 4
            recipe = {k: v for k, v in values.items() if not k.startswith(prefix)}
            config = load_config(repository / stage.command[2], recipe)
            assert 10 <= config.schedule.total_steps <= 40
            assert config.schedule.total_steps % 2 == 0


def test_figures_are_judged_only_on_the_gpu_they_are_stated_for() -> None:
    figures = {
        "passes large 128: rows/s": 2050.0,
        "step large 128: times transformers": 1.9,
        "optimizer: LAMB / fused AdamW": 1.8,
        "run large 128: stalls": 0.002,
    }

    def verdicts(gpu: str | None) -> list[str]:
        judged = {row["figure"]: row["verdict"] for row in gpu_report.judge(figures, gpu)}
        assert judged["tests: failed"] == "-"
        return [judged[name] for name in figures]

    assert verdicts("h100") == ["FAIL", "PASS", "FAIL", "PASS"]
    assert verdicts("l4") == verdicts("") == ["-", "PASS", "FAIL", "PASS"]
    assert verdicts(None) == ["-"] * 4
    lines = gpu_report.verdict_lines(gpu_report.judge(figures, "h100"))
    assert "FAIL passes large 128: rows/s" in lines[1]
    assert lines[1].endswith("2,050   at least 2,100 (aim 2,400), H100")
    assert len({target.figure for target in gpu_report.TARGETS}) == len(lines)


def test_a_run_is_read_without_its_first_windows(tmp_path: Path) -> None:
    lines: list[dict[str, Any]] = [
        {
            "step": 2 * n,
            "loss": 10.0 - n,
            "samples": 100 * n,
            "tokens": 1000 * n,
            "tokens_per_second": 1.0,
            "seconds": 60.0 if n == 1 else 2.0,
            "stall_seconds": 0.1,
            "optimizer_seconds": 0.4,
            "memory_gib": 3.0,
            "tflops": 7.0,
        }
        for n in range(1, 6)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (tmp_path / "deepspeed.json").write_text(
        '{"train_batch_size": 8, "train_micro_batch_size_per_gpu": 2}'
    )
    found = read_run(tmp_path)
    assert found["rows_per_second"] == pytest.approx(50.0)
    assert found["stalls"] == pytest.approx(0.05) and found["tflops"] == pytest.approx(7.0)
    assert found["optimizer_share"] == pytest.approx(0.2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "tokens_per')  # stopped while it wrote
    assert read_run(tmp_path) == found
    assert read_run(tmp_path / "none") == {}


def test_a_result_never_replaces_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu_check.ROOT", tmp_path)
    first = result_file("NVIDIA GeForce RTX 4090", "2026-11-27")
    assert first == tmp_path / "benchmarks/results/gpu_nvidia_geforce_rtx_4090_2026-11-27.json"
    first.parent.mkdir(parents=True)
    first.touch()
    assert result_file("NVIDIA GeForce RTX 4090", "2026-11-27").stem.endswith("_2026-11-27_2")


@pytest.mark.parametrize(
    ("name", "capability", "gpu", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", (9, 0), "h100", 989e12),
        ("NVIDIA GeForce RTX 3090 Ti", (8, 6), "", None),  # not in the table
        ("Tesla V100-SXM2-16GB", (7, 0), "refused", None),
    ],
)
def test_the_gpu_is_described(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    capability: tuple[int, int],
    gpu: str,
    peak: float | None,
) -> None:
    """Without a GPU: what torch and the driver would say is put in their place."""
    major, minor = capability
    facts = SimpleNamespace(major=major, minor=minor, total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda *device: name)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    monkeypatch.setattr(gpu_stages, "driver_version", lambda: "580.1")
    path = tmp_path / "machine.json"
    command = ["machine", "--json", str(path), "--device", "cuda", "--command=--minutes 4"]
    if gpu == "refused":
        with pytest.raises(SystemExit, match=r"this GPU has 7\.0"):
            gpu_stages.main(command)
        return
    assert gpu_stages.main(command) == 0
    found = json.loads(path.read_text())
    assert (found["gpu"], found["peak"], found["memory_gib"]) == (gpu, peak, 80.0)
    assert found["machine"] == name and found["capability"] == f"{major}.{minor}"
    assert found["command"] == "python benchmarks/gpu_check.py --minutes 4"
    text = gpu_report.table(gpu_report.machine(found))
    assert name in text and "580.1" in text


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: the whole check would run")
def test_without_a_gpu_it_ends_with_the_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--out", str(tmp_path / "r.json")]) == 1
    assert "torch sees no GPU; run bertds doctor to find out why" in capsys.readouterr().err
