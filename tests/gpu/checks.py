"""What must hold on a GPU. Each check is a function of a device and an empty folder.

They run on a GPU under pytest (``make test-gpu``) or without it (``python tests/gpu/run.py``), and
on a CPU in the everyday tests, which shows at least that they run. Nothing here needs pytest.
"""

from __future__ import annotations

import gc
import json
import math
import os
import warnings
from collections.abc import Callable
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from bertds.distributed.rank_info import RankInfo
from tests.gpu.attention_checks import (
    attention_dropout_has_its_rate_and_follows_the_seed,
    attention_equals_padded,
    hidden_dropout_has_its_rate_and_follows_the_seed,
)
from tests.gpu.fused_checks import (
    fused_attention_has_one_mask_in_both_directions,
    fused_sums_have_one_mask_in_both_directions,
)
from tests.gpu.small_bert import (
    CONFIG,
    DTYPES,
    VOCABULARY,
    distance,
    fp16_allowed,
    loss_and_gradients,
    make_engine,
    make_model,
    make_rows,
    train,
    weights_of,
)

ROUNDING = {"bf16": 3e-2, "fp16": 4e-3, "fp32": 1e-5}
"""How far gradients may be from those in float32, relative to their norm."""


# -- the whole model ------------------------------------------------------------------------------


def gradients_are_those_of_float32(device: str, folder: Path) -> None:
    """Loss and gradients of the whole model in bf16 and fp16, against float32 on the CPU."""
    batch = make_rows(3)
    want_loss, want = loss_and_gradients(make_model(), batch)
    for precision in ("bf16", "fp16"):
        model = make_model().to(device, DTYPES[precision])
        loss, gradients = loss_and_gradients(model, batch)
        assert math.isclose(loss, want_loss, rel_tol=ROUNDING[precision])
        apart = distance(gradients, want)
        assert apart < ROUNDING[precision], f"{precision}: {apart:.1e} of the gradients' norm"


def compiled_layers_change_nothing(device: str, folder: Path) -> None:
    """Loss and gradients with and without, over rows of several shapes; nothing recompiled."""
    from torch._dynamo.utils import counters

    from bertds.model.compile_layers import compile_layers

    torch._dynamo.reset()
    counters.clear()
    precision = "bf16" if device == "cuda" else "fp32"
    plain, compiled = (make_model().to(device, DTYPES[precision]) for _ in range(2))
    assert compile_layers(compiled, device, backend="inductor" if device == "cuda" else "aot_eager")
    graphs = []
    for seed in range(4):
        batch = make_rows(seed, [9 + seed, 30, 17, 20 + 3 * seed][: 4 - seed // 2])
        loss, gradients = loss_and_gradients(compiled, batch)
        want_loss, want = loss_and_gradients(plain, batch)
        assert math.isclose(loss, want_loss, rel_tol=ROUNDING[precision])
        assert distance(gradients, want) < ROUNDING[precision]
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert graphs[0] > 0 and graphs[1] == graphs[-1], f"graphs compiled by batch: {graphs}"


def fused_layers_change_nothing(device: str, folder: Path) -> None:
    """Loss and gradients against float32 modules, over short rows and long; the same bits twice."""
    from bertds.model.fused_layer import fuse_layers

    if device == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
        return
    precisions = ("bf16", "fp16") if device == "cuda" else ("fp32",)
    long_rows = [[200, 131, 64]] if device == "cuda" else []  # slow in the interpreter
    for lengths in ([20, 33, 40, 8, 17, 48], *long_rows):
        batch = make_rows(3, lengths)
        want_loss, want = loss_and_gradients(make_model(max_position_embeddings=256), batch)
        for precision in precisions:
            model = make_model(max_position_embeddings=256).to(device, DTYPES[precision])
            model.bert.encoder.kernel = lambda: "flash"  # type: ignore[method-assign]
            fuse_layers(model)
            runs = [loss_and_gradients(model, batch) for _ in range(2)]
            loss, gradients = runs[0]
            assert math.isclose(loss, want_loss, rel_tol=ROUNDING[precision])
            apart = distance(gradients, want)
            assert apart < ROUNDING[precision], f"{precision}, {lengths}: {apart:.1e}"
            again = runs[1][1]
            inner = [name for name in gradients if "encoder" in name]
            assert all(torch.equal(gradients[name], again[name]) for name in inner)


def recorded_graphs_change_nothing(device: str, folder: Path) -> None:
    """Gradients summed over micro batches of one shape, without a warning about streams."""
    from bertds.model.cuda_graphs import record_on_cuda, use_graphs

    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    kernel = "auto" if device == "cuda" else "padded"  # grouped rows are no fixed shape
    plain, graphed = (make_model(attention_kernel=kernel).to(device, dtype) for _ in range(2))
    record = record_on_cuda if device == "cuda" else lambda module, sample: module
    replayed = use_graphs(graphed.bert.encoder, record)
    batches = [make_rows(seed, [20, 33 + seed, 40 - seed]) for seed in range(3)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sums = []
        for model in (plain, graphed):
            for batch in batches:
                inputs = {**batch.to(device).model_inputs(), "max_seqlen": 64}
                output = model(**inputs)
                (output.mlm_loss_sum + output.nsp_loss_sum).backward()
            sums.append({n: p.grad.float().cpu() for n, p in model.named_parameters()})
    assert replayed.shapes == 1
    assert distance(sums[1], sums[0]) < (ROUNDING["bf16"] if device == "cuda" else 1e-6)
    streams = [str(one.message) for one in caught if "stream" in str(one.message).lower()]
    assert not streams, streams[0]


# -- training -------------------------------------------------------------------------------------


def zero_stages_train_alike(device: str, folder: Path) -> None:
    """Losses of six steps with LAMB: stages 0 to 3 in float32, 1 to 3 in bf16."""
    for precision, stages in (("fp32", range(4)), ("bf16", range(1, 4))):
        runs = {}
        for stage in stages:
            engine = make_engine(device, stage, precision)
            runs[stage], applied = train(engine, range(6))
            engine.close()
            assert all(applied)
        first = runs[stages[0]]
        assert first[-1] < first[0]
        limit = 1e-3 if precision == "fp32" else 2e-2
        for stage in stages:
            for loss, other in zip(runs[stage], first, strict=True):
                assert math.isclose(loss, other, rel_tol=limit), f"{precision}, stage {stage}"


def loss_scaling_survives_an_overflow(device: str, folder: Path) -> None:
    """fp16 from far too large a scale: no update until it has fallen, then training continues."""
    with fp16_allowed():
        scaling = {"initial_scale_power": 24, "hysteresis": 1}
        engine = make_engine(device, 1, "fp16", scaling=scaling)
        before = weights_of(engine)
        losses, applied = train(engine, range(1))
        assert applied == [False] and engine.loss_scale() < 2.0**24
        after = weights_of(engine)
        assert all(torch.equal(after[name], before[name]) for name in before)
        losses, applied = train(engine, range(1, 24))
        assert sum(applied[-6:]) >= 5, "the scale never came down"
        assert engine.loss_scale() > 1.0
        assert all(math.isfinite(loss) for loss in losses) and losses[-1] < losses[0]
        assert not all(torch.equal(weights_of(engine)[name], before[name]) for name in before)
        engine.close()


def lamb_is_the_textbooks(device: str, folder: Path) -> None:
    """Ten steps of each variant on tensors cut over three partitions; two runs are bit-equal."""
    from tests.support import tensor_cuts as cuts

    for variant in ("nvidia", "deepspeed", "paper"):
        runs = []
        for _ in range(2):
            parts = cuts.partitions_of(cuts.start_weights(), [200, 17_000], device=device)
            optimizer = cuts.make(parts, variant)
            runs.append(cuts.train(parts, optimizer, 10))
        want, ratios = cuts.textbook(variant, 10)
        assert cuts.distance({n: w.cpu() for n, w in runs[0].items()}, want) < 1e-6, variant
        assert all(torch.equal(runs[0][name], runs[1][name]) for name in want), variant
        for name, ratio in optimizer.trust_ratios().items():
            assert math.isclose(ratio, ratios[name], rel_tol=1e-5), f"{variant}: {name}"


def auto_micro_batch_survives_running_out(device: str, folder: Path) -> None:
    """ "auto" with a limit that is too high: on a GPU the memory really runs out on the way."""
    from bertds.config.recipe import Config, DataConfig
    from bertds.config.run_settings import RunConfig
    from bertds.engine.ds_config import check_deepspeed_values
    from bertds.model.bert import BertForPreTraining
    from bertds.training import auto_micro_batch

    wide = replace(CONFIG, hidden_size=256, intermediate_size=1024, num_attention_heads=4)
    model = BertForPreTraining(wide, VOCABULARY)
    limit_gib = 1000.0 if device == "cuda" else 0.25
    config = Config(
        model=wide,
        data=DataConfig(sequence_length=64, max_predictions_per_sequence=10),
        run=RunConfig(memory_limit_gib=limit_gib),
    )
    settings = check_deepspeed_values(
        {
            "train_batch_size": 1 << 15,
            "train_micro_batch_size_per_gpu": "auto",
            "optimizer": {"type": "AdamW", "params": {"lr": 1e-3}},
            "bf16": {"enabled": True},
            "zero_optimization": {"stage": 1},
        }
    )
    with ExitStack() as stack:
        stack.enter_context(environment("XDG_CACHE_HOME", str(folder)))
        if device == "cuda":
            stack.enter_context(gpu_memory(0.75))  # 65,536 tokens need about 1.3 GiB
        chosen = auto_micro_batch.choose_micro_batch(model, config, settings, RankInfo(0, 0, 1))
        rows = chosen.train_micro_batch_size_per_gpu
        most = settings.train_batch_size
        if device == "cuda":
            most = auto_micro_batch.GPU_TOKENS // config.data.sequence_length
        assert 1 <= rows < most, f"{rows} rows: nothing ran out of memory"
        trial = model.to(device, torch.bfloat16).train()
        run = trial_of(auto_micro_batch, trial, config, device)
        run(rows)
        if device == "cuda":
            try:
                run(4 * rows)
            except torch.OutOfMemoryError:
                return
            raise AssertionError(f"{rows} rows were chosen, but {4 * rows} fit")


def trial_of(module: Any, model: Any, config: Any, device: str) -> Callable[[int], float]:
    """What the search tries: forward and backward over full rows."""

    def run(rows: int) -> float:
        inputs = module.full_rows(config, rows, torch.device(device))
        return float(module.measured_bytes(model, inputs))

    return run


@contextmanager
def environment(name: str, value: str):  # type: ignore[no-untyped-def]
    """Set a variable of the environment for a while."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def gpu_memory(gib: float):  # type: ignore[no-untyped-def]
    """Let this process have only this much of the GPU's memory for a while."""
    gc.collect()  # DeepSpeed's engines are full of cycles
    torch.cuda.empty_cache()
    share = gib * 2**30 / torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def a_resumed_run_is_the_unbroken_one(device: str, folder: Path) -> None:
    """``train.py`` in bf16 with dropout, stopped after each step: losses and weights bit-equal."""
    from bertds.checkpoint.find import step_folders
    from bertds.checkpoint.format import CheckpointReader
    from bertds.train import entry
    from tests.support.tiny import TINY_JSON, TINY_RECIPE, write_tiny_data, write_tiny_vocab

    data = write_tiny_data(folder / "data", write_tiny_vocab(folder / "vocab.txt"))
    (folder / "recipe.yaml").write_text(TINY_RECIPE)
    values = {
        **json.loads(TINY_JSON),
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 1},
        "optimizer": {"type": "Lamb", "params": {"lr": 5e-3}},
        "train_micro_batch_size_per_gpu": 6,
    }
    (folder / "ds.json").write_text(json.dumps(values))

    def start(run: str, *more: str) -> int:
        return entry(
            [
                "--config",
                str(folder / "recipe.yaml"),
                "--deepspeed_config",
                str(folder / "ds.json"),
                "--set",
                f"run.dir={folder / run}",
                f"data.path={data}",
                "schedule.total_steps=3",
                "schedule.warmup_steps=1",
                "model.hidden_dropout_prob=0.1",
                "model.attention_probs_dropout_prob=0.1",
                "run.compile=false",
                "validation.every_steps=0",
                *more,
            ]
        )

    def losses(run: str) -> list[float]:
        lines = (folder / run / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines if "split" not in json.loads(line)]

    def weights(run: str) -> dict[str, Any]:
        return dict(CheckpointReader(step_folders(folder / run / "checkpoints")[0]).weights())

    assert start("whole") == 0
    assert [start("broken", "run.max_hours=0") for _ in range(3)] == [75, 75, 0]
    assert losses("broken") == losses("whole")
    whole, broken = weights("whole"), weights("broken")
    assert whole.keys() == broken.keys()
    assert [name for name in whole if not whole[name].equal(broken[name])] == []
    where = json.loads((folder / "whole" / "environment.json").read_text())["starts"][-1]["device"]
    assert (where == "cpu") == (device == "cpu")


CHECKS: list[Callable[[str, Path], None]] = [
    attention_equals_padded,
    attention_dropout_has_its_rate_and_follows_the_seed,
    hidden_dropout_has_its_rate_and_follows_the_seed,
    gradients_are_those_of_float32,
    fused_layers_change_nothing,
    fused_attention_has_one_mask_in_both_directions,
    fused_sums_have_one_mask_in_both_directions,
    lamb_is_the_textbooks,
    zero_stages_train_alike,
    loss_scaling_survives_an_overflow,
    a_resumed_run_is_the_unbroken_one,
    auto_micro_batch_survives_running_out,
    compiled_layers_change_nothing,
    recorded_graphs_change_nothing,
]
"""In order of worth: what is cheap and basic first."""
