"""A plan as text and as JSON."""

from __future__ import annotations

import argparse
import dataclasses
import json
from typing import TYPE_CHECKING, Any

from bertds.plan.forecast import STARTUP_SECONDS, Forecast
from bertds.plan.sweep import best, fitting_layouts

if TYPE_CHECKING:
    from bertds.plan.calibration import Calibration


def numbers(plan: Forecast) -> dict[str, Any]:
    """Return a forecast as plain numbers."""
    gib = 2**30
    return {
        "devices": plan.batch.world_size,
        "micro_batch": plan.batch.micro_batch_size,
        "accumulation": plan.batch.gradient_accumulation_steps,
        "global_batch": plan.batch.global_batch_size,
        "stage": plan.shape.stage,
        "memory_gib": {
            **{k: round(v / gib, 3) for k, v in dataclasses.asdict(plan.memory).items()},
            "total": round(plan.memory_gib, 3),
        },
        "fits": plan.fits,
        "steps": plan.steps,
        "samples": plan.samples,
        "tokens": plan.tokens,
        "flops": plan.flops,
        "seconds_per_step": plan.step.total,
        "bound_by": plan.step.bound_by,
        "bytes_sent_per_step": plan.step.bytes_sent,
        "hours": plan.hours,
        "device_hours": plan.device_hours,
        "kilowatt_hours": plan.kilowatt_hours,
        "dollars": plan.dollars,
        "mfu": plan.mfu,
        "speed_from": "calibrated" if plan.calibrated else plan.hardware.efficiency_kind,
        "checkpoint_gib": plan.checkpoint_gib,
    }


def show_plan(plan: Forecast, calibration: Calibration | None, args: argparse.Namespace) -> None:
    """Print a plan: layout, memory, time, cost, and the assumptions behind them."""
    from bertds.display.words import count, in_words

    memory, step, batch = plan.memory, plan.step, plan.batch
    gib = 2**30
    accumulation = count(batch.gradient_accumulation_steps, "accumulation step")
    print(
        f"{plan.steps:,} steps of {batch.global_batch_size:,} rows = micro batch "
        f"{batch.micro_batch_size} x {accumulation} x {batch.world_size} {plan.hardware.name}; "
        f"ZeRO stage {plan.shape.stage}, {plan.shape.precision}, {plan.shape.optimizer}\n"
    )
    print(
        f"memory per device     {plan.memory_gib:9.2f} GiB of {plan.hardware.memory_gib:.1f}: "
        f"{('fits' if plan.fits else 'DOES NOT FIT')}"
    )
    for name in dataclasses.asdict(memory):
        print(f"  {name:<18}  {getattr(memory, name) / gib:9.2f}")
    print("  fits, by stage: " + fitting_layouts(plan))
    print(
        f"time per step         {step.total:9.3f} s   (arithmetic {step.arithmetic:.3f}, "
        f"optimizer {step.optimizer:.3f}, network {step.exposed:.3f}, stragglers "
        f"{step.stragglers:.3f})"
    )
    print(
        f"time of the phase     {in_words(plan.hours * 3600):>11}   MFU {plan.mfu:.1%}, "
        f"{step.bound_by}-bound"
    )
    print(
        f"sent per step         {step.bytes_sent / 1e9:9.3f} GB per device, "
        f"{step.communication:.3f} s"
    )
    print(
        f"work                  {plan.samples:,} rows, {plan.tokens:.3g} real tokens, "
        f"{plan.flops / 1e18:.3g} EFLOP"
    )
    print(
        f"devices               {plan.device_hours:9.1f} device-hours, "
        f"{plan.kilowatt_hours:,.1f} kWh"
    )
    print(f"cost                  {plan.dollars:9,.0f} dollars at {plan.price:g} per device-hour")
    # Token ids take 2 or 4 bytes, and sentence offsets about 3% more.
    shards = args.corpus_tokens * (2 if args.vocab_size < 65_536 else 4) * 1.03
    print(
        f"disk                  {shards / gib:9.1f} GiB token shards, {plan.checkpoint_gib:.2f} "
        "GiB per checkpoint"
    )
    print("\nassumptions")
    print(f"  machine: {plan.hardware.source}")
    if calibration is None:
        machine = plan.hardware
        print(
            f"  speed {machine.efficiency_kind}, {machine.efficiency_128:.1%} of the peak at 128 "
            f"tokens and {machine.efficiency_512:.1%} at 512: {machine.efficiency_source}"
        )
    else:
        print(
            f"  calibrated by {calibration.run}: {calibration.rate / 1e12:.4g} TFLOP/s "
            f"per device, {calibration.tokens_per_row:.1f} tokens per row, "
            f"{calibration.base_bytes / gib:.2f} GiB in addition to the tensors, "
            f"{calibration.stall_share:.1%} of the time waiting for data"
        )
        if calibration.memory_rate is not None:
            print(f"  optimizer at {calibration.memory_rate / 1e9:.3g} GB/s, measured by that run")
    # The number of real tokens per row decides the time, so its source is named.
    length = plan.shape.sequence_length
    origin = "Wikipedia; change it with --mean-tokens"
    if args.mean_tokens is not None:
        origin = "--mean-tokens"
    elif calibration is not None and calibration.sequence_length == length:
        origin = "measured"
    print(f"  rows of {plan.shape.tokens_per_row:.0f} real tokens ({origin})")
    print(
        "  network: half of the nominal bandwidth; 1% stragglers per doubling of the nodes "
        "(fit to DLE's 64 DGX-2H)"
    )
    print("  energy: devices and their share of the node at full load, without cooling")
    print(f"  start-up: {in_words(STARTUP_SECONDS)}, included in the time of the phase")


def show_sweep(rows: list[Forecast], *, as_json: bool) -> None:
    """Print the best micro batch of each stage and node count, or all of them as JSON."""
    if as_json:
        print(json.dumps([numbers(row) for row in rows], indent=1))
        return
    head = ("devices", "stage", "micro", "accum", "GiB", "fits", "s/step", "hours", "MFU", "kWh")
    widths = (7, 5, 5, 5, 7, 4, 7, 8, 5, 9)
    print(" ".join(f"{name:>{width}}" for name, width in zip(head, widths)) + f" {'dollars':>8}")
    for row in best(rows):
        cells = (
            row.batch.world_size,
            row.shape.stage,
            row.batch.micro_batch_size,
            row.batch.gradient_accumulation_steps,
            f"{row.memory_gib:.2f}",
            "yes" if row.fits else "no",
            f"{row.step.total:.3f}",
            f"{row.hours:.2f}",
            f"{row.mfu:.1%}",
            f"{row.kilowatt_hours:.1f}",
            f"{row.dollars:.0f}",
        )
        print(" ".join(f"{cell:>{width}}" for cell, width in zip(cells, (*widths, 8))))
    print(
        f"\n{len(rows)} layouts compared. Shown: the fastest that fits, by stage and devices."
        "\nUse --json to print all of them and what limits each."
    )
