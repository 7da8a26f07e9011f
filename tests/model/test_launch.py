"""Launching a compiled kernel directly does what Triton's own launch does.

A GPU is played by a driver that records what it is asked to launch. The kernel is compiled for an
H100.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytestmark = pytest.mark.slow

RECORDED = '''
import json
import torch, triton
import triton.language as tl
from benchmarks.kernel_code import RecordingDriver
from bertds.model.kernels.launch import kernel

launches = []

class Driver(RecordingDriver):
    def launcher_cls(self, source, metadata):
        super().launcher_cls(source, metadata)
        return self.launch

    def launch(self, x, y, z, stream, function, packed, metadata, enter, leave, *arguments):
        described = [a.data_ptr() if torch.is_tensor(a) else a for a in arguments]
        launches.append([[x, y, z], stream, function, described])

    def get_current_stream(self, device):
        return 7

triton.runtime.driver.set_active(Driver("90"))

@kernel(4, ["count"])
def scale(source, target, count, width, factor: tl.float32, BLOCK: tl.constexpr):
    at = tl.program_id(0) * width + tl.arange(0, BLOCK)
    x = tl.load(source + at, mask=at < count, other=0.0)
    tl.store(target + at, x * factor, mask=at < count)

def launch(source, count=100, width=64, factor=0.5, block=64, grid=(2, 1, 1)):
    """Returns Triton's own launch, and ours with the number of kernels that it has ready."""
    target = torch.zeros_like(source)
    tensors, numbers = (source, target), (count, width, factor)
    scale.function[grid](*tensors, *numbers, BLOCK=block, num_warps=4)
    scale(grid, *tensors, *numbers, BLOCK=block)
    own, ours = launches[-2:]
    return own, ours, len(scale._compiled)

memory = torch.zeros(256)
half = torch.zeros(256, dtype=torch.bfloat16)
cases = {
    "first": launch(memory),
    "again": launch(memory, factor=0.5),
    "other count": [launch(memory, count=count) for count in (1, 16, 17, 160)][-1],
    "other grid": launch(memory, grid=(3, 2, 4)),
    "other factor": launch(memory, factor=0.25),
    "other width": launch(memory, width=63),
    "other block": launch(memory, block=128),
    "other type": launch(half),
    "not aligned": launch(memory[1:]),
    "aligned again": launch(memory[4:]),
}
for name, arguments, constants in [
    ("constant by position", (memory, memory, 100, 64, 0.5, 64), {}),
    ("no second tensor", (memory, 4, 100, 64, 0.5), {"BLOCK": 64}),
]:
    try:
        kernel(4, ["count"])(scale.function.fn)((1, 1, 1), *arguments, **constants)
    except TypeError as error:
        cases[name] = str(error)
print(json.dumps(cases))
'''


@pytest.fixture(scope="module")
def cases(tmp_path_factory, repository: Path):
    script = tmp_path_factory.mktemp("launch") / "recorded.py"  # Triton reads a kernel's source
    script.write_text(RECORDED)
    environment = {**os.environ, "PYTHONPATH": str(repository), "TRITON_INTERPRET": "0"}
    environment["TRITON_CACHE_DIR"] = str(script.parent)
    done = subprocess.run(
        [sys.executable, script], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


KINDS = {
    # Kernels that are ready after it.
    "first": 1,
    "again": 1,
    "other count": 1,
    "other grid": 1,
    "other factor": 2,
    "other width": 3,
    "other block": 4,
    "other type": 5,
    "not aligned": 5,
    "aligned again": 5,
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_launches_what_triton_would(cases, kind: str) -> None:
    """The same compiled kernel, grid, stream and arguments, with all the constants."""
    triton_own, ours, ready = cases[kind]
    assert ours == triton_own
    assert ready == KINDS[kind]


def test_specialized_kernels_differ(cases) -> None:
    """Otherwise the test above would prove nothing."""
    functions = {kind: cases[kind][1][2] for kind in KINDS}
    assert functions["other factor"] == functions["other count"] == functions["first"]
    different = ("first", "other width", "other block", "other type", "not aligned")
    assert len({functions[kind] for kind in different}) == len(different)


@pytest.mark.parametrize("kind", ["constant by position", "no second tensor"])
def test_parameters_in_another_order_are_refused(cases, kind: str) -> None:
    assert "in this order" in cases[kind]
