"""What the keys of a DeepSpeed JSON mean, for ``bertds config explain``.

Every key that :mod:`bertds.engine.ds_config_keys` accepts has a text here; the texts of the
optimizer's numbers are those of :class:`bertds.optim.settings.OptimizerSettings`.
"""

from __future__ import annotations

import ast
import inspect
import json
from functools import cache
from typing import Any

from bertds.config.describe import texts_under_fields
from bertds.engine.ds_config_keys import TOP, Choice, Refused
from bertds.optim.settings import OptimizerSettings

PARAMS = "optimizer.params."

_PINNED = "Use page-locked memory, which makes copies faster."
_TEXTS = {
    "train_batch_size": "Global batch size: number of samples per optimizer step over all "
    "processes.",
    "train_micro_batch_size_per_gpu": "Micro batch size: number of samples per process per "
    'forward pass. "auto": the largest size that fits, '
    "determined when training starts.",
    "gradient_accumulation_steps": "Number of micro batches per process per step. It is derived "
    "from the two batch sizes and the number of processes, and "
    "can be omitted.",
    "optimizer": "The optimizer and its parameters, including the peak learning rate.",
    "optimizer.type": "AdamW, Adam, Lamb (exact under ZeRO) or Muon.",
    "optimizer.params": "Parameters of the optimizer: lr, betas, eps, weight_decay ...",
    "optimizer.legacy_fusion": "In fp16, use DeepSpeed's older fused Adam implementation.",
    "bf16": "Train with bfloat16 weights and float32 master weights (Ampere or newer GPUs).",
    "bf16.immediate_grad_update": "Accumulate each gradient as soon as it is computed.",
    "bfloat16": "An older name for the bf16 section.",
    "fp16": "Train with float16 weights, float32 master weights and a loss scale "
    "(for GPUs without bf16, such as the V100).",
    "fp16.auto_cast": "Convert the inputs to float16.",
    "fp16.loss_scale": "Fixed loss scale; 0 = dynamic.",
    "fp16.initial_scale_power": "The initial dynamic loss scale is 2 to this power.",
    "fp16.loss_scale_window": "Number of steps without overflow after which the loss scale is "
    "doubled.",
    "fp16.hysteresis": "Number of overflows before the loss scale is halved.",
    "fp16.consecutive_hysteresis": "Reset the count of overflows after each step without one, so "
    "that only consecutive overflows count.",
    "fp16.min_loss_scale": "Minimum dynamic loss scale.",
    "torch_autocast": "Keep float32 weights and compute in bfloat16 with torch.autocast.",
    "torch_autocast.dtype": "Data type of the computation: bfloat16 or bf16.",
    "torch_autocast.lower_precision_safe_modules": "Modules that may compute in "
    "torch_autocast.dtype.",
    "data_types": "Data types of gradients, weights and buffers.",
    "data_types.grad_accum_dtype": "Data type in which the gradients of micro batches are summed; "
    "if omitted, fp32. fp16 or bf16 saves memory, but the sum of 1,000 micro batches is off by "
    "several percent.",
    "data_types.param_dtype": "Data type of the weights, if no precision section sets it.",
    "data_types.buffer_dtype": "Data type of the buffers.",
    "data_types.keep_in_fp32_modules": "Modules that stay in float32.",
    "zero_optimization": "ZeRO: what is partitioned over the processes.",
    "zero_optimization.stage": "0 = nothing is partitioned; 1 = the optimizer state; 2 = also "
    "the gradients; 3 = also the weights. Higher stages need less "
    "memory per process and more communication. Results are the same.",
    "zero_optimization.contiguous_gradients": "Copy gradients to a contiguous buffer as they are "
    "computed.",
    "zero_optimization.reduce_scatter": "Reduce each partition only to the process that owns it.",
    "zero_optimization.reduce_bucket_size": "Number of elements that are reduced at a time; a "
    "larger value takes more memory and is faster.",
    "zero_optimization.use_multi_rank_bucket_allreduce": "Reduce the partitions of several "
    "processes in one operation.",
    "zero_optimization.allgather_partitions": "Collect updated weights with all-gather; false = "
    "with broadcasts.",
    "zero_optimization.allgather_bucket_size": "Number of elements that are collected at a time.",
    "zero_optimization.overlap_comm": "Reduce gradients during the backward pass.",
    "zero_optimization.offload_param": "Stage 3: keep the weights in CPU memory.",
    "zero_optimization.offload_param.device": "Where to keep the data.",
    "zero_optimization.offload_param.pin_memory": _PINNED,
    "zero_optimization.offload_param.buffer_count": "Number of buffers for the copies.",
    "zero_optimization.offload_param.buffer_size": "Number of elements per buffer.",
    "zero_optimization.offload_param.max_in_cpu": "Number of elements that stay in CPU memory.",
    "zero_optimization.offload_optimizer": "Keep master weights and moments in CPU memory.",
    "zero_optimization.offload_optimizer.device": "Where to keep the data.",
    "zero_optimization.offload_optimizer.pin_memory": _PINNED,
    "zero_optimization.offload_optimizer.buffer_count": "Number of buffers for the copies.",
    "zero_optimization.sub_group_size": "Stage 3: number of elements that are updated at a time.",
    "zero_optimization.stage3_prefetch_bucket_size": "Stage 3: number of elements that are "
    "fetched ahead of use.",
    "zero_optimization.stage3_param_persistence_threshold": "Stage 3: tensors with fewer elements "
    "than this are not partitioned.",
    "zero_optimization.stage3_model_persistence_threshold": "Stage 3: maximum total number of "
    "elements that are not partitioned.",
    "zero_optimization.stage3_max_live_parameters": "Stage 3: maximum number of gathered "
    "elements held in memory at any one time.",
    "zero_optimization.stage3_max_reuse_distance": "Stage 3: weights that are used again within "
    "this number of elements stay gathered.",
    "zero_optimization.stage3_module_granularity_threshold": "Stage 3: modules smaller than this "
    "are fetched as a whole.",
    "zero_optimization.stage3_use_all_reduce_for_fetch_params": "Stage 3: fetch weights with "
    "all-reduce instead of all-gather.",
    "zero_optimization.stage3_allgather_sequential": "Stage 3: fetch tensors one at a time.",
    "zero_optimization.ignore_unused_parameters": "Accept parameters that receive no gradient.",
    "zero_optimization.parameter_alignment": "Align each tensor in its buffer.",
    "zero_optimization.memory_efficient_linear": "Stage 3: use linear layers that need less "
    "memory.",
    "zero_optimization.override_module_apply": "Stage 3: gather the weights for Module.apply.",
    "zero_optimization.log_trace_cache_warnings": "Stage 3: warn when the order in which modules "
    "are used changes.",
    "zero_optimization.enable_sanity_checks": "Run DeepSpeed's internal consistency checks.",
    "zero_allow_untested_optimizer": "Has no effect here: our optimizers are always allowed.",
    "zero_force_ds_cpu_optimizer": "With offload: require DeepSpeed's CPU optimizer.",
    "gradient_clipping": "Maximum global gradient norm; 0 = no clipping. Default: 1.0.",
    "communication_data_type": "Data type in which gradients are communicated.",
    "prescale_gradients": "Divide gradients before they are summed over processes.",
    "gradient_predivide_factor": "The divisor used by prescale_gradients.",
    "steps_per_print": "Number of steps between two lines of DeepSpeed's own log.",
    "wall_clock_breakdown": "Have DeepSpeed time the forward pass, the backward pass and the step.",
    "memory_breakdown": "Have DeepSpeed print memory figures.",
    "dump_state": "Have DeepSpeed print its state once.",
    "disable_allgather": "Use broadcasts instead of all-gather.",
    "disable_python_gc": "Switch off Python's garbage collector during a step.",
    "log_level": "Level of DeepSpeed's own messages.",
    "comms_logger": "DeepSpeed's communication log.",
    "comms_logger.verbose": "Log one line per operation.",
    "comms_logger.prof_all": "Measure all operations.",
    "comms_logger.debug": "Log the caller of each operation.",
    "comms_logger.prof_ops": "The operations to measure.",
    "flops_profiler": "DeepSpeed's FLOPs profiler.",
    "flops_profiler.recompute_fwd_factor": "Weight of recomputed forward passes in the count.",
    "flops_profiler.profile_step": "The step that is profiled.",
    "flops_profiler.module_depth": "Depth of the module tree that is printed; -1 = all.",
    "flops_profiler.top_modules": "Number of modules printed per depth.",
    "flops_profiler.detailed": "Print every module.",
    "flops_profiler.output_file": "File to write to; null = standard output.",
    "timers": "DeepSpeed's timers.",
    "timers.throughput": "The throughput timer (samples per second).",
    "timers.throughput.enabled": "Enable the timer.",
    "timers.throughput.synchronized": "Synchronize the device before each reading.",
}

_MORE_PARAMS = {
    "adam_w_mode": "Adam: true decays weights directly (AdamW); false adds the decay to the "
    "gradient.",
    "fp32_optimizer_states": "Moments are always float32, so only true is accepted.",
}


_DEFAULTS = {
    "betas": "[0.9, 0.999]",
    "eps": "1e-8, or 1e-6 for Lamb's nvidia and paper variants",
    "weight_decay": "0, or 0.01 for Lamb's nvidia and paper variants",
    "bias_correction": "true",
    "torch_adam": "false",
    "variant": "nvidia",
    "min_coeff": "0, or 0.01 for the deepspeed variant",
    "max_coeff": "no limit, or 10 for the deepspeed variant",
    "momentum": "0.95",
    "ns_steps": "5",
}
"""As the JSON writes them; tests/commands compares them with what the parser fills in."""


@cache
def json_keys() -> dict[str, str]:
    """Return every key of the JSON with its text; a refused one says what to do instead."""
    texts: dict[str, str] = {}
    _walk(TOP, "", texts)
    at = list(texts).index("optimizer.params") + 1
    rows = list(texts.items())
    return dict([*rows[:at], *_optimizer_params().items(), *rows[at:]])


def _walk(table: dict[str, Any], prefix: str, texts: dict[str, str]) -> None:
    for key, rule in table.items():
        full = prefix + key
        if isinstance(rule, Refused):
            texts[full] = _refusal(rule)
            continue
        listed = isinstance(rule, Choice) and rule.listed
        kind = f" One of {', '.join(map(str, rule.words))}." if listed else ""
        texts[full] = _text(full) + kind
        if isinstance(rule, dict):
            _walk(rule, full + ".", texts)


def _text(full: str) -> str:
    """Return the text of a key, which may be another name of a key in the table."""
    section, _, key = full.rpartition(".")
    if f"{section}.stage3_{key}" in _TEXTS:
        return f"The same as stage3_{key}."
    if key == "enabled" and section != "timers.throughput":
        return "Enable this section."
    return _TEXTS[full.replace("bfloat16.", "bf16.")]


def _refusal(rule: Refused) -> str:
    """Return why a key is refused, and which of its values are accepted."""
    if rule.harmless == (True,):
        return f"Must stay true: {rule.why}."
    if rule.harmless == (True, False):
        return f"Has no effect: {rule.why}."
    values = " or ".join(json.dumps(value) for value in dict.fromkeys(rule.harmless))
    return f"{f'Only {values} is supported' if values else 'Not supported'}: {rule.why}."


def _optimizer_params() -> dict[str, str]:
    """Return the texts under the fields of ``OptimizerSettings``, by dotted key."""
    (declared,) = ast.parse(inspect.getsource(OptimizerSettings)).body
    assert isinstance(declared, ast.ClassDef)
    texts = texts_under_fields(declared) | _MORE_PARAMS
    del texts["kind"]  # it is optimizer.type
    for name, default in _DEFAULTS.items():
        texts[name] += f" Default: {default}."
    return {PARAMS + name: text for name, text in texts.items()}
