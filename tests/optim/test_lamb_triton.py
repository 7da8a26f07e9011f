"""LAMB's Triton kernels: in Triton's interpreter on a CPU, as they are on a GPU."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

triton = pytest.importorskip("triton")

from bertds.optim.lamb import ShardedLamb  # noqa: E402
from bertds.optim.lamb_triton import BLOCK, CHUNK, cut_into_blocks, sum_blocks  # noqa: E402
from bertds.optim.partition import Partition, Slice  # noqa: E402
from bertds.optim.weight_decay import is_decayed  # noqa: E402
from tests.support.tensor_cuts import (  # noqa: E402
    Shapes,
    distance,
    make,
    partitions_of,
    start_weights,
    textbook,
    train,
)

SHAPES: Shapes = {
    "one.weight": (1,),
    "emb.weight": (37, 11),
    "LayerNorm.weight": (11,),
    "dense.weight": (67, 73),  # a whole block of 2,048 elements inside, and parts of two
    "zero.weight": (5, 3),
    "last.bias": (1,),
}
TOTAL = sum(torch.Size(shape).numel() for shape in SHAPES.values())
DENSE = TOTAL - 67 * 73 - 16  # where dense.weight begins


@pytest.fixture(
    params=[
        pytest.param(
            "cpu",
            marks=pytest.mark.skipif(
                not triton.knobs.runtime.interpret, reason="needs TRITON_INTERPRET=1"
            ),
        ),
        pytest.param("cuda", marks=pytest.mark.gpu),
    ]
)
def device(request: pytest.FixtureRequest) -> str:
    return request.param


def run(
    cuts: list[int], variant: str, device: str, steps: int = 3, kernels: str = "triton", **more
) -> tuple[dict[str, torch.Tensor], ShardedLamb, list[Partition]]:
    parts = partitions_of(start_weights(SHAPES), cuts, device=device)
    optimizer = make(parts, variant, kernels=kernels, shapes=SHAPES, **more)
    return train(parts, optimizer, steps, SHAPES), optimizer, parts


@pytest.mark.parametrize("bias_correction", [True, False])
@pytest.mark.parametrize("variant", ["nvidia", "deepspeed", "paper"])
def test_the_steps_equal_the_textbook(variant: str, bias_correction: bool, device: str) -> None:
    cuts = [DENSE + 1000, DENSE + 3500]  # dense.weight is cut over three partitions
    found, lamb, _ = run(cuts, variant, device, bias_correction=bias_correction)
    want, ratios = textbook(variant, 3, SHAPES, bias_correction=bias_correction)
    assert distance(found, want) < 1e-6
    assert lamb.trust_ratios() == pytest.approx(ratios, rel=1e-6)


@pytest.mark.parametrize(
    "cuts",
    [
        [0, 0, TOTAL],  # partitions without a tensor
        [1, 2, TOTAL - 1],  # partitions of one element
        [DENSE - 1, DENSE + 1, DENSE + BLOCK, DENSE + 2 * BLOCK],
        [BLOCK, 2 * BLOCK - 1, 2 * BLOCK + 1],
    ],
)
def test_any_division_of_the_tensors_gives_the_same_result(cuts: list[int], device: str) -> None:
    found, _, _ = run(cuts, "paper", device, steps=2)
    assert distance(found, textbook("paper", 2, SHAPES)[0]) < 5e-7


@pytest.mark.parametrize("variant", ["nvidia", "deepspeed"])
def test_weights_and_moments_are_those_of_the_loops_for_a_cpu(variant: str, device: str) -> None:
    found, lamb, parts = run([5, 4000], variant, device)
    want, other, others = run([5, 4000], variant, "cpu", kernels="compiled")
    assert distance(found, want) < 1e-6
    for part, same in zip(parts, others, strict=True):
        inside = sum(piece.length for piece in part.slices)
        for moment in ("exp_avg", "exp_avg_sq"):
            a = lamb.state[part.tensor][moment][:inside].cpu()
            b = other.state[same.tensor][moment][:inside]
            torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_two_runs_are_equal_bit_for_bit_and_padding_is_never_touched(device: str) -> None:
    first, lamb, parts = run([3000], "paper", device)
    second, _, _ = run([3000], "paper", device)
    assert all(torch.equal(first[name], second[name]) for name in SHAPES)
    for part in parts:
        assert bool(part.tensor[-3:].isnan().all())
        assert not lamb.state[part.tensor]["exp_avg"][-3:].any()


def test_the_ratio_is_clamped_and_one_for_a_tensor_of_zeros(device: str) -> None:
    _, lamb, _ = run([], "deepspeed", device, steps=1, max_coeff=0.3)
    ratios = lamb.trust_ratios()
    assert ratios["zero.weight"] == 1.0
    assert ratios["dense.weight"] == pytest.approx(0.3)


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide")
def test_an_eps_of_zero_makes_no_nan_outside_a_piece(device: str) -> None:
    # w = (3, 4), g = (1, -1): u = (1, -1) and |w| / |u| = 5 / sqrt(2)
    parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0], device=device))
    lamb = ShardedLamb([parameter], lr=0.1, eps=0.0, weight_decay=0.0, is_decayed=is_decayed)
    part = Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, 2)])
    lamb.bind([part], ["a.weight"], kernels="triton")
    parameter.grad = torch.tensor([1.0, -1.0], device=device)
    lamb.step()
    assert lamb.trust_ratios()["a.weight"] == pytest.approx(5 / 2**0.5, rel=1e-6)
    assert parameter.tolist() == pytest.approx([3 - 0.5 / 2**0.5, 4 + 0.5 / 2**0.5], rel=1e-6)


def test_the_sums_of_blocks_are_added_up_in_float64(device: str) -> None:
    """In float32, 2**24 + 1 is 2**24. The second tensor takes the loop three turns."""
    blocks = torch.ones(2, 3 * CHUNK + 5, device=device)
    blocks[:, 0] = blocks[:, CHUNK] = 2.0**24
    first_blocks = torch.tensor([0, CHUNK, 3 * CHUNK + 5], dtype=torch.int32, device=device)
    sums = torch.zeros(2, 2, dtype=torch.float64, device=device)
    sum_blocks[(2, 2)](blocks, first_blocks, sums, blocks.shape[1], 2, CHUNK=CHUNK)
    assert sums.tolist() == [[2.0**24 + CHUNK - 1, 2.0**24 + 2 * CHUNK + 4]] * 2


def test_a_bf16_gradient_is_read_as_it_is(device: str) -> None:
    weights = torch.randn(300, generator=torch.Generator().manual_seed(0))
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        parameter = torch.nn.Parameter(weights.to(device, copy=True))
        if dtype == torch.bfloat16:
            parameter.grad_dtype = None  # any dtype, as with DeepSpeed's flat partitions
        lamb = ShardedLamb([parameter], lr=0.1, is_decayed=is_decayed)
        part = Partition(tensor=parameter, slices=[Slice("a.weight", 0, 0, 300)])
        lamb.bind([part], ["a.weight"], kernels="triton")
        parameter.grad = weights.to(device).bfloat16().to(dtype)
        lamb.step()
        results.append(parameter.detach().cpu())
    assert torch.equal(*results)


@given(
    st.lists(st.tuples(st.integers(0, BLOCK), st.integers(1, 3 * BLOCK)), max_size=5),
    st.permutations(range(5)),
)
def test_blocks_cover_each_piece_once_and_stay_inside_it(pieces, numbers) -> None:
    offset, slices = 0, []
    for number, (gap, length) in enumerate(pieces):
        slices.append(Slice(str(number), 0, offset + gap, length))
        offset += gap + length
    index = {str(number): place for number, place in enumerate(numbers)}
    table = cut_into_blocks(Partition(torch.zeros(offset), slices), index)
    assert sorted(table[:, 3]) == list(table[:, 3])
    covered = {number: [] for number in range(5)}
    for tile, low, high, tensor in table.tolist():
        assert 0 <= low < high <= BLOCK
        covered[tensor].append((tile * BLOCK + low, tile * BLOCK + high))
    for piece in slices:
        spans = covered[index[piece.name]]
        assert spans[0][0] == piece.offset and spans[-1][1] == piece.offset + piece.length
        assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


# Makes three steps with Triton's real front end and compiler, for a device that is not there:
# everything but the launch itself. Prints what was compiled, as JSON.
COMPILE = """
import json, re, sys
from types import SimpleNamespace
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction
from bertds.optim.weight_decay import is_decayed
from bertds.optim.lamb import ShardedLamb
from bertds.optim.partition import Partition, Slice

target = GPUTarget(*json.loads(sys.argv[1]))
triton.runtime.driver.set_active(SimpleNamespace(
    get_current_device=lambda: 0, get_current_stream=lambda device: 0,
    get_current_target=lambda: target))
run, compiled = JITFunction.run, {}

def compile_only(self, *arguments, grid, warmup, **options):
    kernel = run(self, *arguments, grid=grid, warmup=True, **options)
    compiled.setdefault(self.fn.__name__, {})[id(kernel)] = kernel

JITFunction.run = compile_only
parameter = torch.nn.Parameter(torch.ones(100_000))
lamb = ShardedLamb([parameter], lr=0.1, is_decayed=is_decayed)
slices = [Slice("a.weight", 0, 0, 90_000), Slice("a.bias", 0, 90_000, 9_999)]
lamb.bind([Partition(tensor=parameter, slices=slices)], ["a.weight", "a.bias"], kernels="triton")
for step in range(3):
    lamb.param_groups[0]["lr"] = 0.1 * step
    parameter.grad = torch.ones(100_000)
    lamb.step()
found = {}
for name, kernels in compiled.items():
    [kernel] = kernels.values()
    code = kernel.asm.get("ptx") or kernel.asm["amdgcn"]
    found[name] = {word: len(re.findall(word, code)) for word in sys.argv[2:]}
print(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "load", "store", "bad"),
    [
        (["cuda", 90, 32], r"ld\.global\.v4", r"st\.global\.v4", r"\batom|\bred\.|\.local"),
        (["hip", "gfx942", 64], "load_dwordx4", "store_dwordx4", "_atomic|scratch_(load|store)"),
    ],
    ids=["sm_90", "gfx942"],
)
def test_each_kernel_compiles_once_for_a_gpu(
    target: list, load: str, store: str, bad: str, tmp_path: Path, repository: Path
) -> None:
    """Whole blocks move 16 bytes at a time; no atomics, no spilt register, no recompilation."""
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path), "PYTHONPATH": str(repository)}
    environment["TRITON_INTERPRET"] = "0"
    done = subprocess.run(
        [sys.executable, "-c", COMPILE, json.dumps(target), load, store, bad],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert set(found) == {"update_moments", "sum_blocks", "apply_update"}
    assert not any(counts[bad] for counts in found.values())
    # 8 elements per thread: two loads of each of four (three) streams.
    counts = [
        found[name][word] for name in ("update_moments", "apply_update") for word in (load, store)
    ]
    assert counts == [8, 4, 6, 2] if target[0] == "cuda" else min(counts) > 0
