from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from bertds.commands.config import main
from bertds.config.batch_plan import BatchPlan
from bertds.config.describe import default_of, field_docs
from bertds.config.keys import all_keys
from bertds.config.load import load_config, split_assignments, to_dict
from bertds.errors import ConfigError


def refused(match: str, recipe: dict | Path | None = None, *assignments: str) -> None:
    with pytest.raises(ConfigError, match=match):
        load_config(recipe, split_assignments(assignments))


def test_later_sources_win(tmp_path: Path) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text("run: {seed: 1, name: a}\nschedule: {total_steps: 5}\n")
    config = load_config(recipe, split_assignments(["run.seed=2"]))
    assert (config.run.seed, config.run.name, config.schedule.total_steps) == (2, "a", 5)
    assert config.data.sequence_length == 128


def test_yaml_numbers_are_coerced_by_declared_type() -> None:
    # YAML 1.1 reads 6e-3 as text and `off` as false.
    config = load_config(
        {"schedule": {"warmup_ratio": "6e-3", "total_steps": "1e3"}, "tracking": {"wandb": False}}
    )
    assert config.schedule.warmup_ratio == 0.006
    assert config.schedule.total_steps == 1000 and isinstance(config.schedule.total_steps, int)
    assert config.tracking.wandb == "off"


def test_a_resolved_config_reads_back_the_same() -> None:
    config = load_config(None, split_assignments(["run.dir=x", "init.from=y", "run.seed=7"]))
    text = yaml.safe_dump(to_dict(config))
    assert load_config(yaml.safe_load(text)) == config
    assert to_dict(config)["init"]["from"] == "y"


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "schedule.warmup_stesp=3",
            r"^--set: unknown key schedule.warmup_stesp \(did you mean schedule",
        ),
        ("model.warmup_steps=3", r"did you mean schedule.warmup_steps\?"),
        ("lr=3", r"did you mean deepspeed.optimizer.params.lr, a key of the DeepSpeed JSON\?"),
        ("optimizer.lr=3", r"did you mean deepspeed.optimizer.params.lr, a key of"),
        ("zero_optimization.stage=3", r"did you mean deepspeed.zero_optimization.stage, a key of"),
        ("run.batch_size=3", r"did you mean deepspeed.train_batch_size, a key of"),
        ("validation.batch_size=3", r"did you mean validation.micro_batch_size\?"),
        ("max_steps=3", r"did you mean schedule.total_steps\?"),
        ("run.seed=x", "run.seed='x' must be an integer"),
        ("run.seed=1.5", "run.seed=1.5 must be an integer"),
        (f"schedule.total_steps={2**63}", "schedule.total_steps=9223372036854775808 must be"),
        (f"data.masked_lm_prob={10**400}", "data.masked_lm_prob=1000+ must be a number"),
        ("run.seed=true", "run.seed=True must be an integer"),
        ("run.seed=-1", "run.seed=-1 must be at least 0"),
        ("model.next_sentence=1", "must be true or false"),
        ("data.pairs=foo", "must be one of nsp, sop, none"),
        ("data.masked_lm_prob=nan", "data.masked_lm_prob='nan' must be a number"),
        ("data.masked_lm_prob=1.5", "at most 1"),
        ("data.ngram=0", "data.ngram=0: allowed: 1 to 16"),
        ("model.hidden_dropout_prob=1", "drops everything; use less than 1"),
        ("model.attention_probs_dropout_prob=1.0", "drops everything; use less than 1"),
        ('run.dir="a\\0b"', "contains a null character"),
        ("data.path=b\udcfccher", "is not UTF-8 text; use other characters, or set PYTHONUTF8=1"),
        ("model.hidden_size=700", "model.hidden_size=700 must be a multiple"),
        ("data.sequence_length=1024", "exceeds model.max_position_embeddings=512"),
        ("data.max_predictions_per_sequence=128", "must be below data.sequence_length=128"),
        ("schedule.warmup_steps=9000", "schedule.warmup_steps=9000 exceeds"),
        ("schedule.total_steps=0", "schedule.total_steps=0 must be at least 1"),
        ("data.pairs=none", "model.next_sentence=true needs pairs"),
        ("model.style=modern", "no next-sentence head; set model.next_sentence=false"),
        ("model.style=mod", "must be one of bert, modern"),
        ("model.global_attn_every_n_layers=0", "must be at least 1"),
        ("schedule", "expected key=value"),
    ],
)
def test_bad_values_name_key_value_and_remedy(assignment: str, message: str) -> None:
    refused(message, None, assignment)


def test_both_kinds_of_warmup_are_refused() -> None:
    refused("both set", None, "schedule.warmup_steps=1", "schedule.warmup_ratio=0.1")


NESTED = [("b", "c"), ("cc", "d"), ("dd", "e"), ("ee", "f"), ("ff", "g"), ("gg", "h")]
"""Each a list of 40 aliases of the one before."""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("runs: {seed: 1}", r"unknown section 'runs' \(did you mean run\?\)"),
        (
            "optimizer: {lr: 1}",
            r"unknown section 'optimizer' \(did you mean deepspeed.optimizer",
        ),
        ("run: 3", "run must be a mapping"),
        ("- a", "a recipe is a mapping"),
        ("run: {seed: 1", r"r\.yaml: not valid YAML: line 1, column 14: expected ',' or '}'"),
        ("run: {seed: 1, seed: 2}", "line 1, column 16: the key 'seed' occurs twice$"),
        (
            "run: &a [x, x]\nmodel: &b [*a, *a]\n"
            + "".join(f"{n}: &{n}{n} [{', '.join([f'*{m}'] * 40)}]\n" for m, n in NESTED),
            "more than 100,000 values with its aliases",
        ),
        ("run: " + "[" * 5000, "nested too deeply"),
        ("run:\n  sede: 1", r"r.yaml: unknown key run.sede \(did you mean run.seed\?\)"),
    ],
)
def test_bad_recipe_files(tmp_path: Path, text: str, message: str) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    refused(message, recipe)


def test_a_missing_recipe_suggests_the_included_one(tmp_path: Path) -> None:
    refused("no such recipe; a recipe of that name is at", tmp_path / "large_phase1.yaml")


def test_batch_plan_derives_accumulation_and_names_the_nearest() -> None:
    plan = BatchPlan(global_batch_size=65536, micro_batch_size=256, world_size=8)
    assert plan.gradient_accumulation_steps == 32
    with pytest.raises(ConfigError, match="train_batch_size=96 or 144"):
        BatchPlan(global_batch_size=100, micro_batch_size=16, world_size=3)
    with pytest.raises(ConfigError, match="train_micro_batch_size_per_gpu=16"):
        BatchPlan(global_batch_size=96, micro_batch_size=20, world_size=2)


def test_every_key_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(field_docs()) == set(all_keys())
    assert main(["explain", "schedule.decay"]) == 0
    assert "exponential" in capsys.readouterr().out
    assert default_of("run.seed") == 42


def test_config_command_shows_and_compares(
    repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = repository / "bertds" / "recipes"
    first, second = str(recipes / "large_phase1.yaml"), str(recipes / "large_phase2.yaml")
    assert main(["diff", first, second]) == 0
    assert "data.sequence_length: 128 -> 512" in capsys.readouterr().out
    assert main(["show", first, "--set", "run.seed=9"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["run"]["seed"] == 9
    assert main(["validate", first, second]) == 0


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("https://host/copies?X-Amz-Signature=topsecret0", "a web server cannot be written to"),
        ("http://host/copies", "use s3://, gs://, az:// or file://"),
        ("hf://datasets/lab/copies", "each file would be a commit of its own"),
        ("/folder/copies", "must be a URL"),
        ("s3://key:topsecret0@host/copies", "contains credentials"),
    ],
)
def test_impossible_targets_of_checkpoint_copies_are_refused(url: str, message: str) -> None:
    for good in ("s3://copies", "hf://buckets/lab/copies"):
        assert load_config(None, {"checkpoint.copy_to": good}).checkpoint.copy_to
    with pytest.raises(ConfigError, match=message) as error:
        load_config(None, {"checkpoint.copy_to": url})
    assert str(error.value).startswith("checkpoint.copy_to=") and "topsecret0" not in str(
        error.value
    )


def test_an_invalid_webhook_is_refused_without_printing_it() -> None:
    with pytest.raises(ConfigError, match=r"^notify\.webhook must start with http:// or https://$"):
        load_config("tiny_cpu_phase1", {"notify.webhook": "ftp://topsecret0"})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.local_attention", 7, "model.local_attention=7 must be even and at least 2"),
        ("model.local_attention", 0, "model.local_attention=0 must be even and at least 2"),
        ("model.num_attention_heads", 768, "must be even, found 1"),
    ],
)
def test_settings_that_a_modern_encoder_refuses(key: str, value: int, message: str) -> None:
    modern = {"model.style": "modern", "model.next_sentence": False}
    assert load_config(None, modern).model.style == "modern"
    with pytest.raises(ConfigError, match=message):
        load_config(None, {**modern, key: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"decay_steps": 5, "decay_ratio": 0.1}, "are both set"),
        ({"decay_steps": 5, "clock_hours": 2.0}, "set schedule.decay_ratio instead"),
        ({"first_step": 5, "clock_hours": 2.0}, "follows the clock; omit them"),
        ({"horizon_steps": 9000, "clock_hours": 2.0}, "follows the clock; omit them"),
        ({"decay_ratio": 0.1, "decay": "exponential"}, "decay_ratio=0.1 sets where decay begins"),
        ({"decay_steps": 5, "decay_from": "warmup_end"}, "decay_steps=5 sets where decay begins"),
        ({"decay_steps": 950, "warmup_steps": 100}, "must fit into the schedule of 1000 steps"),
        ({"decay_ratio": 0.95, "warmup_ratio": 0.1}, "must fit into the schedule"),
        ({"decay_steps": 0}, "decay must not be empty"),
        ({"decay_ratio": 1.5}, "at most 1"),
    ],
)
def test_a_schedule_that_does_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {f"schedule.{key}": value for key, value in values.items()})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        (
            "schedule.batch_from",
            8,
            "schedule.batch_from=8 and schedule.batch_ramp_steps=0 must be set together",
        ),
        ("schedule.batch_ramp_steps", 8, "must be set together; set both or neither"),
        ("data.masked_lm_prob_end", 0, "data.masked_lm_prob_end=0.0 must be between 0 and 1"),
        ("data.masked_lm_prob_end", 2, "at most 1"),
        ("data.masked_lm_prob_steps", 9, "needs data.masked_lm_prob_end"),
    ],
)
def test_a_ramp_with_only_one_of_its_two_settings_is_refused(
    key: str, value: float, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(None, {key: value})
