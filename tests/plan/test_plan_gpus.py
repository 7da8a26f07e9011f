"""The table of GPUs: where its numbers are from, how users extend it, what calibrates it."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from bertds.cli import main as command
from bertds.cost_model.hardware import Hardware, find, kind_of, peak_of, table
from bertds.errors import ConfigError
from bertds.plan.calibration import Calibration, calibrate, check_calibration
from tests.support.made_runs import add_vocabulary, make_run, train_line


@pytest.mark.parametrize(
    ("driver", "kind"),
    [
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100_pcie"),
        ("NVIDIA H100 NVL", None),  # another peak
        ("NVIDIA H200", "h200"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", None),  # a part of one
        ("Tesla V100-SXM2-16GB", "v100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA A10G", None),  # not an A10
        ("NVIDIA L4", "l4"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA GeForce RTX 3090", "rtx3090"),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA RTX A6000", "a6000"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000_ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000"),
        ("AMD Instinct MI300X OAM", "mi300x"),
        ("Some other card", None),
    ],
)
def test_a_driver_s_name_finds_its_gpu(driver: str, kind: str | None) -> None:
    found = kind_of(driver)
    assert (found.name if found else None) == kind


def test_peaks_depend_on_the_precision() -> None:
    assert peak_of("NVIDIA A100-SXM4-80GB", "bf16") == 312e12
    assert peak_of("NVIDIA A100-SXM4-80GB", "fp32") == 156e12
    assert peak_of("Some other card", "bf16") is None


def test_every_gpu_names_the_source_of_its_figures() -> None:
    known = table()
    named = {"rtx3090", "rtx4090", "a10", "l4", "l40s", "a6000", "rtx_pro_6000", "gh200", "mi300x"}
    assert named <= set(known)
    for item in known.values():
        assert "data sheet" in item.source or "white paper" in item.source, item.name
        for length in ("efficiency_128", "efficiency_512"):
            assert 0.25 < getattr(item, length) < 0.65, item.name
    measured = [item.name for item in known.values() if item.efficiency_kind == "measured"]
    assert measured == ["h100"]
    assert "2026-11-27" in known["h100"].efficiency_source
    assert "gpu_h100_2026-11-27.json" in known["h100"].efficiency_source


def test_the_derived_share_is_above_what_an_older_code_reached_on_the_a100() -> None:
    """DeepLearningExamples on one A100: 580 and 210 rows per second, 45 and 38% of 312 TFLOP/s."""
    found = find("a100")
    assert found.efficiency_kind == "derived"
    assert 0.45 < found.efficiency_128 < 0.60
    assert 0.38 < found.efficiency_512 < 0.50


def test_the_h100_s_measured_rows_per_second_come_out(repository: Path) -> None:
    """2,497 rows per second of 104.3 tokens forward and backward (large); train.py's base."""
    from bertds.config.load import load_config
    from bertds.engine.ds_config import load_deepspeed_json
    from bertds.plan.forecast import forecast

    def seconds_per_token(recipe: str, rows: int, tokens: float) -> float:
        plan = forecast(
            load_config(repository / f"bertds/recipes/{recipe}_phase1.yaml"),
            load_deepspeed_json(repository / "ds_configs/lamb_phase1_h100.json"),
            find("h100"),
            nodes=1,
            devices_per_node=1,
            micro_batch=rows,
            tokens_per_row=tokens,
        )
        return plan.step.arithmetic / (plan.batch.global_batch_size * tokens)

    assert 1 / seconds_per_token("large", 512, 104.3) == pytest.approx(2497 * 104.3, rel=0.03)
    assert 1 / seconds_per_token("base", 512, 104.6) == pytest.approx(701_000, rel=0.06)


def test_a_gpu_from_the_users_own_file(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "mine: {half_tflops: 200, memory_gib: 32, memory_tb_s: 1.0, watts: 300, source: my shop}\n"
        "h100: {dollars_per_hour: 1.25}\n"
    )
    recipe = str(repository / "bertds/recipes/base_phase1.yaml")
    plan = ["plan", "--config", recipe, "--gpu-file", str(file), "--gpu"]
    assert command([*plan, "mine"]) == 0
    text = capsys.readouterr().out
    assert "my shop" in text and "speed derived" in text and "of 32.0" in text
    assert command([*plan, "h100", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["dollars"] == pytest.approx(1.25 * values["device_hours"])
    assert values["speed_from"] == "measured"
    assert command(["plan", "--list-gpus", "--gpu-file", str(file)]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("mine ")
    assert find("gh200").devices_per_node == 1 and find("cpu").devices_per_node == 1


def test_a_file_named_in_the_environment_serves_mfu_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        "mine: {driver: [abacus], half_tflops: 2, memory_gib: 1, memory_tb_s: 1, watts: 1}\n"
    )
    assert peak_of("Wooden Abacus", "bf16") is None
    monkeypatch.setenv("BERTDS_GPU_FILE", str(file))
    assert peak_of("Wooden Abacus", "bf16") == 2e12


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mine: {half_tflops: 1}", "mine: missing keys: memory_gib, memory_tb_s, watts"),
        ("h100: {half_tflop: 1}", "h100.half_tflop: unknown key; allowed: "),
        ("h100: {half_tflops: fast}", "h100.half_tflops='fast': must be a number above 0"),
        ("h100: {watts: 0}", "h100.watts=0: must be a number above 0"),
        ("h100: {devices_per_node: 1.5}", "devices_per_node=1.5"),
        ("h100: {dollars_per_hour: -1}", "dollars_per_hour=-1: must be a number of at least 0"),
        ("h100: {efficiency: 0.4}", "h100.efficiency=0.4: must be like"),
        ("h100: {efficiency: {128: 40, 512: 0.4}}", "efficiency.128=40: must be above 0"),
        ("h100: {efficiency_kind: guessed}", "efficiency_kind='guessed': must be one of"),
        ("h100: {driver: h100}", "h100.driver='h100': must be a list"),
        ("- h100", "must map GPU names"),
        ("cpu: {watts: 1}", "the name cpu is reserved"),
        ("h100: {", "cannot be read"),
    ],
)
def test_a_wrong_file_is_refused_by_key(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as error:
        table(file)
    assert message in str(error.value) and str(error.value).startswith(f"{file}: ")
    assert "\n" not in str(error.value)


def trial(folder: Path, device: str | None, length: int = 128, **changes: float) -> Path:
    """A run folder that says, or not, what it trained on."""
    made = make_run(folder, [train_line(n, **changes) for n in range(1, 6)], length=length)
    add_vocabulary(made, 100)
    if device is not None:
        start = {"time": "", "command": "", "world_size": 1, "device": device}
        (made / "environment.json").write_text(json.dumps({"starts": [start]}))
    return made


@pytest.mark.parametrize("device", ["cpu", None])  # None: before it was recorded
def test_a_cpu_trial_never_calibrates_a_gpu_plan(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str | None
) -> None:
    run = trial(tmp_path / "run", device)
    recipe = str(repository / "bertds/recipes/large_phase1.yaml")
    plan = ["plan", "--config", recipe, "--calibrate", str(run)]
    assert command([*plan, "--gpu", "h100"]) == 2
    answer = capsys.readouterr()
    assert answer.out == "" and len(answer.err.splitlines()) == 1
    assert f"{run}: that run trained on a CPU, which does not apply to h100 GPUs" in answer.err


@pytest.mark.parametrize(
    ("device", "precision", "gpu", "planned", "message"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", "cpu", "bf16", "does not apply to the CPU"),
        ("", "bf16", "cpu", "bf16", "trained on a GPU, which does not apply to the CPU"),
        ("NVIDIA A100-SXM4-80GB", "bf16", "h100", "bf16", "plan with --gpu a100, or omit"),
        ("NVIDIA H100 80GB HBM3", "fp32", "h100", "bf16", "in fp32, but the plan is for bf16"),
        ("cpu", "bf16", "cpu", "fp32", "in bf16, but the plan is for fp32"),
        ("NVIDIA H100 80GB HBM3", "autocast", "h100", "bf16", ""),
        ("NVIDIA A100-SXM4-40GB", "bf16", "a100_40g", "bf16", ""),  # the same chip
        ("Some other card", "bf16", "l40s", "bf16", ""),  # whoever asks knows what it is
        ("", "bf16", "h100", "bf16", ""),
        ("cpu", "fp32", "cpu", "fp32", ""),
    ],
)
def test_a_trial_calibrates_its_own_kind(
    device: str, precision: str, gpu: str, planned: str, message: str
) -> None:
    values: dict[str, object] = {field.name: 1.0 for field in fields(Calibration)}
    values |= {"run": "runs/trial", "device": device, "precision": precision}
    calibration = Calibration(**values)  # type: ignore[arg-type]
    if not message:
        check_calibration(calibration, find(gpu), planned)
        return
    with pytest.raises(ConfigError, match=message):
        check_calibration(calibration, find(gpu), planned)


def test_old_runs_on_a_gpu_are_known_by_their_mfu(tmp_path: Path) -> None:
    assert calibrate(trial(tmp_path / "a", None, mfu=0.4)).device == ""
    assert calibrate(trial(tmp_path / "b", None)).device == "cpu"
    assert calibrate(trial(tmp_path / "c", "NVIDIA L4", mfu=0.4)).device == "NVIDIA L4"


@pytest.mark.parametrize("phase", [1, 2])
def test_the_row_length_of_a_trial_holds_for_its_own_sequence_length(
    repository: Path, tmp_path: Path, phase: int
) -> None:
    """A trial of phase 1 used to plan phase 2 with rows of 112 tokens."""
    from bertds.config.load import load_config
    from bertds.engine.ds_config import load_deepspeed_json
    from bertds.plan.forecast import forecast

    found = calibrate(trial(tmp_path / "run", "cpu"))
    machine: Hardware = find("cpu")
    plan = forecast(
        load_config(repository / f"bertds/recipes/large_phase{phase}.yaml"),
        load_deepspeed_json(repository / f"ds_configs/lamb_phase{phase}_a100_80g.json"),
        machine,
        nodes=1,
        devices_per_node=1,
        calibration=found,
    )
    expected = found.tokens_per_row if phase == 1 else 254
    assert plan.shape.tokens_per_row == pytest.approx(expected, rel=0.01)
