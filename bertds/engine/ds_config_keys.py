"""What may be in a DeepSpeed JSON: every key that we accept, and why the others are refused.

DeepSpeed itself ignores unknown top-level keys, so that a misspelt ``gradient_clipping`` quietly
becomes "no clipping". Here every key of DeepSpeed 0.19.8 is either accepted, with its type, or
refused with what to do instead; a test compares these tables with DeepSpeed's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bertds.config.ranges import LARGEST, SMALLEST, Range


@dataclass(frozen=True, slots=True)
class Refused:
    """A key that DeepSpeed knows and we do not take, with the remedy."""

    why: str
    harmless: tuple[Any, ...] = field(default=())
    """Values (its defaults) that change nothing and are therefore accepted."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few words."""

    words: tuple[Any, ...]
    listed: bool = True
    """Whether the explanation of the key ends with a list of the words."""


@dataclass(frozen=True, slots=True)
class Number:
    """A number in a range."""

    allowed: Range
    whole: bool = True
    or_auto: bool = False
    """Whether "auto" is accepted too."""


FLAG, TEXT, LIST = "flag", "text", "list"
WHOLE, WHOLE_OR_ZERO = Number(Range(1)), Number(Range(0))
ROWS = Range(1, 2**24)
"""Rows of one step: a rank has all its rows of a step in memory."""
POSITIVE = Number(Range(SMALLEST, LARGEST), whole=False)
POSITIVE_OR_ZERO = Number(Range(SMALLEST, LARGEST, or_zero=True), whole=False)

_DTYPES = Choice(("fp32", "bf16", "fp16"))

_GONE = Refused("DeepSpeed has removed this option")
_NVME = "this option is part of NVMe offload"
_NVME_PATH = Refused(f"{_NVME}; cpu is the only supported offload device")
_NVME_OFF = Refused(_NVME, harmless=(False,))
_WHOLE_WEIGHTS = Refused(
    "our checkpoints always hold the full, unpartitioned float32 weights", (True, False)
)
_OWN_CHECKPOINTS = "this option concerns DeepSpeed's own checkpoints"

OFFLOAD_OPTIMIZER = {
    "device": Choice(("none", "cpu")),
    "pin_memory": FLAG,
    "buffer_count": WHOLE_OR_ZERO,
    "ratio": Refused(
        "with a lower ratio, some of the moments would not be saved in checkpoints",
        harmless=(1, 1.0),
    ),
    "nvme_path": _NVME_PATH,
    "pipeline_read": _NVME_OFF,
    "pipeline_write": _NVME_OFF,
    "fast_init": _NVME_OFF,
    "super_offload": Refused("true keeps a second copy of the state", harmless=(False,)),
    "cpuadam_cores_perc": Refused("it belongs to super_offload"),
}
OFFLOAD_PARAM = {
    "device": Choice(("none", "cpu")),
    "pin_memory": FLAG,
    "buffer_count": WHOLE_OR_ZERO,
    "buffer_size": WHOLE_OR_ZERO,
    "max_in_cpu": WHOLE_OR_ZERO,
    "nvme_path": _NVME_PATH,
}
_ZERO_PLUS = Refused("true changes the layout of the partitions", harmless=(False,))


def _both(name: str, rule: str | Number) -> dict[str, str | Number]:
    """Return the rule of a stage-3 key under its two names."""
    return {f"stage3_{name}": rule, name: rule}


ZERO = {
    "stage": Choice((0, 1, 2, 3)),
    "contiguous_gradients": FLAG,
    "reduce_scatter": FLAG,
    "reduce_bucket_size": WHOLE,
    "use_multi_rank_bucket_allreduce": FLAG,
    "allgather_partitions": FLAG,
    "allgather_bucket_size": WHOLE,
    "overlap_comm": FLAG,
    "compute_grad_norm": Refused("without it, NaN gradients would not be detected", (True,)),
    "load_from_fp32_weights": Refused(_OWN_CHECKPOINTS, (True, False)),
    "elastic_checkpoint": Refused(_OWN_CHECKPOINTS, (True, False)),
    "offload_param": OFFLOAD_PARAM,
    "offload_optimizer": OFFLOAD_OPTIMIZER,
    "zenflow": Refused("its optimizer bypasses ours, so updates would not be exact"),
    "sub_group_size": WHOLE,
    "cpu_offload_param": Refused("an old name for offload_param; use that instead"),
    "cpu_offload_use_pin_memory": Refused(
        "an old option; set pin_memory in offload_optimizer or offload_param instead"
    ),
    "cpu_offload": Refused("an old name for offload_optimizer; use that instead"),
    **_both("prefetch_bucket_size", WHOLE_OR_ZERO),
    **_both("param_persistence_threshold", WHOLE_OR_ZERO),
    **_both("model_persistence_threshold", WHOLE_OR_ZERO),
    **_both("max_live_parameters", WHOLE_OR_ZERO),
    **_both("max_reuse_distance", WHOLE_OR_ZERO),
    "stage3_gather_16bit_weights_on_model_save": _WHOLE_WEIGHTS,
    "gather_16bit_weights_on_model_save": _WHOLE_WEIGHTS,
    "stage3_gather_fp16_weights_on_model_save": _WHOLE_WEIGHTS,
    **_both("module_granularity_threshold", WHOLE_OR_ZERO),
    **_both("use_all_reduce_for_fetch_params", FLAG),
    **_both("allgather_sequential", FLAG),
    "ignore_unused_parameters": FLAG,
    "legacy_stage1": Refused("DeepSpeed has removed this option", (False,)),
    "round_robin_gradients": Refused(
        "with true, DeepSpeed 0.19.8 reads tensors back in the wrong order", harmless=(False,)
    ),
    "parameter_alignment": FLAG,
    "zero_hpz_partition_size": Refused("larger values change the layout of the partitions", (0, 1)),
    "zero_quantized_weights": _ZERO_PLUS,
    "zero_quantized_nontrainable_weights": _ZERO_PLUS,
    "zero_quantized_gradients": _ZERO_PLUS,
    "memory_efficient_linear": FLAG,
    "pipeline_loading_checkpoint": Refused(_OWN_CHECKPOINTS, (False,)),
    "override_module_apply": FLAG,
    "log_trace_cache_warnings": FLAG,
    "enable_sanity_checks": FLAG,
    "save_muon_momentum_buffer_in_memory": Refused(
        "this option applies only to DeepSpeed's own Muon optimizer", (False,)
    ),
    "leaf_module": Refused("BERT has no module that needs it"),
    "mics_shard_size": _GONE,
    "mics_hierarchical_params_gather": _GONE,
    "zeropp_loco_param": _GONE,
}

BF16 = {
    "enabled": FLAG,
    "immediate_grad_update": FLAG,
    "check_grad_overflow": Refused(
        "this check is what skips steps with NaN gradients", harmless=(True,)
    ),
    "bf16_master_weights_and_grads": Refused("master weights are float32", (False,)),
    "bf16_optimizer_states": Refused("moments are float32", harmless=(False,)),
}
FP16 = {
    "enabled": FLAG,
    "auto_cast": FLAG,
    "loss_scale": POSITIVE_OR_ZERO,
    "initial_scale_power": Number(Range(0, 127)),  # larger powers of 2 are infinite in float32
    "loss_scale_window": WHOLE,
    "hysteresis": WHOLE,
    "consecutive_hysteresis": FLAG,
    "min_loss_scale": WHOLE,
    "fp16_master_weights_and_grads": Refused("master weights are float32", (False,)),
}

_LOADER = Refused("batches come from bertds.data; see the recipe's data section")
_CHECKPOINTS = Refused("checkpoints are configured in the recipe's checkpoint section")
_TRACKERS = Refused(
    "configure trackers in the recipe, with tracking.wandb and tracking.tensorboard"
)
_PARALLEL = Refused(
    "BERT is trained with data parallelism only; use ZeRO to partition what does not fit"
)

TOP: dict[str, Any] = {
    "train_batch_size": Number(ROWS),
    "train_micro_batch_size_per_gpu": Number(ROWS, or_auto=True),
    "gradient_accumulation_steps": Number(ROWS),
    "optimizer": {"type": TEXT, "params": "any", "legacy_fusion": FLAG},
    "bf16": BF16,
    "bfloat16": BF16,
    "fp16": FP16,
    "torch_autocast": {
        "enabled": FLAG,
        "dtype": Choice(
            # float16 is refused later, with a pointer to the fp16 section.
            ("bfloat16", "bf16", "float16", "fp16"),
            listed=False,
        ),
        "lower_precision_safe_modules": LIST,
    },
    "data_types": {
        "grad_accum_dtype": _DTYPES,
        "param_dtype": _DTYPES,
        "buffer_dtype": _DTYPES,
        "keep_in_fp32_modules": "any",
    },
    "zero_optimization": ZERO,
    "zero_allow_untested_optimizer": FLAG,
    "zero_force_ds_cpu_optimizer": FLAG,
    "gradient_clipping": POSITIVE_OR_ZERO,
    "communication_data_type": _DTYPES,
    "prescale_gradients": FLAG,
    "gradient_predivide_factor": POSITIVE,
    "gradient_allreduce_op": Refused("losses are scaled for a mean over ranks", ("mean", "MEAN")),
    "steps_per_print": WHOLE,
    "wall_clock_breakdown": FLAG,
    "memory_breakdown": FLAG,
    "dump_state": FLAG,
    "disable_allgather": FLAG,
    "disable_python_gc": FLAG,
    "log_level": Choice(("debug", "info", "warning", "error", "critical")),
    "comms_logger": {
        "enabled": FLAG,
        "verbose": FLAG,
        "prof_all": FLAG,
        "debug": FLAG,
        "prof_ops": LIST,
    },
    "flops_profiler": {
        "enabled": FLAG,
        "recompute_fwd_factor": POSITIVE_OR_ZERO,
        "profile_step": WHOLE,
        "module_depth": "any",
        "top_modules": WHOLE,
        "detailed": FLAG,
        "output_file": "any",
    },
    "timers": {"throughput": {"enabled": FLAG, "synchronized": FLAG}},
    "vocabulary_size": Refused(
        "the vocabulary is defined by the data, and the model pads it automatically"
    ),
    "managed_gradient_accumulation": Refused("the engine manages accumulation", (True,)),
    "scheduler": Refused("the learning-rate schedule is set in the recipe's schedule section"),
    "activation_checkpointing": Refused("use model.activation_checkpointing in the recipe instead"),
    "data_efficiency": _LOADER,
    "curriculum_learning": _LOADER,
    "data_sampling": _LOADER,
    "dataloader_drop_last": _LOADER,
    "checkpoint": _CHECKPOINTS,
    "datastates_ckpt": _CHECKPOINTS,
    "tensorboard": _TRACKERS,
    "wandb": _TRACKERS,
    "csv_monitor": _TRACKERS,
    "comet": _TRACKERS,
    "aio": Refused(_NVME),
    "autotuning": Refused("use `bertds plan` to size a run"),
    "compile": Refused("DeepCompile rearranges the ZeRO partitions"),
    "hybrid_engine": Refused("it is for reinforcement learning"),
    "pipeline": _PARALLEL,
    "tensor_parallel": _PARALLEL,
    "expert_parallel": _PARALLEL,
    "sequence_parallel_size": _PARALLEL,
    "seq_parallel_communication_data_type": _PARALLEL,
    "use_data_before_expert_parallelism": _PARALLEL,
    "weight_quantization": Refused("it is for inference"),
    "elasticity": Refused(
        "DeepSpeed has removed this option; bertds can resume any run on a different number of "
        "processes"
    ),
    "nebula": _GONE,
    "compression_training": _GONE,
    "amp": Refused("DeepSpeed has removed this option; use bf16"),
    "quantize_training": _GONE,
    "sparse_gradients": _GONE,
    "eigenvalue": _GONE,
    "sparse_attention": _GONE,
    "graph_harvesting": _GONE,
    "progressive_layer_drop": _GONE,
}
