"""Maps parameter names of TensorFlow, NeMo and Megatron to those of transformers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from bertds.errors import CheckpointError
from bertds.pretrained.foreign.tensorflow_reader import TensorFlowCheckpoint

# --------------------------------------------------------------------------------------------
# Google's TensorFlow BERT
# --------------------------------------------------------------------------------------------

_TF_SKIPPED = re.compile(r"(^|/)(adam_[mv]|global_step|good_steps|loss_scale|lamb_[mv])$|/Adam")
_TF_HEADS = {
    "cls/predictions/output_bias": "cls.predictions.bias",
    "cls/seq_relationship/output_weights": "cls.seq_relationship.weight",
    "cls/seq_relationship/output_bias": "cls.seq_relationship.bias",
}


def tf_name(name: str) -> tuple[str, bool] | None:
    """Return (transformers' name, whether the matrix is transposed), or None to drop the tensor."""
    if _TF_SKIPPED.search(name):
        return None
    if name in _TF_HEADS:
        return _TF_HEADS[name], False
    if not name.startswith(("bert/", "cls/")):
        return None
    parts = name.split("/")
    last = parts.pop()
    path = ".".join(re.sub(r"^layer_(\d+)$", r"layer.\1", part) for part in parts)
    if last.endswith("_embeddings"):
        return f"{path}.{last}.weight", False
    if last == "kernel":
        return f"{path}.weight", True  # TensorFlow stores [in, out]
    renamed = {"gamma": "weight", "beta": "bias", "bias": "bias"}.get(last)
    return (f"{path}.{renamed}", False) if renamed else None


def from_tensorflow(checkpoint: TensorFlowCheckpoint) -> dict[str, Tensor]:
    """Read the weights of a TensorFlow checkpoint under transformers' names.

    Raises:
        CheckpointError: it contains no BERT.
    """
    weights = {}
    for name in checkpoint.entries:
        target = tf_name(name)
        if target is None:  # an optimizer's moment or a counter
            continue
        tensor = torch.from_numpy(checkpoint.read(name))
        weights[target[0]] = tensor.T.contiguous() if target[1] else tensor
    if not weights:
        shown = ", ".join(list(checkpoint.entries)[:3])
        raise CheckpointError(
            f"{checkpoint.index}: no tensor is named bert/... (found {shown} ...); only the "
            "layout of Google's original BERT is supported"
        )
    return weights


# --------------------------------------------------------------------------------------------
# NeMo's BERTLMModel
# --------------------------------------------------------------------------------------------

_NEMO = {
    "mlm_classifier.dense.": "cls.predictions.transform.dense.",
    "mlm_classifier.norm.": "cls.predictions.transform.LayerNorm.",
    "mlm_classifier.mlp.layer0.weight": "cls.predictions.decoder.weight",
    "mlm_classifier.mlp.layer0.bias": "cls.predictions.bias",
}


def is_nemo(names: Iterable[str]) -> bool:
    """Return whether a state dict is that of NeMo's BERTLMModel around a transformers BERT."""
    return any(name.startswith("bert_model.embeddings.") for name in names)


def from_nemo(state_dict: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Rename the weights of NeMo's BERTLMModel.

    Its next-sentence head has two layers after the pooler where BERT has one, so it is dropped.

    Returns:
        The weights, and the names of dropped tensors.
    """
    weights, left_out = {}, []
    for name, tensor in state_dict.items():
        renamed = re.sub(r"^bert_model\.", "bert.", name)
        for theirs, ours in _NEMO.items():
            if name.startswith(theirs):
                renamed = ours + name[len(theirs) :]
        if renamed.startswith(("bert.", "cls.")) and isinstance(tensor, Tensor):
            weights[renamed] = tensor
        else:
            left_out.append(name)
    return weights, left_out


# --------------------------------------------------------------------------------------------
# Megatron (Megatron-LM, NeMo's MegatronBertModel, BioMegatron)
# --------------------------------------------------------------------------------------------

_MEGATRON_LAYER = {
    "input_layernorm": "attention.ln",
    "attention.dense": "attention.output.dense",
    "self_attention.dense": "attention.output.dense",
    "post_attention_layernorm": "ln",
    "mlp.dense_h_to_4h": "intermediate.dense",
    "mlp.dense_4h_to_h": "output.dense",
}
_MEGATRON_REST = {
    "embedding.word_embeddings": "bert.embeddings.word_embeddings",
    "embedding.position_embeddings": "bert.embeddings.position_embeddings",
    "embedding.tokentype_embeddings": "bert.embeddings.token_type_embeddings",
    "final_layernorm": "bert.encoder.ln",
    "pooler.dense": "bert.pooler.dense",
    "lm_head.dense": "cls.predictions.transform.dense",
    "lm_head.layernorm": "cls.predictions.transform.LayerNorm",
    "binary_head": "cls.seq_relationship",
}
_LAYER = re.compile(r"(?:^|\.)(?:encoder|transformer)\.layers\.(\d+)\.(.+)\.(weight|bias)$")


def is_megatron(names: Iterable[str]) -> bool:
    """Return whether a state dict is one of Megatron."""
    return any("query_key_value" in name for name in names)


def from_megatron(
    state_dict: Mapping[str, Tensor], heads: int, *, version: float
) -> dict[str, Tensor]:
    """Rename Megatron's BERT to transformers' MegatronBert, and split the joint projection.

    In Megatron's BERT a LayerNorm precedes each block, and none follows the embeddings. It is
    therefore another architecture than BERT, which transformers calls ``megatron-bert``.

    Args:
        state_dict: weights by flat names.
        heads: number of attention heads.
        version: Megatron's ``checkpoint_version``. From 2.0 the rows of the joint projection are
            ordered [heads, 3, width of a head], in older versions [3, heads, width].

    Raises:
        CheckpointError: there are no word embeddings.
    """
    weights: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        target = _megatron_name(name)
        if target is None:
            continue
        # "#" marks the joint projection of query, key and value.
        if target.endswith("#"):
            base, kind = target[:-1].rsplit(".", 1)
            width = tensor.shape[0] // (3 * heads)
            rest = tensor.shape[1:]
            if version >= 2.0:
                joint = tensor.view(heads, 3, width, *rest).transpose(0, 1)
            else:
                joint = tensor.view(3, heads, width, *rest)
            for part, values in zip(("query", "key", "value"), joint):
                weights[f"{base}.{part}.{kind}"] = values.reshape(heads * width, *rest).contiguous()
        else:
            weights[target] = tensor
    if "bert.embeddings.word_embeddings.weight" not in weights:
        raise CheckpointError("Megatron checkpoint: word embeddings are missing")
    return weights


def _megatron_name(name: str) -> str | None:
    found = _LAYER.search(name)
    if found:
        layer, part, kind = found.groups()
        if part.endswith("query_key_value"):
            return f"bert.encoder.layer.{layer}.attention.self.{kind}#"
        target = _MEGATRON_LAYER.get(part)
        return f"bert.encoder.layer.{layer}.{target}.{kind}" if target else None
    for theirs, ours in _MEGATRON_REST.items():
        match = re.search(rf"(?:^|\.){re.escape(theirs)}\.(weight|bias)$", name)
        if match:
            return f"{ours}.{match[1]}"
    return "cls.predictions.bias" if re.search(r"(^|\.)lm_head\.bias$", name) else None
