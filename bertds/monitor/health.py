"""Checks the health of a run: what looks wrong, and what to try.

Reads only metric lines, so it serves the running process, ``bertds status`` and the report.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

RECENT = 10
"""Number of train lines that count as recent."""
FLAT_LINES = 40
"""Number of train lines over which the loss must change."""
FLAT_SHARE = 0.002
"""Fraction of the loss by which it must fall over them."""
FLAT_ABOVE = 4.0
"""In nats; below it, a masked-LM loss naturally changes slowly."""
CHANCE = 0.53
"""Next-sentence accuracy up to which it counts as guessing."""
CHANCE_STEPS = 1000
"""Number of steps after which next-sentence prediction must be better than chance."""
UNIGRAM_MARGIN = 0.05
"""Nats by which a held-out masked-LM loss must be below that of word frequencies alone."""
UNIGRAM_LINES = 3
"""Number of consecutive validations without improvement before this is reported."""
STALL_SHARE = 0.10
"""Fraction of the time in which training waits for the loader."""
SKIP_SHARE = 0.10
"""Fraction of the steps without an update."""
NORM_FACTOR = 10.0
"""Multiple of its median that a gradient norm may reach."""


_CHANCE_REMEDY = (
    "wait while the masked-LM loss is above 6; otherwise check that documents have several "
    "sentences in order, or train without next-sentence prediction (model.next_sentence=false "
    "data.pairs=none)"
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that looks wrong."""

    name: str
    """A short name; each is reported once."""
    text: str
    """The observation."""
    remedy: str
    """What to try."""

    def __str__(self) -> str:
        return f"{self.text}. Suggestion: {self.remedy}"


def findings(lines: Sequence[dict[str, Any]]) -> list[Finding]:
    """Check a run's metric lines.

    Args:
        lines: train and validation lines, oldest first.

    Returns:
        What looks wrong now, the most serious first.
    """
    train = [line for line in lines if "split" not in line]
    held_out = [line for line in lines if line.get("split") == "validation"]
    if not train:
        return []
    # The plateau of word frequencies is reported from held-out figures if there are any.
    plateau = _frequencies(held_out)
    found = [_not_finite(train), _overflows(train), _norm(train), plateau]
    found += [_flat(train) if plateau is None else None]
    found += [_guessing(held_out) or _chance(train), _loader(train), _slow_ranks(train)]
    return [one for one in found if one is not None]


def rank_name(rank: int, host: str, gpu: int | None) -> str:
    """Return a rank with its place: ``rank 3 (GPU 1 of node7)``."""
    return f"rank {rank} ({'' if gpu is None else f'GPU {gpu} of '}{host})"


def _frequencies(held_out: list[dict[str, Any]]) -> Finding | None:
    """Return a finding if the held-out loss is not better than word frequencies."""
    stuck = []
    for line in reversed(held_out):
        entropy = line.get("unigram_entropy")
        if entropy is None or line["mlm_loss"] < entropy - UNIGRAM_MARGIN:
            break
        stuck.append(line)
    if len(stuck) < UNIGRAM_LINES:
        return None
    last = stuck[0]
    return Finding(
        "frequencies",
        f"no better than word frequencies since step {stuck[-1]['step']:,}: held-out masked-LM "
        f"loss {last['mlm_loss']:.2f}, word frequencies alone {last['unigram_entropy']:.2f}",
        "wait if it is early in warm-up; later, try a higher peak learning rate with a longer "
        "warm-up, smaller batches for more steps, or model.style=modern, and check the rows "
        "(bertds inspect)",
    )


def _guessing(held_out: list[dict[str, Any]]) -> Finding | None:
    """Return a finding if held-out next-sentence accuracy is that of the majority label."""
    recent = [line for line in held_out[-UNIGRAM_LINES:] if line.get("nsp_majority") is not None]
    if len(recent) < UNIGRAM_LINES or recent[-1]["step"] < CHANCE_STEPS:
        return None
    above = [line["nsp_accuracy"] - line["nsp_majority"] for line in recent]
    if max(above) > CHANCE - 0.5:
        return None
    return Finding(
        "chance",
        f"held-out next-sentence accuracy is {recent[-1]['nsp_accuracy']:.1%} at step "
        f"{recent[-1]['step']:,}; always predicting the more frequent label gives "
        f"{recent[-1]['nsp_majority']:.1%}",
        _CHANCE_REMEDY,
    )


def _not_finite(lines: list[dict[str, Any]]) -> Finding | None:
    if lines[-1]["loss"] is not None:
        return None
    return Finding(
        "loss",
        f"no finite loss in the steps up to {lines[-1]['step']:,}",
        "a lower peak learning rate or a longer warm-up; bf16 instead of fp16",
    )


def _overflows(lines: list[dict[str, Any]]) -> Finding | None:
    recent = lines[-RECENT:]
    steps = recent[-1]["step"] - recent[0]["step"]
    skipped = recent[-1]["skipped_steps"] - recent[0]["skipped_steps"]
    if steps < RECENT or skipped <= SKIP_SHARE * steps:
        return None
    return Finding(
        "overflow",
        f"{skipped} of the last {steps} steps made no update (overflow or a bad gradient)",
        "bf16 instead of fp16, or a lower fp16.initial_scale_power; if that does not help, a "
        "lower learning rate",
    )


def _norm(lines: list[dict[str, Any]]) -> Finding | None:
    norms = [line["grad_norm"] for line in lines if line.get("grad_norm")]
    if len(norms) < 2 * RECENT or lines[-1].get("grad_norm") is None:
        return None
    usual = median(norms[-5 * RECENT :])
    if norms[-1] <= NORM_FACTOR * usual:
        return None
    return Finding(
        "gradient",
        f"the gradient norm is {norms[-1]:.3g}, {norms[-1] / usual:.0f} times its median of "
        f"{usual:.3g}",
        "guard.spike_sigmas=6 to skip such steps, a lower peak learning rate, or a longer warm-up",
    )


def _flat(lines: list[dict[str, Any]]) -> Finding | None:
    window = [line for line in lines[-FLAT_LINES:] if line["mlm_loss"] is not None]
    peak = max(line["lr"] for line in lines)
    if len(window) < FLAT_LINES or lines[-1]["lr"] < 0.1 * peak:
        return None
    half = FLAT_LINES // 2
    before = fmean(line["mlm_loss"] for line in window[:half])
    after = fmean(line["mlm_loss"] for line in window[half:])
    # The scatter of the lines: the standard error of the mean of half of them.
    noise = math.sqrt(fmean((line["mlm_loss"] - after) ** 2 for line in window[half:]) / half)
    if after < FLAT_ABOVE or before - after > max(FLAT_SHARE * before, noise):
        return None
    return Finding(
        "flat",
        f"masked-LM loss has stayed at {after:.2f} since step {window[0]['step']:,}",
        "wait if it is early in warm-up; later, try another peak learning rate or a longer "
        "warm-up, and check the data (bertds evaluate prints the unigram entropy, which is often "
        "the level of this plateau)",
    )


def _chance(lines: list[dict[str, Any]]) -> Finding | None:
    recent = [line["nsp_accuracy"] for line in lines[-RECENT:] if line.get("nsp_accuracy")]
    if lines[-1]["step"] < CHANCE_STEPS or len(recent) < RECENT or fmean(recent) > CHANCE:
        return None
    return Finding(
        "chance",
        f"next-sentence accuracy is {fmean(recent):.1%}, no better than chance, after "
        f"{lines[-1]['step']:,} steps",
        _CHANCE_REMEDY,
    )


def _loader(lines: list[dict[str, Any]]) -> Finding | None:
    recent = lines[-RECENT:]
    seconds = sum(line["seconds"] for line in recent)
    stalled = sum(line["stall_seconds"] for line in recent)
    if len(recent) < 3 or stalled <= STALL_SHARE * seconds:
        return None
    return Finding(
        "loader",
        f"training waits for the data loader {stalled / seconds:.0%} of the time",
        "data.prefetch_steps=8, more CPU cores per process, or data on a local disk",
    )


def _slow_ranks(lines: list[dict[str, Any]]) -> Finding | None:
    slow = lines[-1].get("slow_ranks")
    if not slow:
        return None
    named = [
        f"{rank_name(rank['rank'], rank['host'], rank['gpu'])} by {rank['slower']:.0%}"
        for rank in slow
    ]
    return Finding(
        f"slow rank {slow[0]['rank']}",
        f"slower than the other ranks in the last steps: {', '.join(named)}",
        "run bertds doctor on that machine; check for other programs, and the temperature and "
        "clock of the GPU (nvidia-smi -q -d PERFORMANCE,TEMPERATURE); exclude the machine until "
        "the cause is found",
    )
