"""What the Triton kernels compile to, without a GPU: instructions, registers, shared memory.

```text
python benchmarks/kernel_code.py [--capability 90] [--json FILE]
```

The kernels are launched by their usual functions, with tensors on the CPU. A driver takes the
place of CUDA's: it names the GPU that is compiled for and launches nothing. Instructions of
attention are also counted per weight: per query and key, in the loops that compute them.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "0"  # read when Triton is imported

import torch
import triton
from triton.backends.compiler import GPUTarget

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.common import add_result_options, footer, host_facts, write_result
from bertds.engine.accumulate_triton import Accumulator
from bertds.model.kernels import add_norm, column_sums, cross_entropy, long_rows, short_rows

SHARED_KIB = {"80": 163, "86": 99, "89": 99, "90": 227}
"""Shared memory that a program can have (CUDA C++ programming guide, "Technical Specifications per
Compute Capability")."""
THREADS = {"80": 2048, "86": 1536, "89": 1536, "90": 2048}
"""Of a multiprocessor (likewise)."""
REGISTERS = 65536
"""Of a multiprocessor, of which no thread can have more than 255."""
RESERVED_SHARED = 1024
"""Bytes of shared memory that each program needs in addition, from compute capability 8.0 on."""
DROPOUT = 0.1


class RecordingDriver:
    """Takes the place of CUDA's driver, and keeps the code of each kernel."""

    def __init__(self, capability: str) -> None:
        self.target = GPUTarget("cuda", int(capability), 32)
        self._shared_bytes = SHARED_KIB[capability] * 1024
        self.loaded: list[tuple[str, bytes, int, int]] = []
        self.utils = self
        self._warps = 0

    def launcher_cls(self, source: object, metadata: Any) -> Callable[..., None]:
        """Return what would launch a kernel that is about to be loaded."""
        self._warps = metadata.num_warps
        return lambda *arguments: None

    def load_binary(self, name: str, code: bytes, shared: int, device: int) -> tuple[int, ...]:
        """Keep a kernel; return module, function, registers, spills and threads for Triton."""
        self.loaded.append((name, code, shared, self._warps))
        return 1, len(self.loaded), 32, 0, 1024

    def get_device_properties(self, device: int) -> dict[str, int]:
        """Return what Triton compares a kernel with."""
        return {"max_shared_mem": self._shared_bytes, "multiprocessor_count": 132, "warpSize": 32}

    def get_current_device(self) -> int:
        """Return the number of the only GPU."""
        return 0

    def get_current_stream(self, device: int) -> int:
        """Return the default stream."""
        return 0

    def get_current_target(self) -> GPUTarget:
        """Return the GPU that is compiled for."""
        return self.target


def one_row(length: int) -> tuple[torch.Tensor, tuple[torch.Tensor, int, float, torch.Tensor]]:
    """Return queries, keys and values of a row, and the other arguments of its attention."""
    qkv = torch.zeros(length, 3, 16, 64, dtype=torch.bfloat16)
    starts = torch.tensor([0, length], dtype=torch.int32)
    [keys] = add_norm.draw_keys(1, torch.device("cpu"))
    return qkv, (starts, length, DROPOUT, keys)


def launch_short_rows() -> None:
    """Launch the attention kernels for short rows."""
    qkv, others = one_row(short_rows.LONGEST_ROW)
    output = short_rows.attend_short_rows(qkv, *others)
    short_rows.attend_short_rows_backward(output, qkv, *others)


def launch_long_rows() -> None:
    """Launch the attention kernels for long rows."""
    qkv, others = one_row(512)
    attended = long_rows.attend_long_rows(qkv, *others)
    long_rows.attend_long_rows_backward(attended.output, qkv, attended, *others)


def launch_others(hidden: int = 1024, wide: int = 4096, vocabulary: int = 30528) -> None:
    """Launch every other kernel of a layer, the loss's, and the one that adds gradients."""
    [keys] = add_norm.draw_keys(1, torch.device("cpu"))
    x = torch.zeros(128, hidden, dtype=torch.bfloat16)
    gamma = torch.zeros(hidden, dtype=torch.bfloat16)
    _, summed, statistics = add_norm.add_norm(x, x.clone(), gamma, gamma, 1e-12, DROPOUT, keys)
    *_, sums = add_norm.add_norm_backward(x, summed, statistics, gamma, DROPOUT, keys)
    values = torch.zeros(128, wide, dtype=torch.bfloat16)
    column_sums.gelu_backward(values, values.clone(), "none")
    column_sums.finish_sums((sums, sums, sums, sums), torch.bfloat16)
    parts = torch.zeros(3, 128, 16, 64, dtype=torch.bfloat16)
    column_sums.join_gradients((parts[0], parts[1], parts[2]))
    logits = torch.zeros(32, vocabulary, dtype=torch.bfloat16)
    labels = torch.zeros(32, dtype=torch.int64)
    cross_entropy.cross_entropy(logits, labels, vocabulary, with_gradient=True)
    Accumulator([torch.zeros(hidden)]).add([gamma], [False])


def count_instructions(code: str) -> tuple[int, list[int]]:
    """Count those of a disassembled kernel, and those of each of its loops that has 100."""
    places: dict[str, int] = {}
    instructions = []
    for line in code.splitlines():
        label = re.match(r"\s*(\.L\w+):", line)
        if label:
            places[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    found = []
    for number, instruction in enumerate(instructions):
        target = re.search(r"BRA\b.*?(\.L\w+)", instruction)
        start = places.get(target[1], number) if target else number
        if number - start >= 100:
            found.append(number - start + 1)
    return len(instructions), found


def run_tool(tool: str, *arguments: str) -> str:
    """Return the output of a tool that Triton brings along."""
    path = getattr(triton.knobs.nvidia, tool).path
    done = subprocess.run([path, *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def describe(name: str, code: bytes, shared: int, warps: int, capability: str) -> dict[str, Any]:
    """Return the figures of a kernel."""
    shared_bytes = SHARED_KIB[capability] * 1024
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "kernel.cubin")
        file.write_bytes(code)
        usage = run_tool("cuobjdump", "-res-usage", str(file))
        listing = run_tool("nvdisasm", "-c", str(file))
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None, usage
    registers, stack = int(found[1]), int(found[2])
    threads = warps * 32
    instructions, loops = count_instructions(listing)
    return {
        "kernel": name,
        "warps": warps,
        "registers": registers,
        "stack": stack,
        "shared": shared,
        "programs": min(
            REGISTERS // (-(-registers // 8) * 8 * threads),
            (shared_bytes + RESERVED_SHARED) // (shared + RESERVED_SHARED),
            THREADS[capability] // threads,
        ),
        "instructions": instructions,
        "loops": loops,
        "wide": len(re.findall(r"\b(?:LDG?|STG?|LDGSTS)\.\S*128", listing)),
        "atomic": len(re.findall(r"\b(?:ATOM|ATOMG|RED)\.", listing)),
    }


def measure(capability: str) -> list[dict[str, Any]]:
    """Return the figures of every kernel, compiled for a GPU."""
    driver = RecordingDriver(capability)
    triton.runtime.driver.set_active(driver)
    short_rows.is_large_enough.cache_clear()  # it may have been asked about another GPU
    found = []
    for group, launch in {
        "short_rows": launch_short_rows,
        "long_rows": launch_long_rows,
        "": launch_others,
    }.items():
        if group == "short_rows" and not short_rows.is_large_enough(torch.device("cuda", 0)):
            continue  # fused layers do not use them there
        driver.loaded.clear()
        launch()
        for name, *loaded in driver.loaded:
            label = f"{group}.{name}" if group else name
            found.append(describe(label, *loaded, capability))
    per_turn = {
        "short_rows._attend": short_rows.LONGEST_ROW**2,
        "short_rows._attend_backward": short_rows.LONGEST_ROW**2,
        "long_rows._attend": long_rows.BLOCK**2,
        "long_rows._attend_backward": long_rows.BLOCK**2,
    }
    for figures in found:
        weights = per_turn.get(figures["kernel"])
        if weights is not None:
            # Rows that fit into one block need no loop over it.
            instructions = sum(figures["loops"]) or figures["instructions"]
            figures["per_weight"] = round(instructions * figures["warps"] * 32 / weights, 1)
    return found


def table(result: dict[str, Any]) -> str:
    """Return the figures as text."""
    columns = {
        "kernel": "kernel",
        "warps": "warps",
        "registers": "registers",
        "stack": "stack",
        "shared": "shared",
        "programs": "programs",
        "instructions": "instructions",
        "loops": "in loops",
        "per_weight": "per weight",
    }
    lines = [list(columns.values())]
    for figures in result["kernels"]:
        cells = {**figures, "loops": " + ".join(map(str, figures["loops"]))}
        lines.append([str(cells.get(key, "")) for key in columns])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rows = ([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])] for line in lines)
    return "\n".join("  ".join(row).rstrip() for row in rows)


def main(argv: list[str] | None = None) -> int:
    """Compile, count, print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--capability",
        choices=SHARED_KIB,
        default="90",
        help="compute capability that is compiled for (default: %(default)s, an H100)",
    )
    add_result_options(parser)
    arguments = parser.parse_args(argv)
    result = host_facts("kernel_code.py", argv, arguments.note, ("torch", "triton"))
    result |= {"capability": arguments.capability, "kernels": measure(arguments.capability)}
    print(table(result))
    print(
        "\nregisters and stack: of a thread (bytes for what does not fit); shared: bytes of a "
        "program;\nprograms: that run at a time on a multiprocessor; in loops, per weight: "
        "instructions\n"
    )
    print(footer(result))
    write_result(result, arguments.json)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
