"""A small stand-in for BERT: odd sizes, a tied matrix, a frozen parameter, both losses."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from bertds.engine.deepspeed_engine import Engine
from bertds.engine.ds_config import check_deepspeed_values

ROWS = 24
"""Rows in a global batch."""
LR = 4e-3


class Output(NamedTuple):
    mlm_loss_sum: torch.Tensor
    nsp_loss_sum: torch.Tensor
    mlm_correct: torch.Tensor
    nsp_correct: torch.Tensor


class Batch(NamedTuple):
    input_ids: torch.Tensor
    row_ids: torch.Tensor
    masked_lm_ids: torch.Tensor
    next_sentence_labels: torch.Tensor
    rows: int

    def model_inputs(self) -> dict[str, torch.Tensor]:
        return {name: getattr(self, name) for name in self._fields[:4]}


class Toy(torch.nn.Module):
    def __init__(self, *, frozen: bool = True, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embeddings = torch.nn.Embedding(53, 23)
        self.LayerNorm = torch.nn.LayerNorm(23)
        self.dense = torch.nn.Linear(23, 31)
        self.transform = torch.nn.Linear(31, 23)
        self.decoder = torch.nn.Linear(23, 53)
        self.decoder.weight = self.embeddings.weight  # one Parameter object, as in our BERT
        self.classifier = torch.nn.Linear(23, 2)
        if frozen:
            self.scale = torch.nn.Parameter(torch.full((7, 5), 1.25), requires_grad=False)
        for parameter in self.parameters():
            if parameter.requires_grad and parameter.dim() == 1:
                torch.nn.init.normal_(parameter, 0.5, 0.2)

    def forward(
        self,
        input_ids: torch.Tensor,
        row_ids: torch.Tensor,
        masked_lm_ids: torch.Tensor,
        next_sentence_labels: torch.Tensor,
    ) -> Output:
        hidden = self.LayerNorm(self.embeddings(input_ids))
        if hasattr(self, "scale"):
            hidden = hidden * self.scale[0, 0]
        hidden = hidden + self.transform(torch.tanh(self.dense(hidden)))
        logits = _at_least_float32(self.decoder(hidden))
        mlm = functional.cross_entropy(logits, masked_lm_ids, reduction="sum")
        rows = len(next_sentence_labels)
        pooled = torch.zeros(rows, hidden.shape[1], dtype=hidden.dtype)
        pooled = pooled.index_add(0, row_ids, hidden)
        scores = _at_least_float32(self.classifier(torch.tanh(pooled)))
        nsp = functional.cross_entropy(scores, next_sentence_labels, reduction="sum")
        return Output(
            mlm,
            nsp,
            (logits.argmax(-1) == masked_lm_ids).sum(),
            (scores.argmax(-1) == next_sentence_labels).sum(),
        )


def parameter_sizes(engine: Engine) -> dict[str, int]:
    """The number of elements of every parameter, frozen ones included."""
    layout = engine._layout
    frozen = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in layout.frozen.items()}
    return {**layout.numels, **frozen}


def _at_least_float32(logits: torch.Tensor) -> torch.Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def rows_of(step: int, first: int, last: int) -> Batch:
    """Rows first ... last of the global batch of a step: 1 to 3 tokens each."""
    ids, rows, masked, labels = [], [], [], []
    for row in range(first, last):
        generator = torch.Generator().manual_seed(1000 * step + row)
        count = 1 + (row + step) % 3
        ids.append(torch.randint(0, 53, (count,), generator=generator))
        masked.append((ids[-1] * 3 + 1) % 53)
        rows.append(torch.full((count,), row - first))
        labels.append(int(row % 8 == 0))  # even classes would cancel in the gradient
    return Batch(
        torch.cat(ids), torch.cat(rows), torch.cat(masked), torch.tensor(labels), last - first
    )


def learning_rate(step: int) -> float:
    return LR * min(1.0, (step + 1) / 5)


def values(stage: int = 0, precision: str = "fp32", optimizer: str = "AdamW", **more: Any) -> dict:
    """A DeepSpeed JSON. ``params`` adds to the optimizer's."""
    params = {"lr": LR, "betas": [0.9, 0.99], "eps": 1e-6, "weight_decay": 0.05}
    params.update(more.pop("params", {}))
    zero = {"stage": stage, "reduce_bucket_size": 4000, "stage3_param_persistence_threshold": 100}
    zero.update(more.pop("zero", {}))
    result = {
        "train_batch_size": ROWS,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_clipping": 0.5,
        "optimizer": {"type": optimizer, "params": params},
        "zero_optimization": zero,
    }
    if precision in ("bf16", "fp16"):
        result[precision] = {"enabled": True}
    if precision == "autocast":
        result["torch_autocast"] = {"enabled": True, "dtype": "bfloat16"}
    return {**result, **more}


def make_engine(json_values: dict, model: torch.nn.Module | None = None) -> Engine:
    settings = check_deepspeed_values(json_values)
    plan = settings.batch_plan(int(os.environ.get("WORLD_SIZE", "1")))
    return Engine.create(model or Toy(), settings, plan, seed=1)


def train(
    engine: Engine,
    first: int,
    last: int,
    poison: Callable[[int, int, int], bool] = lambda step, micro_step, rank: False,
) -> tuple[list[float], list[bool]]:
    """Train; returns the losses of the global batch and whether each step was applied.

    Where ``poison(step, micro_step, rank)`` says so, the gradient becomes NaN.
    """
    plan = engine.batch
    losses, applied = [], []
    per_rank = plan.global_batch_size // plan.world_size
    for step in range(first, last):
        engine.set_learning_rate(learning_rate(step))
        start = engine.rank * per_rank
        cuts = range(start, start + per_rank, plan.micro_batch_size)
        batches = [rows_of(step, cut, cut + plan.micro_batch_size) for cut in cuts]
        count = engine.global_sums([float(sum(len(b.masked_lm_ids) for b in batches))])
        forwards = plan.gradient_accumulation_steps * plan.world_size
        total = 0.0
        for micro_step, batch in enumerate(batches):
            engine.seed_dropout(7, step, micro_step)
            scale = forwards / count[0]
            if poison(step, micro_step, engine.rank):
                scale = scale * float("nan")
            output = engine.forward_backward(
                batch, mlm_scale=scale, nsp_scale=forwards / plan.global_batch_size
            )
            total += float(output.mlm_loss_sum / count[0])
            total += float(output.nsp_loss_sum / plan.global_batch_size)
        applied.append(engine.step())
        losses.append(float(engine.global_sums([total])[0]))
    return losses, applied


State = dict[tuple[str, str], torch.Tensor]


def shares(engine: Engine) -> list[tuple[str, str, int, torch.Tensor]]:
    """This rank's pieces, copied."""
    return [(p.name, p.kind, p.start, p.tensor.clone()) for p in engine.pieces()]


def merge(
    all_shares: list[list[tuple[str, str, int, torch.Tensor]]], sizes: dict, average: bool = False
) -> State:
    """Put the pieces of all ranks together; fails unless they cover all exactly once."""
    state: State = {}
    cover: State = {}
    for share in all_shares:
        for name, kind, start, part in share:
            assert part.dtype == torch.float32 and part.dim() == 1
            key = (name, kind)
            state.setdefault(key, torch.full((sizes[name],), float("nan")))
            cover.setdefault(key, torch.zeros(sizes[name]))
            state[key][start : start + len(part)] = part
            cover[key][start : start + len(part)] += 1
    for key, counts in cover.items():
        assert bool((counts == 1).all()), key
    kinds: dict[str, set[str]] = {}
    for name, kind in state:
        kinds.setdefault(name, set()).add(kind)
    for name in sizes:
        want = {"weight"} if name == "scale" else {"weight", "exp_avg", "exp_avg_sq"}
        want |= {"average"} if average and name != "scale" else set()
        assert kinds[name] == want, name
    return state


def gather_state(engine: Engine) -> State:
    return merge(engine.gather_objects(shares(engine)), parameter_sizes(engine))


def reader(state: State) -> Callable[[str, str, int, int], torch.Tensor]:
    return lambda name, kind, start, length: state[name, kind][start : start + length]


def same(a: State, b: State) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def distance(a: State, b: State, kind: str = "weight") -> float:
    """Largest distance of a tensor's two values, relative to its norm."""
    return max(
        float((a[key].double() - b[key].double()).norm() / b[key].double().norm())
        for key in b
        if key[1] == kind
    )
