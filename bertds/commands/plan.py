"""``bertds plan``: predicts what a run will need, before it is started.

It predicts memory per device, time, energy, cost, communication and disk space, from the recipe,
the DeepSpeed JSON and a table of machines. ``--sweep`` compares many layouts. ``--calibrate RUN``
uses the measurements of a run. Every assumption is printed with its source.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from bertds.errors import EXIT_OK, ConfigError
from bertds.plan.present import numbers, show_plan
from bertds.system.arguments import CommandParser, add_overrides
from bertds.system.idle_options import given_options, refuse_together
from bertds.system.option_types import finite


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds plan",
        description="Predict what a run will need: memory, time, energy, cost, network, disk.",
    )
    parser.add_argument("--config", metavar="R.yaml", help="recipe, a name or path")
    parser.add_argument(
        "--deepspeed_config",
        metavar="F.json",
        help="DeepSpeed JSON, a name or path (default: the one named in the recipe)",
    )
    add_overrides(parser)
    parser.add_argument(
        "--gpu",
        default="h100",
        metavar="NAME",
        help="h100 (default), a100, ... (see --list-gpus) or cpu",
    )
    parser.add_argument(
        "--gpu-file",
        type=Path,
        metavar="F.yaml",
        help="YAML file that adds GPUs or changes their figures, in the format of "
        "bertds/cost_model/gpus.yaml (default: $BERTDS_GPU_FILE)",
    )
    parser.add_argument("--list-gpus", action="store_true", help="print the known GPUs and exit")
    parser.add_argument(
        "--nodes", type=int, default=1, metavar="N", help="number of machines (default: 1)"
    )
    parser.add_argument(
        "--gpus",
        type=int,
        metavar="N",
        help="number of devices per machine (default: the usual number for --gpu)",
    )
    parser.add_argument(
        "--price", type=finite, metavar="D", help="dollars per device-hour (default: an estimate)"
    )
    parser.add_argument(
        "--vocab-size",
        type=int,
        default=30522,
        metavar="N",
        help="number of entries in the vocabulary (default: 30522)",
    )
    parser.add_argument(
        "--mean-tokens",
        type=finite,
        metavar="N",
        help="mean number of real tokens per row (Wikipedia: 115 of 128, 254 of 512)",
    )
    parser.add_argument(
        "--corpus-tokens",
        type=finite,
        default=4.3e9,
        metavar="N",
        help="number of tokens in the corpus, used to estimate disk space (default: 4.3e9, "
        "Wikipedia and books)",
    )
    parser.add_argument(
        "--calibrate", metavar="RUN", help="use the measurements of this run folder"
    )
    parser.add_argument(
        "--sweep",
        action="store_true",
        help="compare ZeRO stages, micro batches and node counts up to 4,096 devices",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    args = parser.parse_args(argv)
    if not (args.config or args.list_gpus):
        parser.error("the following arguments are required: --config")
    given = given_options(parser, args)
    refuse_together(given, "sweep", ("nodes", "corpus_tokens"))  # it chooses nodes; reports no disk
    return args


def main(argv: list[str] | None = None) -> int:
    """Print the plan."""
    args = parse_args(argv)
    from bertds.cost_model.hardware import find
    from bertds.plan.calibration import calibrate, check_calibration
    from bertds.plan.forecast import forecast
    from bertds.training.settings import read_settings

    for name, least in (("price", 0.0), ("mean_tokens", 1.0), ("corpus_tokens", 1.0)):
        value = getattr(args, name)
        if value is not None and value < least:
            raise ConfigError(f"--{name.replace('_', '-')} {value:g}: must be at least {least:g}")
    if args.vocab_size < 1:
        raise ConfigError(f"--vocab-size {args.vocab_size}: must be at least 1")
    if args.list_gpus:
        list_gpus(args.gpu_file)
        return EXIT_OK
    config, settings = read_settings(args.config, args.deepspeed_config, args.set)
    hardware = find(args.gpu, args.gpu_file)
    devices = hardware.devices_per_node if args.gpus is None else args.gpus
    if args.nodes < 1 or devices < 1:
        raise ConfigError(f"--nodes {args.nodes} --gpus {devices}: both must be at least 1")
    # The measurements of a run replace the estimates of the table.
    calibration = calibrate(Path(args.calibrate)) if args.calibrate else None
    if calibration is not None:
        check_calibration(calibration, hardware, settings.precision)
    common: dict[str, Any] = {
        "vocab_size": args.vocab_size,
        "tokens_per_row": args.mean_tokens,
        "calibration": calibration,
        "price": args.price,
    }
    if args.sweep:
        from bertds.plan.present import show_sweep
        from bertds.plan.sweep import sweep

        rows = sweep(config, settings, hardware, devices, common)
        show_sweep(rows, as_json=args.json)
        return EXIT_OK
    plan = forecast(
        config, settings, hardware, nodes=args.nodes, devices_per_node=devices, **common
    )
    if args.json:
        print(json.dumps(numbers(plan), indent=2))
    else:
        show_plan(plan, calibration, args)
    return EXIT_OK


def list_gpus(extra: Path | None) -> None:
    """Print the known GPUs, one in a line."""
    from bertds.cost_model.hardware import table

    print(f"{'GPU':<14}{'GiB':>7}{'TFLOP/s':>9}{'TB/s':>7}{'share of peak, 128 / 512':>27}")
    for item in table(extra).values():
        shares = f"{item.efficiency_128:.1%} / {item.efficiency_512:.1%} {item.efficiency_kind}"
        print(
            f"{item.name:<14}{item.memory_gib:>7.1f}{item.peak_half / 1e12:>9.0f}"
            f"{item.memory_bandwidth / 1e12:>7.2f}{shares:>27}"
        )
