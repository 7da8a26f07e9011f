from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from bertds.engine import ds_config_keys
from bertds.engine.ds_config import check_deepspeed_values, load_deepspeed_json
from bertds.errors import ConfigError

GOOD: dict[str, Any] = {
    "_comment": "a comment",
    "comment": ["another"],
    "train_batch_size": 64,
    "train_micro_batch_size_per_gpu": 8,
    "optimizer": {"type": "Lamb", "params": {"lr": 6e-3}, "comment": "inner"},
    "gradient_clipping": 1.0,
    "bf16": {"enabled": True},
    "zero_optimization": {"stage": 2, "reduce_bucket_size": 5e8, "overlap_comm": False},
}


def changed(**more: Any) -> dict[str, Any]:
    result = {**GOOD, **more}
    return {key: value for key, value in result.items() if value != "absent"}


def test_a_good_file(tmp_path: Path) -> None:
    path = tmp_path / "good.json"
    path.write_text(json.dumps(GOOD))
    settings = load_deepspeed_json(path)
    assert settings.optimizer.lr == 6e-3
    assert settings.stage == 2
    assert settings.precision == "bf16"
    assert settings.gradient_clipping == 1.0
    assert settings.values["zero_optimization"]["reduce_bucket_size"] == 500_000_000
    assert "comment" not in settings.values["optimizer"]
    assert settings.values["data_types"]["grad_accum_dtype"] == "fp32"
    assert settings.notices == ()
    plan = settings.batch_plan(2)
    assert (plan.gradient_accumulation_steps, plan.world_size) == (4, 2)


def test_overrides_win_and_text_becomes_numbers() -> None:
    settings = check_deepspeed_values(
        GOOD,
        {
            "zero_optimization.stage": 3,
            "optimizer.params.lr": "1e-3",
            "train_batch_size": "128",
            "bf16.enabled": "false",
            "flops_profiler.enabled": "True",
        },
    )
    assert (settings.stage, settings.optimizer.lr, settings.train_batch_size) == (3, 1e-3, 128)
    assert settings.precision == "fp32"
    assert settings.values["flops_profiler"]["enabled"] is True
    assert GOOD["zero_optimization"]["stage"] == 2


def test_a_silent_json_clips_as_deepspeed_does() -> None:
    from deepspeed.runtime.constants import GRADIENT_CLIPPING_DEFAULT

    settings = check_deepspeed_values(changed(gradient_clipping="absent"))
    assert settings.gradient_clipping == GRADIENT_CLIPPING_DEFAULT


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_low_precision_at_stage_0_becomes_stage_1(precision: str) -> None:
    values = changed(bf16="absent", zero_optimization={"stage": 0})
    values[precision] = {"enabled": True}
    settings = check_deepspeed_values(values)
    assert settings.stage == 1
    assert settings.values["zero_optimization"]["stage"] == 1
    assert len(settings.notices) == 1 and precision in settings.notices[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"gradient_cliping": 1.0},
            "gradient_cliping is not a DeepSpeed key (did you mean gradient_clipping?)",
        ),
        (
            {"zero_optimization": {"stag": 2}},
            "zero_optimization.stag is not a DeepSpeed key (did you mean stage?)",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"devise": "cpu"}}},
            "zero_optimization.offload_optimizer.devise",
        ),
        ({"bf16": {"enable": True}}, "bf16.enable is not a DeepSpeed key (did you mean"),
        ({"lr": 1}, "lr is not a DeepSpeed key (did you mean optimizer.params.lr?)"),
        ({"max_steps": 1}, "(did you mean schedule.total_steps, a key of the recipe?)"),
        ({"bf16": {"enabled": 1}}, "bf16.enabled=1 must be true or false"),
        ({"bf16": True}, "bf16=True must be an object"),
        ({"optimizer": {"type": "Lamb", "parms": {}}}, "optimizer.parms"),
        ({"optimizer": "absent"}, "the section optimizer is missing"),
        ({"train_batch_size": "absent"}, "train_batch_size is missing"),
        ({"train_batch_size": "auto"}, '"auto"'),
        ({"train_batch_size": 0}, "train_batch_size=0 must be at least 1"),
        ({"train_batch_size": 2.5}, "must be a whole number"),
        ({"train_batch_size": True}, "must be a whole number"),
        ({"train_batch_size": 1e308}, "must be a whole number"),
        ({"gradient_clipping": 10**400}, "must be a number"),
        ({"gradient_clipping": -1}, "gradient_clipping=-1 must be at least 0"),
        ({"zero_optimization": {"stage": 4}}, "zero_optimization.stage=4 must be one of 0, 1, 2"),
        ({"zero_optimization": {"stage": True}}, "must be one of 0, 1, 2, 3"),
        ({"zero_optimization": {"reduce_bucket_size": float("inf")}}, "must be a whole number"),
        ({"scheduler": {"type": "WarmupLR"}}, "the learning-rate schedule is set in the recipe"),
        ({"checkpoint": {"writer": {}}}, "checkpoints are configured in the recipe"),
        ({"data_efficiency": {}}, "batches come from bertds.data"),
        ({"curriculum_learning": {}}, "batches come from bertds.data"),
        ({"wandb": {"enabled": True}}, "tracking.wandb"),
        ({"activation_checkpointing": {}}, "model.activation_checkpointing"),
        ({"compile": {"deepcompile": True}}, "rearranges"),
        ({"elasticity": {}}, "bertds can resume any run on a different number of processes"),
        ({"amp": {"enabled": True}}, "use bf16"),
        ({"gradient_allreduce_op": "sum"}, "scaled for a mean"),
        ({"zero_optimization": {"stage": 2, "round_robin_gradients": True}}, "in the wrong order"),
        ({"zero_optimization": {"stage": 3, "zero_hpz_partition_size": 2}}, "layout"),
        ({"zero_optimization": {"stage": 3, "zero_quantized_weights": True}}, "layout"),
        ({"zero_optimization": {"stage": 2, "zenflow": {}}}, "updates would not be exact"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            'offload_optimizer.device="nvme" must be one of none, cpu',
        ),
        ({"zero_optimization": {"stage": 3, "offload_optimizer": {"ratio": 0.5}}}, "moments"),
        ({"zero_optimization": {"stage": 2, "offload_param": {"device": "cpu"}}}, "stage 3"),
        (
            {
                "bf16": "absent",
                "zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}},
            },
            "stage 1",
        ),
        ({"fp16": {"enabled": True}}, "bf16 and fp16 are both enabled"),
        ({"torch_autocast": {"enabled": True}}, "bf16 and autocast are both enabled"),
        (
            {"bf16": "absent", "torch_autocast": {"enabled": True, "dtype": "float16"}},
            "use the fp16 section",
        ),
        ({"bfloat16": {"enabled": True}}, "two spellings"),
        ({"bf16": {"enabled": True, "check_grad_overflow": False}}, "skips steps with NaN"),
        ({"bf16": {"enabled": True, "bf16_optimizer_states": True}}, "moments are float32"),
        ({"bf16": "absent", "data_types": {"grad_accum_dtype": "bf16"}}, "grad_accum_dtype='bf16'"),
        ({"data_types": {"grad_accum_dtype": "int8"}}, "must be one of fp32, bf16, fp16"),
    ],
)
def test_wrong_values_are_named(more: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_deepspeed_values(changed(**more), path="x.json")
    text = str(caught.value)
    assert message in text
    assert text.startswith("x.json: ")
    assert "\n" not in text


def test_defaults_of_refused_keys_are_harmless() -> None:
    zero = {"stage": 2, "round_robin_gradients": False, "zero_hpz_partition_size": 1}
    assert (
        "round_robin_gradients"
        not in (check_deepspeed_values(changed(zero_optimization=zero)).values["zero_optimization"])
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "must be a JSON object, found list"),
        ('{"train_batch_size": 1, "train_batch_size": 2}', "'train_batch_size' is given twice"),
        ("\xff", "not UTF-8 text"),
    ],
)
def test_a_file_that_is_not_a_json_object_is_refused(
    tmp_path: Path, text: str, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=message) as caught:
        load_deepspeed_json(path)
    assert str(caught.value).startswith(f"{path}: ")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_deepspeed_json(tmp_path / "absent.json")


def test_an_override_into_a_plain_value() -> None:
    with pytest.raises(ConfigError, match="train_batch_size is not a section"):
        check_deepspeed_values(GOOD, {"train_batch_size.x": 1})


def test_accumulation_is_derived_and_must_agree() -> None:
    settings = check_deepspeed_values(changed(gradient_accumulation_steps=4))
    assert settings.batch_plan(2).gradient_accumulation_steps == 4
    with pytest.raises(ConfigError, match=r"gradient_accumulation_steps=4, but .* requires 8"):
        settings.batch_plan(1)
    with pytest.raises(ConfigError, match="train_batch_size=64 is not a multiple"):
        check_deepspeed_values(GOOD).batch_plan(3)


def test_a_process_with_few_rows_takes_them_all_at_once() -> None:
    """One JSON for one GPU and for hundreds: its micro batch is the most, not a condition."""
    settings = check_deepspeed_values(
        {**GOOD, "train_batch_size": 65536, "train_micro_batch_size_per_gpu": 512}
    )
    for processes, micro_batch, accumulation in ((1, 512, 128), (128, 512, 1), (256, 256, 1)):
        plan = settings.batch_plan(processes)
        assert plan.micro_batch_size == micro_batch
        assert plan.gradient_accumulation_steps == accumulation
    with pytest.raises(ConfigError, match="65536 is not a multiple"):
        settings.batch_plan(192)


def test_the_tables_know_every_key_of_this_deepspeed() -> None:
    """Each key of DeepSpeed's models is accepted or refused; each that we accept is one of its."""
    from deepspeed.comm.config import CommsLoggerConfig
    from deepspeed.runtime import config
    from deepspeed.runtime.precision_config import DeepSpeedBF16Config, DeepSpeedFP16Config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
    from deepspeed.runtime.zero.offload_config import (
        DeepSpeedZeroOffloadOptimizerConfig,
        DeepSpeedZeroOffloadParamConfig,
    )

    for table, model in (
        (ds_config_keys.ZERO, DeepSpeedZeroConfig),
        (ds_config_keys.OFFLOAD_OPTIMIZER, DeepSpeedZeroOffloadOptimizerConfig),
        (ds_config_keys.OFFLOAD_PARAM, DeepSpeedZeroOffloadParamConfig),
        (ds_config_keys.BF16, DeepSpeedBF16Config),
        (ds_config_keys.FP16, DeepSpeedFP16Config),
        (ds_config_keys.TOP["comms_logger"], CommsLoggerConfig),
    ):
        theirs = set(model.model_fields)
        theirs |= {field.alias for field in model.model_fields.values() if field.alias}
        accepted = {k for k, rule in table.items() if not isinstance(rule, ds_config_keys.Refused)}
        assert accepted <= theirs
        assert theirs <= set(table)
    removed = config._REMOVED_TOP_LEVEL_CONFIG_KEYS
    assert all(isinstance(ds_config_keys.TOP[key], ds_config_keys.Refused) for key in removed)
    import deepspeed.runtime.constants as constants

    words = {v for k, v in vars(constants).items() if k.isupper() and isinstance(v, str)}
    words |= {"bf16", "fp16", "zero_optimization", "comms_logger", "flops_profiler", "timers"}
    accepted = {
        key
        for key, rule in ds_config_keys.TOP.items()
        if not isinstance(rule, ds_config_keys.Refused)
    }
    assert accepted - words - {"bfloat16"} == set()


def test_the_shipped_files_are_good(repository: Path) -> None:
    files = sorted((repository / "ds_configs").glob("*.json"))
    assert files
    for file in files:
        load_deepspeed_json(file)


def test_deepspeed_has_no_1_bit_optimizer() -> None:
    """So says our refusal; should this fail, there is something to offer again."""
    from deepspeed.runtime import config

    assert importlib.util.find_spec("deepspeed.runtime.fp16.onebit") is None
    assert config.DEEPSPEED_OPTIMIZERS
    assert not [name for name in config.DEEPSPEED_OPTIMIZERS if "bit" in name or "zeroone" in name]
