"""The checks of `bertds doctor` on one machine, except its GPUs, each with a remedy.

Every function yields findings: good (True), broken (False) or worth knowing (None); the name of the
item; and what was found, followed by the remedy if there is one.
"""

from __future__ import annotations

import os
import resource
import shutil
import socket
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from bertds.system.memory import cpu_memory_total
from bertds.system.processes import usable_cores

Finding = tuple[bool | None, str, str]

EXTRAS = {
    "wandb": "wandb",
    "tensorboard": "tensorboard",
    "scikit-learn": "finetune",
    "seqeval": "finetune",
    "onnxruntime": "onnx",
}
OPEN_FILES = 4096
"""Shards are memory-mapped, and each loader, rank and socket keeps a few files open."""
SHARED_BYTES = 1e9
"""NCCL has its buffers between the GPUs of a machine in /dev/shm; containers often have 64 MB."""
DISK_BYTES = 5e9


def all_findings(*, with_gpu: bool) -> Iterator[Finding]:
    """Yield all findings, in the order in which they are printed."""
    yield from packages()
    yield from compiler(with_gpu=with_gpu)
    yield from attention(gpu_capability() if with_gpu else None)
    yield from processors()
    yield from shared_memory()
    yield from limits()
    yield from network()
    yield from disks()
    if shutil.which("sbatch"):
        yield True, "slurm", "sbatch found"
    else:
        yield None, "slurm", "not on this machine"


def packages(installed: Callable[[str], str] = version) -> Iterator[Finding]:
    """Check the version of each required package, and list the optional ones."""
    from packaging.requirements import Requirement

    try:
        wanted = [Requirement(text) for text in requires("bertds") or []]
    except PackageNotFoundError:
        wanted = []
        yield False, "bertds", "not installed; pip install -c constraints.txt -e ."
    for requirement in wanted:
        if requirement.marker is not None:  # belongs to an extra
            continue
        try:
            found = installed(requirement.name)
        except PackageNotFoundError:
            yield False, requirement.name, "missing; pip install -c constraints.txt -e ."
            continue
        if requirement.specifier.contains(found, prereleases=True):
            yield True, requirement.name, found
        else:
            yield (
                False,
                requirement.name,
                (
                    f"{found}, but bertds needs {requirement.specifier}; "
                    "pip install -c constraints.txt -e ."
                ),
            )
    for name, extra in EXTRAS.items():
        try:
            yield True, name, installed(name)
        except PackageNotFoundError:
            yield None, name, f"not installed; pip install 'bertds[{extra}]' if you need it"


def compiler(
    *, with_gpu: bool, which: Callable[[str], str | None] = shutil.which
) -> Iterator[Finding]:
    """Check the tools that build DeepSpeed's FusedAdam when a GPU run first uses it."""
    lacking = [tool for tool in ("g++", "nvcc", "ninja") if not which(tool)]
    if not with_gpu:
        yield True, "compiler", "not needed on a CPU"
    elif lacking:
        yield (
            None,
            "compiler",
            (
                f"no {', '.join(lacking)}: DeepSpeed's fused Adam cannot be built (LAMB does not "
                "need it); install g++ and the CUDA toolkit of torch's version, pip install "
                "'bertds[gpu]'"
            ),
        )
    else:
        yield True, "compiler", "g++, nvcc, ninja"


def gpu_capability() -> tuple[int, int] | None:
    """Return the first GPU's compute capability; None if torch finds no GPU."""
    import torch

    return torch.cuda.get_device_capability() if torch.cuda.is_available() else None


def attention(capability: tuple[int, int] | None) -> Iterator[Finding]:
    """Report the attention kernels for a bf16 run, with and without attention dropout."""
    if capability is None:
        yield True, "attention", "rows grouped by length (CPU)"
        return
    import torch

    from bertds.model import attention_kernels as kernels

    lacking = kernels.missing_for_flash(torch.float16, 64, capability)
    if lacking:
        yield None, "attention", f"padded rows; torch's FlashAttention: {lacking}"
        return
    yield True, "attention", "FlashAttention 2 (torch's own), with any dropout"
    for kernel, package in kernels.FLASH_PACKAGES.items():
        if capability[0] not in package.majors:
            continue
        lacking = kernels.missing_for_package(kernel, capability, 0.0)
        usable = "installed; used when model.attention_probs_dropout_prob is 0"
        yield (None if lacking else True), package.title, lacking or usable


def processors() -> Iterator[Finding]:
    """Report the cores that this process may use, and the memory."""
    memory = cpu_memory_total() / 2**30
    yield True, "cores", f"{usable_cores()}, {memory:.0f} GiB of memory"


def shared_memory(folder: Path = Path("/dev/shm")) -> Iterator[Finding]:
    """Check the shared memory of this machine or container."""
    total = shutil.disk_usage(folder).total if folder.is_dir() else 0
    text = f"{total / 1e9:.1f} GB"
    if total < SHARED_BYTES:
        text += ", which is low for several GPUs; use docker run --shm-size=8g or --ipc=host"
    yield (True if total >= SHARED_BYTES else None), "/dev/shm", text


def limits(limit: Callable[[int], tuple[int, int]] = resource.getrlimit) -> Iterator[Finding]:
    """Check the limits of open files and of pinned memory."""
    files = limit(resource.RLIMIT_NOFILE)[1]  # commands raise their own limit to this one
    unlimited = files == resource.RLIM_INFINITY
    if unlimited or files >= OPEN_FILES:
        yield True, "open files", "unlimited" if unlimited else f"{files:,}"
    else:
        yield None, "open files", f"{files:,}; raise nofile in /etc/security/limits.conf"
    # InfiniBand needs pinned memory for its buffers; without it the limit does not matter.
    pinned = limit(resource.RLIMIT_MEMLOCK)[0]
    free = pinned == resource.RLIM_INFINITY
    if free or not Path("/sys/class/infiniband").is_dir():
        yield True, "locked memory", "unlimited" if free else f"{pinned / 2**20:,.0f} MiB"
    else:
        yield (
            None,
            "locked memory",
            (
                f"{pinned / 2**20:,.0f} MiB; InfiniBand needs locked memory for its buffers: "
                "use ulimit -l unlimited"
            ),
        )


def network(
    root: Path = Path("/sys/class/net"), resolve: Callable[[str], str] = socket.gethostbyname
) -> Iterator[Finding]:
    """Report active interfaces with their speed, and check that the host name resolves."""
    found = []
    for path in sorted(root.glob("*")) if root.is_dir() else []:
        try:
            up = (path / "operstate").read_text().strip() == "up"
        except OSError:
            up = False
        if not up or path.name == "lo":
            continue
        # Virtual and disconnected interfaces have no speed, or an error when it is read.
        try:
            speed = int((path / "speed").read_text())
        except (OSError, ValueError):
            speed = 0
        found.append(f"{path.name} {speed / 1000:g} Gbit/s" if speed > 0 else path.name)
    # InfiniBand cards are not listed with the other interfaces if they have no IP address.
    cards = root.parent / "infiniband"
    if cards.is_dir():
        found += [f"InfiniBand {card.name}" for card in sorted(cards.iterdir())]
    yield (
        (True if found else None),
        "network",
        ", ".join(found) or ("no interface is up; a single machine does not need one"),
    )
    # gloo looks up the host name to find the address of this machine.
    host = socket.gethostname()
    try:
        yield True, "host name", f"{host} resolves to {resolve(host)}"
    except OSError:
        yield (
            None,
            "host name",
            (
                f"{host} does not resolve, so other machines and gloo may not find this machine; "
                "add it to /etc/hosts, or set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME"
            ),
        )


def disks(folders: tuple[str, ...] = (".", os.environ.get("TMPDIR", "/tmp"))) -> Iterator[Finding]:
    """Check the free space in the current folder and in the one for temporary files."""
    for folder in dict.fromkeys(folders):
        free = shutil.disk_usage(folder).free
        text = f"{Path(folder).resolve()}: {free / 1e9:,.0f} GB free"
        if free < DISK_BYTES:
            text += "; `bertds plan` shows what shards and checkpoints need"
        yield (True if free >= DISK_BYTES else None), "disk", text
