"""Adds a micro batch's gradients to their float32 sums in one Triton kernel.

torch's ``_foreach_add_`` has no fast path for two dtypes: it starts one kernel per tensor, 398 for
BERT-large. Here the addresses of all gradients are sent to the GPU as one small table.

A tensor's first gradient of a step overwrites its sum, so that nothing is zeroed between steps.

``TRITON_INTERPRET=1``, set before Triton is imported, runs the kernel on a CPU (for tests).
"""

# mypy: disable-error-code="no-untyped-def,misc,index"

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import triton
import triton.language as tl

BLOCK = 4096
"""Elements per program; a power of two."""
WARPS = 8
ALIGNMENT = 16
"""16-byte loads and stores need addresses that are multiples of this number of bytes."""
ABSENT, ADD, OVERWRITE = 0, 1, 2
"""The action on a tensor's sum."""
TYPES = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}


@triton.jit
def accumulate(
    gradients,
    actions,
    sums,
    lengths,
    blocks,
    TYPE: tl.constexpr,
    ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program per block: row ``blocks[program]`` has the tensor's and the block's number."""
    tensor = tl.load(blocks + 2 * tl.program_id(0))
    first = tl.load(blocks + 2 * tl.program_id(0) + 1).to(tl.int64) * BLOCK
    action = tl.load(actions + tensor)
    if action > 0:
        address = tl.load(gradients + tensor)
        source = address.to(tl.pointer_type(TYPE))
        total = tl.load(sums + tensor).to(tl.pointer_type(tl.float32))
        if ALIGNED:  # lets the compiler use 16-byte loads and stores
            source, total = tl.multiple_of(source, 16), tl.multiple_of(total, 16)
        # The last block of a tensor is partly outside of it.
        at = first + tl.arange(0, BLOCK)
        inside = at < tl.load(lengths + tensor)
        # An address of 0 means that there is no gradient: the sum becomes 0.
        value = tl.load(source + at, mask=inside & (address != 0), other=0.0).to(tl.float32)
        if action == 1:
            value += tl.load(total + at, mask=inside, other=0.0)
        tl.store(total + at, value, mask=inside)


class Accumulator:
    """float32 sums of gradients, contiguous and at fixed addresses.

    Args:
        sums: one per parameter, on one device.
    """

    def __init__(self, sums: Sequence[torch.Tensor]) -> None:
        self._sums = list(sums)  # keeps them alive: the kernel knows only their addresses
        self._device = self._sums[0].device
        lengths = np.array([total.numel() for total in sums], np.int64)
        # One table row per block: the number of its tensor, and its own number within the tensor.
        counts = -(-lengths // BLOCK)
        tensors = np.repeat(np.arange(len(lengths)), counts)
        numbers = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        addresses = [total.data_ptr() for total in sums]
        self._aligned = all(address % ALIGNMENT == 0 for address in addresses)
        self._addresses = torch.tensor(addresses, dtype=torch.int64, device=self._device)
        self._lengths = torch.from_numpy(lengths).to(self._device)
        table = np.stack([tensors, numbers], axis=1).astype(np.int32)
        self._blocks = torch.from_numpy(table).to(self._device)

    def add(self, gradients: Sequence[torch.Tensor | None], fresh: Sequence[bool]) -> None:
        """Add gradients to the sums, without waiting for the device.

        Args:
            gradients: one per sum, all of one dtype; None if a parameter has no gradient.
            fresh: whether the sum contains nothing of this step yet.
        """
        # Kept alive until the kernel is queued: the memory of a copy must not be reused before.
        held = [None if gradient is None else gradient.contiguous() for gradient in gradients]
        dtype = next((gradient.dtype for gradient in held if gradient is not None), torch.bfloat16)
        addresses = [0 if gradient is None else gradient.data_ptr() for gradient in held]
        actions = [
            OVERWRITE if new else ADD if address else ABSENT
            for address, new in zip(addresses, fresh, strict=True)
        ]
        # Pinned memory: a copy from pageable memory may wait for all queued work.
        pinned = self._device.type == "cuda"
        table = torch.tensor([addresses, actions], dtype=torch.int64, pin_memory=pinned)
        table = table.to(self._device, non_blocking=True)
        accumulate[(len(self._blocks),)](
            table[0],
            table[1],
            self._addresses,
            self._lengths,
            self._blocks,
            TYPE=TYPES[dtype],
            ALIGNED=self._aligned and all(address % ALIGNMENT == 0 for address in addresses),
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
