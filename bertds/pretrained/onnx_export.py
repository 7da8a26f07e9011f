"""Writes a model as ONNX and checks that ONNX Runtime computes the same numbers.

It needs the extra ``onnx`` (``pip install 'bertds[onnx]'``): an exporter, and a runtime for the
check.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from bertds.data.tokenizer_folder import tokenizer_files, write_tokenizer
from bertds.errors import BertdsError, ConfigError
from bertds.pretrained.output_folder import fresh_folder
from bertds.pretrained.transformers_api import (
    TASK_CLASSES,
    as_hugging_face_folder,
    load_transformers,
)
from bertds.system.atomic_files import write_json
from bertds.system.json_fields import parse_json

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
TOLERANCE = 1e-3
"""Maximum absolute difference of an output, in float32."""
# (rows, tokens): shapes that differ from the traced one, to check that the axes are dynamic.
CHECKED_SHAPES = ((1, 5), (3, 17), (2, 64))
_TASK_OF_HEAD = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "ner",
    "ForQuestionAnswering": "qa",
    "ForMaskedLM": "fill-mask",
    "ForPreTraining": "fill-mask",
}


class _Tensors(nn.Module):
    """The model with tensors as inputs and a tuple of tensors as output, as ONNX requires."""

    def __init__(self, model: nn.Module, names: tuple[str, ...]) -> None:
        super().__init__()
        self.model, self.names = model, names

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        output = self.model(
            input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
        )
        return tuple(output[name] for name in self.names)


def task_of(folder: Path) -> str:
    """Return the task of a folder's head; ``encoder`` if it has none."""
    config = parse_json((folder / "config.json").read_text(encoding="utf-8"))
    architecture = (config.get("architectures") or [""])[0]
    return next((t for head, t in _TASK_OF_HEAD.items() if architecture.endswith(head)), "encoder")


def export_onnx(source: str | Path, out: Path, *, overwrite: bool) -> dict[str, float]:
    """Write ``model.onnx`` with config and tokenizer.

    Args:
        source: any model that ``bertds.from_pretrained`` accepts.
        out: must be absent or empty, or with ``overwrite`` an earlier conversion.
        overwrite: replace an earlier conversion.

    Returns:
        Output -> the largest absolute difference between torch and ONNX Runtime.

    Raises:
        ConfigError: the packages are not installed.
        BertdsError: the outputs differ by more than ``TOLERANCE``.
    """
    try:
        import onnxruntime
        import onnxscript  # noqa: F401 - torch's exporter needs it
    except ImportError as error:
        raise ConfigError(
            f"--to onnx requires {error.name}; install it with: pip install 'bertds[onnx]'"
        ) from None
    with (
        as_hugging_face_folder(source) as folder,
        fresh_folder(out, overwrite=overwrite) as temporary,
    ):
        task = task_of(folder)
        model = load_transformers(
            folder, TASK_CLASSES[task], dtype=torch.float32, attn_implementation="eager"
        ).eval()
        names = {"qa": ("start_logits", "end_logits"), "encoder": ("last_hidden_state",)}.get(
            task, ("logits",)
        )
        wrapped = _Tensors(model, names).eval()
        # The model is traced at one shape and compared at others, which shows that the axes are
        # dynamic.
        positions = int(model.config.max_position_embeddings)
        _trace(wrapped, names, min(16, positions), temporary / "model.onnx")
        session = onnxruntime.InferenceSession(
            str(temporary / "model.onnx"), providers=["CPUExecutionProvider"]
        )
        differences = compare(wrapped, session, names, model.config.vocab_size, positions)
        worst = max(differences.values())
        if not worst <= TOLERANCE:
            raise BertdsError(
                f"{out}: the outputs of ONNX Runtime differ from those of torch by {worst:.2g} "
                f"(allowed: {TOLERANCE:g}); nothing was written"
            )
        write_json(temporary / "config.json", parse_json((folder / "config.json").read_text()))
        write_tokenizer(temporary, tokenizer_files(folder), positions)
    return differences


def _trace(wrapped: nn.Module, names: tuple[str, ...], length: int, path: Path) -> None:
    sample = tuple(torch.ones(2, length, dtype=torch.int64) for _ in INPUTS)
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    # The exporter reports many details that do not concern the user.
    for logger in ("torch.onnx", "onnxscript", "torch.export"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            wrapped,
            sample,
            str(path),
            dynamo=True,
            input_names=list(INPUTS),
            output_names=list(names),
            dynamic_shapes=tuple(shape for _ in INPUTS),
            external_data=False,
            verbose=False,
        )
    _name_axes(path)


def _name_axes(path: Path) -> None:
    """Name the two axes of the inputs ``batch`` and ``sequence``; the exporter numbers them."""
    import onnx

    model = onnx.load(str(path))
    graph = model.graph
    names = {
        axis.dim_param: name
        for value in graph.input
        for axis, name in zip(value.type.tensor_type.shape.dim, ("batch", "sequence"))
    }
    for value in (*graph.input, *graph.output, *graph.value_info):
        for axis in value.type.tensor_type.shape.dim:
            if axis.dim_param in names:
                axis.dim_param = names[axis.dim_param]
    onnx.save(model, str(path))


def compare(
    wrapped: nn.Module,
    session: InferenceSession,
    names: tuple[str, ...],
    vocab_size: int,
    positions: int,
) -> dict[str, float]:
    """Return the largest difference of each output over batches of several shapes."""
    generator = np.random.default_rng(0)
    differences = dict.fromkeys(names, 0.0)
    for rows, tokens in CHECKED_SHAPES:
        tokens = min(tokens, positions)
        ids = generator.integers(0, vocab_size, (rows, tokens), dtype=np.int64)
        mask = np.ones((rows, tokens), np.int64)
        mask[-1, tokens // 2 + 1 :] = 0  # padding
        segments = np.zeros((rows, tokens), np.int64)
        segments[:, tokens // 3 :] = 1
        inputs = dict(zip(INPUTS, (ids, mask, segments)))
        with torch.inference_mode():
            expected = wrapped(*(torch.from_numpy(inputs[name]) for name in INPUTS))
        for name, left, right in zip(names, expected, session.run(list(names), inputs)):
            # Outputs at padding are undefined, so only real tokens are compared.
            real = mask.astype(bool) if right.shape[:2] == mask.shape else slice(None)
            difference = float(np.abs(left.numpy()[real] - right[real]).max())
            differences[name] = max(differences[name], difference)
    return differences
