"""NeMo's archives and Megatron's checkpoints."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
import yaml

from bertds.cli import main
from tests.support.bert_folder import SIZES, VOCABULARY, assert_equal, weights


def test_a_nemo_archive_is_read(folder: Path, tmp_path: Path) -> None:
    state = {}
    for name, tensor in weights(folder).items():
        new = name.replace("bert.", "bert_model.", 1) if name.startswith("bert.") else name
        new = new.replace("cls.predictions.transform.dense", "mlm_classifier.dense")
        new = new.replace("cls.predictions.transform.LayerNorm", "mlm_classifier.norm")
        if name.startswith("cls.seq_relationship"):
            new = name.replace("cls.seq_relationship", "nsp_classifier.mlp.layer2")
        state["mlm_classifier.mlp.layer0.bias" if name == "cls.predictions.bias" else new] = tensor
    state["mlm_classifier.mlp.layer0.weight"] = state[
        "bert_model.embeddings.word_embeddings.weight"
    ].clone()
    buffer = io.BytesIO()
    torch.save(state, buffer)
    config = yaml.safe_dump({"language_model": {"config": SIZES}}).encode()
    with tarfile.open(tmp_path / "bert.nemo", "w:gz") as archive:
        for name, content in (
            ("./model_weights.ckpt", buffer.getvalue()),
            ("./model_config.yaml", config),
            ("../../abc_vocab.txt", "\n".join(VOCABULARY).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert main(["convert", str(tmp_path / "bert.nemo"), str(tmp_path / "out"), "--to", "hf"]) == 0
    expected = {
        n: t for n, t in weights(folder).items() if not n.startswith(("cls.seq", "bert.pooler"))
    }
    found = weights(tmp_path / "out")
    assert_equal(expected, {name: found[name] for name in expected})
    assert (tmp_path / "out" / "vocab.txt").is_file()


@pytest.mark.parametrize("version", [1.0, 3.0])
def test_megatron_becomes_transformers_megatron_bert(tmp_path: Path, version: float) -> None:
    from transformers import MegatronBertConfig, MegatronBertForPreTraining

    torch.manual_seed(2)
    config = MegatronBertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-5)
    model = MegatronBertForPreTraining(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    own = model.state_dict()
    state = {}
    root = "model.language_model."
    for name in ("word", "position"):
        state[f"{root}embedding.{name}_embeddings.weight"] = own[
            f"bert.embeddings.{name}_embeddings.weight"
        ]
    state[f"{root}embedding.tokentype_embeddings.weight"] = own[
        "bert.embeddings.token_type_embeddings.weight"
    ]
    padding = torch.zeros(97, 16)
    key = f"{root}embedding.word_embeddings.weight"
    state[key] = torch.cat([state[key], padding])
    for kind in ("weight", "bias"):
        for layer in range(2):
            ours, theirs = f"bert.encoder.layer.{layer}.", f"{root}encoder.layers.{layer}."
            parts = [own[f"{ours}attention.self.{p}.{kind}"] for p in ("query", "key", "value")]
            if version >= 2:  # [heads, 3, width]
                split = [part.view(2, 1, 8, *part.shape[1:]) for part in parts]
                joint = torch.cat(split, dim=1).reshape(48, *parts[0].shape[1:])
            else:
                joint = torch.cat(parts)
            state[f"{theirs}self_attention.query_key_value.{kind}"] = joint
            for a, b in (
                ("attention.ln", "input_layernorm"),
                ("ln", "post_attention_layernorm"),
                ("attention.output.dense", "self_attention.dense"),
                ("intermediate.dense", "mlp.dense_h_to_4h"),
                ("output.dense", "mlp.dense_4h_to_h"),
            ):
                state[f"{theirs}{b}.{kind}"] = own[f"{ours}{a}.{kind}"]
        state[f"{root}encoder.final_layernorm.{kind}"] = own[f"bert.encoder.ln.{kind}"]
        state[f"{root}pooler.dense.{kind}"] = own[f"bert.pooler.dense.{kind}"]
        state[f"model.lm_head.dense.{kind}"] = own[f"cls.predictions.transform.dense.{kind}"]
        state[f"model.lm_head.layernorm.{kind}"] = own[
            f"cls.predictions.transform.LayerNorm.{kind}"
        ]
        state[f"model.binary_head.{kind}"] = own[f"cls.seq_relationship.{kind}"]
    state["model.lm_head.bias"] = torch.cat([own["cls.predictions.bias"], padding[:, 0]])
    nested = {"state_dict": state, "checkpoint_version": version}
    torch.save(nested, tmp_path / "model.ckpt")
    (tmp_path / "bert_config.json").write_text(json.dumps({"num_attention_heads": 2}))
    # The size of the vocabulary is its number of lines: U+2028 is a token, not the end of a line.
    tokens = [*VOCABULARY[:-2], "\u2028", "x\u0085y"]
    (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    assert main(["convert", str(tmp_path / "model.ckpt"), str(tmp_path / "out"), "--to", "hf"]) == 0
    loaded = MegatronBertForPreTraining.from_pretrained(tmp_path / "out").eval()
    assert loaded.config.vocab_size == len(VOCABULARY)
    ids = torch.tensor([[2, 7, 4, 9, 3]])
    for left, right in zip(model(input_ids=ids).to_tuple(), loaded(input_ids=ids).to_tuple()):
        assert torch.allclose(left, right, atol=1e-6)
