"""Muon for the hidden matrices, AdamW for the rest, exact however ZeRO divides the tensors.

Muon replaces the update of a matrix by the nearest orthogonal one: all its singular values become
about 1. This needs the whole matrix, but ZeRO gives each rank only pieces of it. Here the pieces
are gathered, one matrix at a time::

    m <- momentum * m + g                      on each rank's own piece
    u  = g + momentum * m                      (Nesterov)
    O  = orthogonal(u)                         of the whole matrix, on one rank
    w <- (1 - lr * decay) * w - lr * 0.2 * sqrt(max(rows, columns)) * O

A matrix that one rank holds whole (at stages 1 and 2 all but those at the edges of partitions)
needs no communication. One that is divided is added up on one of the ranks, in turn, and its
orthogonal form is sent to all. At stage 0 every rank holds and computes everything.

The factor 0.2 * sqrt(max(rows, columns)) gives the update the size of AdamW's (arXiv:2502.16982),
so that one learning rate and one weight decay serve both. Sources: Muon (Jordan et al. 2024), whose
five Newton-Schulz steps and coefficients are used; arXiv:2502.16982 for decay and scale.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from bertds.optim.gradient_norm import global_norm
from bertds.optim.moments import create_moments
from bertds.optim.partition import Partition, Slice

# Coefficients of a x + b x^3 + c x^5, chosen for speed: singular values end in 0.7 ... 1.2.
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)

_NOT_HIDDEN = ("embedding", "decoder", "classifier", "seq_relationship", "qa_outputs")


def is_hidden_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Return whether Muon updates a parameter: a matrix, except embeddings and output layers.

    Args:
        name: the parameter's name in the model, as transformers spells it.
        shape: of the whole tensor.
    """
    return len(shape) == 2 and min(shape) > 1 and not any(word in name for word in _NOT_HIDDEN)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return approximately the nearest orthogonal matrix, by Newton-Schulz iterations.

    Args:
        matrix: [rows, columns], float32. On a GPU the products are in bf16, as in every published
            Muon; on a CPU in float32.
        steps: number of iterations.
    """
    a, b, c = NEWTON_SCHULZ
    wide = matrix.shape[0] <= matrix.shape[1]
    # The iteration needs singular values of at most 1; the Frobenius norm bounds the largest.
    x = matrix / (global_norm([matrix]).to(matrix.dtype) + 1e-7)
    x = x if wide else x.t()
    if x.device.type != "cpu":
        # The smaller side decides the size of x @ x.t(), so work on the wide form.
        x = x.bfloat16()
    for _ in range(steps):
        square = x @ x.t()
        x = a * x + (b * square + c * square @ square) @ x
    return (x if wide else x.t()).to(matrix.dtype)


@dataclass(frozen=True, slots=True)
class _Hidden:
    """A matrix that Muon updates."""

    name: str
    shape: tuple[int, ...]
    piece: Slice | None
    """This rank's piece."""
    turn: int | None
    """Its number among the matrices that no rank holds whole; None if a rank holds it whole."""

    @property
    def scale(self) -> float:
        """Size of the update, relative to the learning rate."""
        return 0.2 * math.sqrt(max(self.shape))


class ShardedMuon(torch.optim.Optimizer):
    """Muon over partitions. Call ``bind`` before the first step.

    State: ``exp_avg`` is Muon's momentum or AdamW's first moment; ``exp_avg_sq`` is AdamW's second
    moment and stays zero for hidden matrices. So checkpoints have the same form as for Adam.

    Args:
        params: the trainable parameters, in one group.
        lr: learning rate; may be changed in ``param_groups`` between steps.
        momentum: of the hidden matrices.
        iterations: number of Newton-Schulz iterations.
        betas: of AdamW.
        eps: of AdamW.
        weight_decay: for hidden matrices, and for the others that ``is_decayed`` selects.
        shapes: the full shape of every trainable parameter, by name.
        is_decayed: takes a parameter's name and returns whether it is decayed.
    """

    def __init__(
        self,
        params: Iterable[torch.nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        iterations: int = 5,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        shapes: Mapping[str, tuple[int, ...]],
        is_decayed: Callable[[str], bool],
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
        }
        super().__init__(params, defaults)
        self.iterations = iterations
        self.shapes = dict(shapes)
        self.is_decayed = is_decayed
        self._partitions: dict[int, Partition] = {}
        self._others: dict[int, list[tuple[bool, list[Slice]]]] = {}
        self._hidden: dict[int, list[_Hidden]] = {}
        self._device = torch.device("cpu")

    def bind(
        self, partitions: list[Partition], names: list[str], device: torch.device | None = None
    ) -> None:
        """Set which tensor pieces are in which partition. Collective if tensors are divided.

        Args:
            partitions: this rank's; their tensors are (or will be) this optimizer's parameters.
            names: all tensors of the model, in the same order on all ranks.
            device: where collectives run; None = the device of the partitions.
        """
        self._partitions = {id(partition.tensor): partition for partition in partitions}
        self._device = device or (partitions[0].tensor.device if partitions else self._device)
        for partition in partitions:
            create_moments(self, partition.tensor)
            self._others[id(partition.tensor)] = self._for_adamw(partition)
        hidden = [name for name in names if is_hidden_matrix(name, self.shapes[name])]
        here = {
            piece.name: (number, piece)
            for number, partition in enumerate(partitions)
            for piece in partition.slices
        }
        # Per matrix: its longest piece on any rank, and the number of its partition.
        found = torch.full((2, len(hidden)), -1, dtype=torch.int64, device=self._device)
        for place, name in enumerate(hidden):
            if name in here:
                number, piece = here[name]
                found[:, place] = torch.tensor([piece.length, number])
        group = next((part.group for part in partitions if part.group is not None), None)
        if group is not None and dist.get_world_size(group) > 1:
            dist.all_reduce(found, op=dist.ReduceOp.MAX, group=group)
        # All ranks number the divided matrices alike, also those of which they hold no piece:
        # computing one is collective.
        self._hidden = {key: [] for key in self._partitions}
        turns = itertools.count()
        for name, longest, number in zip(hidden, *found.tolist(), strict=True):
            shape = self.shapes[name]
            own = here[name][1] if name in here else None
            turn = next(turns) if longest < math.prod(shape) else None
            if own is not None or turn is not None:
                matrix = _Hidden(name, shape, own, turn)
                self._hidden[id(partitions[number].tensor)].append(matrix)

    def _for_adamw(self, partition: Partition) -> list[tuple[bool, list[Slice]]]:
        # Everything but hidden matrices, with and without weight decay.
        others = [
            piece
            for piece in partition.slices
            if not is_hidden_matrix(piece.name, self.shapes[piece.name])
        ]
        groups = [
            (decayed, [piece for piece in others if self.is_decayed(piece.name) == decayed])
            for decayed in (True, False)
        ]
        return [(decayed, pieces) for decayed, pieces in groups if pieces]

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Raises:
            RuntimeError: a parameter is in no partition that ``bind`` was given.
        """
        if closure is not None:
            raise RuntimeError("ShardedMuon takes no closure")
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is None:
                    continue
                partition = self._partitions.get(id(tensor))
                if partition is None:
                    raise RuntimeError("ShardedMuon.step: call bind() with the partitions first")
                self.state[tensor]["step"] += 1
                self._step_adamw(partition, group)
                self._step_muon(partition, group)

    def _step_adamw(self, partition: Partition, group: Mapping[str, Any]) -> None:
        gradient, state = partition.tensor.grad, self.state[partition.tensor]
        assert gradient is not None
        w, g = partition.flat(), gradient.reshape(-1)
        m, v = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        step = torch.full((), float(state["step"]), device=w.device)
        beta1, beta2 = group["betas"]
        # One fused call per group of pieces, directly on views of the flat vectors.
        for decayed, pieces in self._others[id(partition.tensor)]:
            ws, gs, ms, vs = (
                [vector.narrow(0, piece.offset, piece.length) for piece in pieces]
                for vector in (w, g, m, v)
            )
            torch._fused_adamw_(
                ws,
                gs,
                ms,
                vs,
                [],
                [step] * len(pieces),
                lr=float(group["lr"]),
                beta1=beta1,
                beta2=beta2,
                weight_decay=group["weight_decay"] if decayed else 0.0,
                eps=group["eps"],
                amsgrad=False,
                maximize=False,
            )

    def _step_muon(self, partition: Partition, group: Mapping[str, Any]) -> None:
        for hidden in self._hidden[id(partition.tensor)]:
            update = self._update(partition, hidden.piece, group["momentum"])
            if hidden.turn is not None:
                update = self._orthogonal_of_all(partition, hidden, update, hidden.turn)
            else:
                assert update is not None
                update = orthogonal(update.view(hidden.shape), self.iterations).reshape(-1)
            if hidden.piece is not None:
                weights = partition.flat().narrow(0, hidden.piece.offset, hidden.piece.length)
                # Decoupled weight decay first, as in AdamW.
                weights.mul_(1.0 - group["lr"] * group["weight_decay"])
                weights.add_(update, alpha=-group["lr"] * hidden.scale)

    def _update(
        self, partition: Partition, piece: Slice | None, momentum: float
    ) -> torch.Tensor | None:
        """Update the momentum of this rank's piece, and return the piece of u."""
        if piece is None:
            return None
        assert partition.tensor.grad is not None
        g = partition.tensor.grad.reshape(-1).narrow(0, piece.offset, piece.length)
        m = self.state[partition.tensor]["exp_avg"].view(-1)
        m = m.narrow(0, piece.offset, piece.length)
        m.mul_(momentum).add_(g)
        return g.add(m, alpha=momentum)

    def _orthogonal_of_all(
        self, partition: Partition, hidden: _Hidden, update: torch.Tensor | None, turn: int
    ) -> torch.Tensor:
        """Compute a divided matrix on one rank, and return this rank's piece of the result."""
        # Owners take turns, so that all ranks share the work.
        assert partition.group is not None  # the matrix is cut
        owner = turn % dist.get_world_size(partition.group)
        source = dist.get_global_rank(partition.group, owner)
        whole = torch.zeros(math.prod(hidden.shape), device=self._device)
        piece = hidden.piece
        if piece is not None and update is not None:
            whole.narrow(0, piece.start, piece.length).copy_(update)
        # The pieces do not overlap, so adding them to zeros is exact.
        dist.reduce(whole, dst=source, group=partition.group)
        if dist.get_rank(partition.group) == owner:
            whole = orthogonal(whole.view(hidden.shape), self.iterations).reshape(-1).contiguous()
        dist.broadcast(whole, src=source, group=partition.group)
        if piece is None:
            return whole
        return whole.narrow(0, piece.start, piece.length).to(partition.tensor.device)
