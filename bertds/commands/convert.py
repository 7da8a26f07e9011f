"""``bertds convert``: between Hugging Face, NVIDIA DLE, TensorFlow, Megatron and NeMo."""

from __future__ import annotations

import argparse
from pathlib import Path

from bertds.errors import EXIT_OK, ConfigError
from bertds.pretrained.convert import convert
from bertds.pretrained.foreign.megatron import MegatronBert
from bertds.pretrained.open_any import opened
from bertds.pretrained.output_folder import check_output
from bertds.system.arguments import CommandParser
from bertds.system.idle_options import given_options


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = CommandParser(
        prog="bertds convert",
        description="Convert a model to Hugging Face, NVIDIA DLE or ONNX format. SRC: "
        "a run, a Hugging Face folder, a name listed by `bertds models`, ckpt_*.pt of DLE, "
        "a TensorFlow checkpoint (bert_model.ckpt or its folder), or a NeMo or "
        "Megatron checkpoint (.nemo, .ckpt, .pt).",
    )
    add = parser.add_argument
    add("source", metavar="SRC")
    add("out", metavar="DIR", help="output folder")
    add(
        "--to",
        choices=("hf", "dle", "onnx"),
        required=True,
        help="hf = Hugging Face; dle = NVIDIA DLE; onnx = ONNX (SRC: a run or a Hugging Face "
        "folder)",
    )
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="config.json or bert_config.json of SRC (default: in the same folder)",
    )
    add(
        "--vocab",
        type=Path,
        metavar="FILE",
        help="vocab.txt or tokenizer.json of SRC, or a folder with one of them (default: the "
        "folder of SRC)",
    )
    add("--overwrite", action="store_true", help="replace an earlier conversion in DIR")
    add(
        "--cased",
        action="store_true",
        help="the vocabulary of SRC is cased (default: as in its files; if they do not say, cased "
        "if a token has an upper-case letter)",
    )
    add(
        "--gelu",
        choices=("gelu", "gelu_new"),
        help="activation of SRC: gelu = exact, gelu_new = tanh approximation (default: gelu_new "
        "for DLE, TensorFlow and Megatron, otherwise as in the configuration of SRC)",
    )
    args = parser.parse_args(argv)
    if args.to == "dle" and args.cased:
        raise ConfigError("--cased cannot be combined with --to dle, which has no such setting")
    for option in ("config", "vocab", "cased", "gelu"):
        if args.to == "onnx" and option in given_options(parser, args):
            raise ConfigError(
                f"--{option} cannot be combined with --to onnx; first convert to hf with --{option}"
            )
    return args


def main(argv: list[str] | None = None) -> int:
    """Convert one model."""
    args = parse_args(argv)
    check_output(Path(args.out), overwrite=args.overwrite)
    if args.to == "onnx":
        from bertds.pretrained.onnx_export import export_onnx

        differences = export_onnx(args.source, Path(args.out), overwrite=args.overwrite)
        for name, difference in differences.items():
            print(f"{name}: differs from torch by at most {difference:.2g}")
        print(f"wrote {args.out}/model.onnx")
        return EXIT_OK
    with opened(args.source, args.config, args.vocab, args.gelu) as source:
        # Megatron's architecture is not ours, so its weights need their own converter.
        if isinstance(source, MegatronBert):
            if args.to != "hf":
                raise ConfigError(
                    f"--to {args.to}: a Megatron BERT can only be converted to hf (its "
                    "architecture differs: LayerNorm first)"
                )
            source.write(Path(args.out), cased=args.cased, overwrite=args.overwrite)
        else:
            known = source.tokenizer_folder
            in_file = known is not None and (known / "tokenizer_config.json").is_file()
            if args.cased and (in_file or source.rules is not None):
                raise ConfigError(
                    f"--cased: {args.source} already defines the casing; omit --cased"
                )
            convert(source, args.to, Path(args.out), cased=args.cased, overwrite=args.overwrite)
            for name in source.missing:
                print(f"not in the source, initialized at random: {name}")
            for name in source.unused:
                print(f"omitted, not part of this model: {name}")
    print(f"wrote {args.out}")
    return EXIT_OK
