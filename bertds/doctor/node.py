"""The report of one node of a job before training: one JSON object per line.

```text
{"node": "n1", "facts": {...}}                      files, code, packages, disk, GPUs of this node
{"node": "n1", "meet": {"clock": 0.002}}            it reached the first node; clock offset in s
{"node": "n1", "gpu": {"0": "ok", ...}}             a small computation on each GPU
{"node": "n1", "pair": ["n1", "n2"], "gbps": 91.0}  all-reduce between two nodes
```

Each line is printed as soon as it is known, so that a missing line shows where a node hangs.
``verdict`` reads the lines of all nodes. Nothing here imports torch before the first two lines are
printed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bertds.errors import reason_of
from bertds.system.json_fields import parse_json
from bertds.system.shipped_files import PACKAGE

if TYPE_CHECKING:
    from torch import distributed as dist

PACKAGES = ("torch", "deepspeed", "transformers", "tokenizers", "numpy", "h5py", "numba")
ALL_PAIRS_UP_TO = 16
"""Up to this number of nodes every pair is measured; beyond it log2(n) partners per node."""
MESSAGE_BYTES = 32 * 2**20
PAIR_SECONDS = 10.0


def rounds_of_pairs(nodes: int) -> list[list[tuple[int, int]]]:
    """Return rounds of disjoint pairs of node numbers, lower number first.

    With few nodes: a tournament in which each meets each. With many: in round k, the partner is the
    node whose number differs in bit k. Any two halves of the machine are then connected by a pair.
    """
    if nodes < 2:
        return []
    if nodes > ALL_PAIRS_UP_TO:
        bits = range((nodes - 1).bit_length())
        return [[(i, i ^ (1 << k)) for i in range(nodes) if i < i ^ (1 << k) < nodes] for k in bits]
    # The circle method: node 0 is fixed and the others rotate; None is a pause.
    circle: list[int | None] = [*range(nodes)]
    if nodes % 2:
        circle.append(None)
    half = len(circle) // 2
    rounds = []
    for _ in range(len(circle) - 1):
        ends = zip(circle[:half], reversed(circle[half:]))
        rounds.append([(min(a, b), max(a, b)) for a, b in ends if a is not None and b is not None])
        circle = [circle[0], circle[-1], *circle[1:-1]]
    return rounds


# ---- one node's own facts --------------------------------------------------------------------


def data_facts(path: str) -> dict[str, Any]:
    """Return a checksum of the data as this node sees it, or an error for missing or cut files."""
    data = Path(path)
    try:
        if data.is_file():
            return {"digest": f"{data.stat().st_size} bytes"}
        manifest = data / "manifest.json"
        # Without a manifest: names and sizes of the instance files.
        if not manifest.is_file():
            if not data.is_dir():
                return {"error": f"{data}: not found"}
            files = sorted(data.rglob("*.hdf5"))
            if not files:
                return {"error": f"{data}: contains neither manifest.json nor .hdf5 files"}
            listing = "\n".join(f"{f.relative_to(data)} {f.stat().st_size}" for f in files)
            return {"digest": hashlib.sha256(listing.encode()).hexdigest()[:16]}
        # With one: every shard must have the size in the manifest.
        content = manifest.read_bytes()
        for split in parse_json(content).get("splits", {}).values():
            for shard in split.get("shards", []):
                file = data / shard["file"]
                size = file.stat().st_size if file.is_file() else None
                if size != shard["bytes"]:
                    found = "missing" if size is None else f"{size:,} bytes"
                    return {
                        "error": f"{file}: {found}, but the manifest says {shard['bytes']:,} bytes"
                    }
        return {"digest": hashlib.sha256(content).hexdigest()[:16]}
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        return {"error": f"{data}: cannot be read ({reason_of(error)})"}


def code_digest() -> str:
    """Return a checksum of the package's Python files, as this node sees them."""
    folder = PACKAGE
    total = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        total.update(f"{file.relative_to(folder)}\n".encode() + file.read_bytes())
    return total.hexdigest()[:16]


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a run depends on."""
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "missing"
    return versions


def folder_facts(path: str) -> dict[str, Any]:
    """Return whether this node can write to a folder and how much room is left."""
    folder = Path(path)
    try:
        probe = folder / f".tmp-preflight-{socket.gethostname()}-{os.getpid()}"
        probe.write_text("x", encoding="utf-8")
        probe.unlink()
        return {"free_gb": round(shutil.disk_usage(folder).free / 1e9, 2)}
    except OSError as error:
        return {"error": f"{folder}: cannot be written ({error.strerror})"}


def gpu_facts() -> list[dict[str, Any]]:
    """Return the driver's data for each GPU: name, memory in use, uncorrected ECC errors."""
    query = "index,name,memory.used,memory.total,ecc.errors.uncorrected.volatile.total"
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=15,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    gpus = []
    for line in answer.stdout.splitlines():
        parts = [part.strip() for part in line.split(",")]
        # A field that a GPU does not support is "[N/A]", which counts as 0.
        if answer.returncode == 0 and len(parts) == 5:
            index, name, used, total, ecc = parts
            gpus.append(
                {
                    "index": index,
                    "name": name,
                    "used_mb": int(used) if used.isdigit() else 0,
                    "total_mb": int(total) if total.isdigit() else 0,
                    "ecc": int(ecc) if ecc.isdigit() else 0,
                }
            )
    return gpus


def job_gpus(seen: list[dict[str, Any]], given: int) -> list[dict[str, Any]]:
    """Leave out the GPUs of other jobs, which the driver shows unless a cgroup hides them."""
    mine = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    kept = [gpu for gpu in seen if gpu["index"] in mine]
    return kept if len(kept) == given < len(seen) else seen


def node_facts(run: str, data: str, gpus: int) -> dict[str, Any]:
    """Return all facts that need neither torch nor other nodes."""
    facts: dict[str, Any] = {"code": code_digest(), "packages": package_versions()}
    if data:
        facts["data"] = data_facts(data)
    if run:
        facts["run"] = folder_facts(run)
    facts["temporary"] = folder_facts(os.environ.get("TMPDIR", "/tmp"))
    facts["gpus_given"] = gpus
    facts["gpus"] = job_gpus(gpu_facts(), gpus) if gpus else []
    return facts


# ---- meeting the first node ------------------------------------------------------------------


class TimeServer:
    """Answers each connection with this node's time, in the background, until the process ends."""

    def __init__(self, port: int) -> None:
        self._server = socket.create_server(("", port), backlog=1024)
        self._guests = 0
        threading.Thread(target=self._answer, daemon=True).start()

    def _answer(self) -> None:
        while True:
            connection, _ = self._server.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(5.0)
                while connection.recv(1):
                    connection.sendall(f"{time.time():.6f}\n".encode())
            self._guests += 1

    def wait(self, guests: int, deadline: float) -> None:
        """Wait until this number of nodes have connected: they start at different times."""
        while self._guests < guests and time.monotonic() < deadline:
            time.sleep(0.05)


def clock_offset(address: str, port: int, deadline: float) -> float:
    """Return how far the first node's clock is ahead of ours, in seconds.

    Raises:
        OSError: the node cannot be reached before ``deadline`` (``time.monotonic``).
    """
    while True:
        try:
            with socket.create_connection((address, port), timeout=5.0) as connection:
                reader = connection.makefile()
                best = (float("inf"), 0.0)
                for _ in range(5):  # the fastest answer is the most exact one
                    before = time.time()
                    connection.sendall(b"?")
                    theirs = float(reader.readline())
                    after = time.time()
                    best = min(best, (after - before, theirs - (before + after) / 2))
                return best[1]
        except (OSError, ValueError) as error:
            if time.monotonic() > deadline:
                raise OSError(f"cannot reach {address}:{port}: {error}") from error
            time.sleep(0.3)


# ---- computing and talking -------------------------------------------------------------------


def try_gpus(gpus: int) -> dict[str, str]:
    """Multiply matrices on each GPU and compare with the CPU; return "ok" or the fault."""
    import torch

    seen = torch.cuda.device_count()
    results = {}
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(512, 512, generator=generator, dtype=torch.float64)
    expected = matrix @ matrix
    for index in range(gpus):
        if index >= seen:
            results[str(index)] = f"not usable: Slurm allocated {gpus} GPUs, but torch finds {seen}"
            continue
        try:
            product = (matrix.cuda(index) @ matrix.cuda(index)).cpu()
            good = torch.allclose(product, expected, rtol=1e-6, atol=1e-6)
            results[str(index)] = "ok" if good else "computes wrong results"
        except RuntimeError as error:
            results[str(index)] = str(error).splitlines()[0]
    return results


def measure_pair(store: dist.Store, pair: tuple[int, int], me: int, backend: str) -> float:
    """Return the all-reduce bandwidth between two nodes in Gbit/s.

    Raises:
        RuntimeError: the two cannot reach each other within PAIR_SECONDS.
    """
    import torch
    import torch.distributed as dist

    name = f"pair-{pair[0]}-{pair[1]}"
    dist.init_process_group(
        backend,
        store=dist.PrefixStore(name, store),
        rank=pair.index(me),
        world_size=2,
        timeout=timedelta(seconds=PAIR_SECONDS),
    )
    try:
        device = "cuda:0" if backend == "nccl" else "cpu"
        tensor = torch.ones(MESSAGE_BYTES // 4, device=device)
        best = float("inf")
        for _ in range(3):
            begin = time.perf_counter()
            dist.all_reduce(tensor)
            tensor[:1].item()  # waits for the device
            best = min(best, time.perf_counter() - begin)
        # With two processes, each sends and receives the message once (a ring: 2 (n - 1) / n).
        return MESSAGE_BYTES * 8 / best / 1e9
    finally:
        dist.destroy_process_group()


def talk(
    say: Callable[[dict[str, object]], None],
    me: int,
    names: list[str],
    address: str,
    port: int,
    deadline: float,
) -> None:
    """Measure the pairs of this node one after the other, and report each with ``say``."""
    import torch
    import torch.distributed as dist

    backend = "nccl" if torch.cuda.is_available() else "gloo"
    left = max(1.0, deadline - time.monotonic())
    store = dist.TCPStore(
        address, port, None, me == 0, timedelta(seconds=left), wait_for_workers=False
    )
    # Nodes start at different times: wait for all, so that a late partner is not considered dead.
    here = store.add("here", 1)
    if me == 0:
        while here < len(names) and time.monotonic() < deadline - PAIR_SECONDS:
            time.sleep(0.05)
            here = store.add("here", 0)
        store.set("go", "1")
    store.wait(["go"], timedelta(seconds=left))
    for pairs in rounds_of_pairs(len(names)):
        for pair in pairs:
            if me not in pair or time.monotonic() > deadline:
                continue
            line: dict[str, object] = {"pair": [names[pair[0]], names[pair[1]]]}
            try:
                line["gbps"] = round(measure_pair(store, pair, me, backend), 2)
            except (RuntimeError, OSError) as error:
                line["error"] = str(error).splitlines()[0][:200]
            say(line)
    # The first node holds the store, so it leaves last.
    store.set(f"done-{me}", "1")
    if me == 0:
        keys = [f"done-{i}" for i in range(len(names))]
        store.wait(keys, timedelta(seconds=max(1.0, deadline - time.monotonic())))


def report(run: str, data: str, gpus: int, level: str, seconds: float) -> int:
    """Examine this node and print the findings. Returns 0; the verdict is made elsewhere.

    Args:
        run: the run folder, or "".
        data: the data, or "".
        gpus: number of GPUs that Slurm has given to each node.
        level: "quick" skips the computations and the pairs.
        seconds: time limit.
    """
    deadline = time.monotonic() + seconds
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    me, count = int(os.environ.get("SLURM_PROCID", "0")), int(os.environ.get("SLURM_NTASKS", "1"))
    address = os.environ.get("MASTER_ADDR", "localhost")
    port = int(os.environ.get("MASTER_PORT", "15000"))

    def say(line: dict[str, Any]) -> None:
        # One write per line: the lines of several nodes go to one file.
        sys.stdout.write(json.dumps({"node": node, **line}) + "\n")
        sys.stdout.flush()

    server = TimeServer(port + 1) if me == 0 and count > 1 else None
    say({"facts": node_facts(run, data, gpus)})
    if count > 1:
        try:
            offset = clock_offset(address, port + 1, deadline - PAIR_SECONDS)
            say({"meet": {"clock": round(offset, 4)}})
        except OSError as error:
            say({"meet": {"error": str(error)}})
            return 0
    if level == "full":
        if gpus:
            say({"gpu": try_gpus(gpus)})
        if count > 1:
            names = os.environ.get("BERTDS_NODES", "").split(",")
            with contextlib.suppress(RuntimeError, OSError):  # the verdict notices missing lines
                talk(say, me, names, address, port + 2, deadline)
    if server:
        server.wait(count, deadline)  # including this node
    return 0
