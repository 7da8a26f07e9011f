"""What a recipe asks for to be quicker: checked, chosen, refused with the remedy."""

from __future__ import annotations

import pytest
import torch
import yaml

from bertds.config.load import load_config
from bertds.config.recipe import Config
from bertds.engine.ds_config import check_deepspeed_values
from bertds.errors import ConfigError
from bertds.model.bert import BertForPreTraining
from bertds.training import speedups
from bertds.training.run_folder import RunFolder

HOPPER = (9, 0)


def settings(stage: int = 1, precision: str = "bf16"):
    return check_deepspeed_values(
        {
            "train_batch_size": 4,
            "train_micro_batch_size_per_gpu": 4,
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            precision: {"enabled": True},
            "zero_optimization": {"stage": stage},
        }
    )


def recipe(**overrides) -> Config:
    return load_config(None, {key.replace("__", "."): value for key, value in overrides.items()})


@pytest.mark.parametrize(
    ("asked", "stage", "cuda", "graphs", "compiled"),
    [
        ("auto", 1, True, False, True),
        ("auto", 1, False, False, False),  # a CPU
        ("auto", 3, True, False, False),
        ("auto", 1, True, True, False),
        (True, 1, False, False, True),
        (True, 2, True, True, True),
        (False, 0, True, False, False),
    ],
)
def test_auto_compiles_on_a_gpu_where_it_can(asked, stage, cuda, graphs, compiled) -> None:
    config = recipe(run__compile=asked, run__cuda_graphs=graphs, data__pack_tokens=512)
    assert speedups.wants_compile(config, stage, cuda=cuda) is compiled


@pytest.mark.parametrize(
    ("changes", "precision", "stage", "capability", "fused"),
    [
        ({}, "bf16", 1, HOPPER, True),
        ({"run__cuda_graphs": True, "data__pack_tokens": 512}, "fp16", 2, (8, 0), True),
        ({}, "bf16", 1, None, False),  # a CPU
        ({}, "bf16", 1, (7, 0), False),  # no flash operator for longer rows
        ({}, "bf16", 3, HOPPER, False),
        ({"run__compile": True}, "bf16", 1, HOPPER, False),
        ({"run__compile": False}, "bf16", 1, HOPPER, False),
        ({"model__attention_kernel": "padded"}, "bf16", 1, HOPPER, False),
        ({"model__style": "modern", "model__next_sentence": False}, "bf16", 1, HOPPER, False),
    ],
)
def test_auto_fuses_berts_layers_on_a_gpu(
    monkeypatch, changes, precision, stage, capability, fused
) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr("torch.utils._triton.has_triton", lambda: True)
    chosen = speedups.wants_fused(recipe(**changes), settings(stage, precision), capability)
    assert chosen is fused


def test_compiling_under_zero_3_is_refused_when_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"compile=true cannot be combined with .*stage=3"):
        speedups.wants_compile(recipe(run__compile=True), 3, cuda=True)


@pytest.mark.parametrize("value", ["auto", True, False])
def test_compile_accepts_auto_and_the_values_of_older_recipes(value) -> None:
    assert recipe(run__compile=value).run.compile is value or value == "auto"
    assert load_config({"run": {"compile": value}}).run.compile == value


def test_compile_accepts_nothing_else() -> None:
    with pytest.raises(ConfigError, match=r"run.compile='always' must be auto or true or false"):
        recipe(run__compile="always")


def test_a_run_on_a_cpu_reports_its_attention_kernel(monkeypatch) -> None:
    lines = []
    monkeypatch.setattr(speedups.log, "info", lambda text, *more: lines.append(text % more))
    config = recipe(
        model__hidden_size=32,
        model__num_hidden_layers=1,
        model__intermediate_size=64,
        model__num_attention_heads=2,
    )
    speedups.apply_speedups(BertForPreTraining(config.model, 65), config, settings())
    assert lines == ["attention: rows grouped by length (CPU)"]


def test_a_kernel_that_a_cpu_lacks_is_refused_before_training() -> None:
    config = recipe(model__attention_kernel="flash")
    with pytest.raises(ConfigError, match="attention_kernel=flash: requires a GPU; use auto"):
        speedups.attention_words(config, "bf16", None)


# -- FP8 -----------------------------------------------------------------------------------------


def test_recipes_that_disable_the_former_fp8_still_load(tmp_path) -> None:
    recipes = {}
    for asked in (False, True):
        recipes[asked] = tmp_path / f"{asked}.yaml"
        recipes[asked].write_text(yaml.safe_dump({"model": {"fp8": asked}}))
    assert load_config(recipes[False]) == Config()
    with pytest.raises(ConfigError, match=r"yaml: model\.fp8 is no longer a key; .* see run\.fp8"):
        load_config(recipes[True])
    assert load_config(yaml.safe_load(recipes[True].read_text())) == Config()  # what a run saved
    with pytest.raises(ConfigError, match=r"--set model\.fp8 is no longer a key"):
        load_config(None, {"model.fp8": True})


def test_a_run_of_the_former_fp8_is_not_continued_in_silence(tmp_path) -> None:
    config = recipe(run__dir=str(tmp_path))
    (tmp_path / "environment.json").write_text("{}")
    for asked, refused in ((False, False), (True, True)):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"fp8": asked}}))
        folder = RunFolder(config, is_main=True)
        if refused:
            with pytest.raises(ConfigError, match=r"began with model\.fp8=True.*no longer a key"):
                folder.open()
        else:
            folder.open().close()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ({}, "set data.pack_tokens, found 0"),
        ({"data__pack_tokens": 1000}, "a multiple of 16; set data.pack_tokens, found 1000"),
        ({"data__pack_tokens": 512, "run__compile": False}, "run.compile=false.*set run.compile="),
    ],
)
def test_fp8_needs_packed_rows_and_compiled_layers(overrides, words) -> None:
    with pytest.raises(ConfigError, match=words):
        recipe(run__fp8=True, **overrides)


@pytest.mark.parametrize(
    ("stage", "precision", "capability", "overrides", "words"),
    [
        (1, "fp16", HOPPER, {}, '"bf16": {"enabled": true} in the DeepSpeed JSON, found fp16'),
        (1, "bf16", (8, 0), {}, "compute capability 8.9 or higher.*this one has 8.0"),
        (1, "bf16", None, {}, "8.9 or higher .Ada, Hopper.; there is none"),
        (3, "bf16", HOPPER, {}, "ZeRO stage 0, 1 or 2, found 3"),
        (1, "bf16", HOPPER, {"run__cuda_graphs": True}, "use only one of them"),
        (1, "bf16", HOPPER, {"model__hidden_size": 72}, "model.hidden_size=72 must be a multiple"),
    ],
)
def test_fp8_is_refused_where_it_is_impossible(
    stage, precision, capability, overrides, words
) -> None:
    config = recipe(run__fp8=True, data__pack_tokens=512, **overrides)
    with pytest.raises(ConfigError, match=words):
        speedups.check_fp8(config, settings(stage, precision), capability)


def test_without_torchao_fp8_names_the_install_line(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchao.float8", None)
    config = recipe(run__fp8=True, data__pack_tokens=512)
    with pytest.raises(ConfigError, match=r"requires torchao .*: pip install 'bertds\[fp8\]'"):
        speedups.check_fp8(config, settings(), HOPPER)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_torchao_converts_the_encoder_and_keeps_losses_and_names() -> None:
    """torchao's own imitation of the GPU's products, inside compiled layers."""
    pytest.importorskip("torchao")
    from bertds.model.compile_layers import compile_layers
    from bertds.model.fp8_layers import use_fp8

    config = recipe(
        model__hidden_size=32,
        model__num_hidden_layers=2,
        model__intermediate_size=64,
        model__num_attention_heads=2,
        model__hidden_dropout_prob=0.0,
        model__attention_probs_dropout_prob=0.0,
        model__attention_kernel="padded",
        model__initializer_range=0.2,
    ).model
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(5, 65, (48,), generator=generator)
    starts = torch.tensor([0, 20, 32, 48], dtype=torch.int32)
    positions = torch.cat([torch.arange(length) for length in starts.diff().tolist()])
    masked = torch.tensor([3, 11, 22, 40])
    results = []
    for fp8 in (False, True):
        torch.manual_seed(0)
        model = BertForPreTraining(config, 65).bfloat16()
        names = list(model.state_dict())
        if fp8:
            assert use_fp8(model.encoder_layers(), emulate=True) == 6 * 2
            torch._dynamo.reset()
            assert compile_layers(model, "cpu", backend="aot_eager")
        assert list(model.state_dict()) == names
        output = model(
            ids, ids * 0, positions, starts, 20, masked, ids[masked], torch.tensor([0, 1, 0])
        )
        (output.mlm_loss_sum + output.nsp_loss_sum).backward()
        query = model.bert.encoder.layer[0].attention.self.query.weight.grad
        results.append((float(output.mlm_loss_sum), query.float().flatten()))
    (loss, gradient), (near, other) = results
    assert loss != near == pytest.approx(loss, rel=0.03)
    assert torch.cosine_similarity(gradient, other, dim=0) > 0.9
    torch._dynamo.reset()
