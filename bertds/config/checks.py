"""Checks the values of a recipe, individually and in combination."""

from __future__ import annotations

from bertds.config.keys import all_keys, field_of
from bertds.config.ranges import range_of
from bertds.config.recipe import Config, DataConfig, ModelConfig, ScheduleConfig
from bertds.config.row_settings import ImpossibleRows
from bertds.errors import ConfigError
from bertds.system.secrets import masked
from bertds.system.storage import is_url, why_not_written


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def check(config: Config) -> None:
    """Refuse values and combinations that cannot work, naming key, value and remedy."""
    _check_ranges(config)
    _check_model(config.model, config.data)
    _check_rows(config.data)
    _check_together(config)
    _check_urls(config)
    _check_schedule(config.schedule)
    _check_mask_rate(config.data)


def _check_ranges(config: Config) -> None:
    for key in all_keys():
        section, name = key.split(".", 1)
        value = getattr(getattr(config, section), field_of(name))
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            problem = range_of(key).problem(value)
            _require(not problem, f"{key}={value} {problem}")


def _check_model(model: ModelConfig, data: DataConfig) -> None:
    """Refuse an architecture that cannot be built, or cannot read the rows."""
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        probability = getattr(model, name)
        _require(probability < 1, f"model.{name}={probability} drops everything; use less than 1")
    _require(
        model.hidden_size % model.num_attention_heads == 0,
        f"model.hidden_size={model.hidden_size} must be a multiple of "
        f"model.num_attention_heads={model.num_attention_heads}",
    )
    _check_style(model)
    # Without data, this is the architecture of a checkpoint, which may be used in other ways.
    segments = 2 if model.style == "bert" and data.path and data.pairs != "none" else 1
    _require(
        model.type_vocab_size >= segments,
        f"model.type_vocab_size={model.type_vocab_size}, but rows with data.pairs={data.pairs} "
        "have 2 segments; set model.type_vocab_size=2 or data.pairs=none",
    )
    _require(
        data.sequence_length <= model.max_position_embeddings,
        f"data.sequence_length={data.sequence_length} exceeds model.max_position_embeddings="
        f"{model.max_position_embeddings}; raise the latter",
    )
    _require(
        data.pairs != "none" or not model.next_sentence,
        "model.next_sentence=true needs pairs, but data.pairs=none; change one of them",
    )


def _check_together(config: Config) -> None:
    """Refuse ways to compute that need other settings: constant shapes, compiled layers."""
    run, data = config.run, config.data
    _require(
        not run.cuda_graphs or data.pack_tokens > 0,
        "run.cuda_graphs=true requires constant shapes; set data.pack_tokens",
    )
    _require(
        not run.fp8 or (data.pack_tokens > 0 and data.pack_tokens % 16 == 0),
        "run.fp8=true requires a number of tokens that is a multiple of 16; set "
        f"data.pack_tokens, found {data.pack_tokens}",
    )
    _require(
        not run.fp8 or run.compile is not False,
        "run.fp8=true with run.compile=false: without compilation, FP8 conversions cost more "
        "time than FP8 products save; set run.compile=auto",
    )
    _require(
        not data.pack_tokens or data.pack_tokens >= data.sequence_length,
        f"data.pack_tokens={data.pack_tokens} is shorter than one row, "
        f"data.sequence_length={data.sequence_length}; use approximately the number of rows per "
        "micro batch times their mean length",
    )


def _check_schedule(schedule: ScheduleConfig) -> None:
    # Warm-up is given in steps or as a share; steps do not fit a schedule by the clock.
    _require(
        schedule.warmup_steps is None or schedule.warmup_ratio is None,
        f"schedule.warmup_steps={schedule.warmup_steps} and schedule.warmup_ratio="
        f"{schedule.warmup_ratio} are both set; keep one (null unsets the other)",
    )
    _require(
        schedule.warmup_steps is None or schedule.clock_hours is None,
        "schedule.warmup_steps counts steps, but schedule.clock_hours follows the clock; set "
        "schedule.warmup_ratio instead",
    )
    _require(
        schedule.clock_hours is None or not (schedule.first_step or schedule.horizon_steps),
        "schedule.first_step and schedule.horizon_steps count steps, but schedule.clock_hours "
        "follows the clock; omit them",
    )
    # Warm-up and decay must fit into the schedule.
    horizon = schedule.horizon_steps or schedule.first_step + schedule.total_steps
    _require(
        horizon >= schedule.first_step + schedule.total_steps,
        f"schedule.horizon_steps={horizon} is before the run's end, schedule.first_step + "
        f"schedule.total_steps={schedule.first_step + schedule.total_steps}; raise it",
    )
    _require(
        schedule.decay != "exponential" or schedule.clock_hours is None,
        "schedule.decay=exponential counts steps (schedule.decay_every_steps), but "
        "schedule.clock_hours follows the clock; use polynomial, cosine or sqrt",
    )
    _check_decay(schedule, horizon)
    _require(
        schedule.warmup_steps is None or schedule.warmup_steps <= horizon,
        f"schedule.warmup_steps={schedule.warmup_steps} exceeds schedule.total_steps="
        f"{horizon}; lower it",
    )
    _require(
        (schedule.batch_from is None) == (schedule.batch_ramp_steps == 0),
        f"schedule.batch_from={schedule.batch_from} and "
        f"schedule.batch_ramp_steps={schedule.batch_ramp_steps} must be set together; set both or "
        "neither",
    )
    # An average with a decay of 1 keeps the initial weights for ever.
    _require(
        schedule.ema_decay < 1,
        f"schedule.ema_decay={schedule.ema_decay} would never change the average; it must be less "
        "than 1",
    )


def _check_mask_rate(data: DataConfig) -> None:
    _require(
        data.masked_lm_prob_end is None or 0 < data.masked_lm_prob_end < 1,
        f"data.masked_lm_prob_end={data.masked_lm_prob_end} must be between 0 and 1",
    )
    _require(
        data.masked_lm_prob_steps is None or data.masked_lm_prob_end is not None,
        f"data.masked_lm_prob_steps={data.masked_lm_prob_steps} needs data.masked_lm_prob_end",
    )


def _check_urls(config: Config) -> None:
    """Refuse a URL where a local folder is required, and a URL with credentials."""
    for key, value in (("run.dir", config.run.dir), ("data.cache_dir", config.data.cache_dir)):
        _require(
            not is_url(value),
            f"{key}={masked(value)} must be a local folder; checkpoint.copy_to takes a URL",
        )
    _require(
        not is_url(config.init.from_),
        f"init.from={masked(config.init.from_)} must be a local path or a name; copy it to this "
        "machine first",
    )
    # Copies go to a store that can be written, without credentials in its URL: the URL is logged
    # and saved with the run.
    copy_to = config.checkpoint.copy_to
    _require(
        not copy_to or is_url(copy_to),
        f"checkpoint.copy_to={copy_to} must be a URL (s3://, gs://, az://, file:///...)",
    )
    why_not = why_not_written(copy_to)
    _require(not why_not, f"checkpoint.copy_to={masked(copy_to)}: {why_not}")
    for key, value in (
        ("data.path", config.data.path),
        ("validation.path", config.validation.path),
        ("checkpoint.copy_to", copy_to),
    ):
        _require(
            not is_url(value)
            or "@" not in value.partition("://")[2].partition("/")[0]
            or value.startswith(("abfs", "hf:")),
            f"{key}={masked(value)} contains credentials; put them into the environment "
            "variables or files that the storage driver reads",
        )
    _require(
        not config.notify.webhook or config.notify.webhook.startswith(("http://", "https://")),
        "notify.webhook must start with http:// or https://",  # its value is a secret
    )


def _check_rows(data: DataConfig) -> None:
    """Refuse row settings that are out of range, and name them by their keys."""
    _require(
        data.sequence_length >= 8,
        f"data.sequence_length={data.sequence_length} leaves no room for two "
        "segments; use 8 or more",
    )
    try:
        data.rows  # noqa: B018
    except ImpossibleRows as error:
        names = {"max_predictions": "max_predictions_per_sequence"}
        key = f"data.{names.get(error.field, error.field)}"
        allowed = error.allowed.replace("sequence_length", "data.sequence_length")
        raise ConfigError(f"{key}={error.found}: allowed: {allowed}") from error


def _check_decay(schedule: ScheduleConfig, horizon: int) -> None:
    """Refuse a final decay that contradicts the rest of the schedule."""
    steps, ratio = schedule.decay_steps, schedule.decay_ratio
    if steps is None and ratio is None:
        return
    key, value = ("decay_steps", steps) if ratio is None else ("decay_ratio", ratio)
    _require(
        steps is None or ratio is None,
        f"schedule.decay_steps={steps} and schedule.decay_ratio={ratio} are both set; keep one "
        "(null unsets the other)",
    )
    _require(
        steps is None or schedule.clock_hours is None,
        "schedule.decay_steps counts steps, but schedule.clock_hours follows the clock; set "
        "schedule.decay_ratio instead",
    )
    _require(
        schedule.decay in ("polynomial", "cosine", "sqrt") and schedule.decay_from == "start",
        f"schedule.{key}={value} sets where decay begins, but schedule.decay={schedule.decay} "
        f"with schedule.decay_from={schedule.decay_from} does not support that; use polynomial, "
        "cosine or sqrt, and omit decay_from",
    )
    # Both as shares of the schedule, so that steps and ratios are compared in one unit.
    decay_share = ratio if ratio is not None else (steps or 0) / horizon
    warmup_share = schedule.warmup_ratio or (schedule.warmup_steps or 0) / horizon
    _require(
        0 < decay_share <= 1 and decay_share + warmup_share <= 1 + 1e-9,
        f"schedule.{key}={value}: warm-up and decay together must fit into the schedule of "
        f"{horizon} steps, and decay must not be empty; lower it",
    )


def _check_style(model: ModelConfig) -> None:
    """Refuse settings that the modern encoder does not support."""
    if model.style != "modern":
        return
    _require(
        not model.next_sentence,
        "model.style=modern has no next-sentence head; set model.next_sentence=false (and "
        "data.pairs=none for rows of one segment)",
    )
    width = model.hidden_size // model.num_attention_heads
    _require(
        width % 2 == 0,
        "model.style=modern rotates pairs of numbers, so the head width model.hidden_size / "
        f"model.num_attention_heads must be even, found {width}",
    )
    _require(
        model.local_attention >= 2 and model.local_attention % 2 == 0,
        f"model.local_attention={model.local_attention} must be even and at least 2: half of it "
        "is seen on each side",
    )
