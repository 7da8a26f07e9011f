"""Weights and configuration cross to transformers and NVIDIA DLE and come back unchanged."""

from __future__ import annotations

import json
import math
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import save_file

from bertds.config.recipe import ModelConfig
from bertds.errors import CheckpointError
from bertds.model.bert import BertForPreTraining
from bertds.pretrained.hf_config import config_from_transformers, config_to_transformers
from bertds.pretrained.hf_weights import (
    load_transformers_state_dict,
    origin_of,
    to_dle_state_dict,
    to_transformers_state_dict,
)
from bertds.pretrained.weight_files import read_state_dict
from tests.support.padded_rows import flatten_padded, pad_rows


def weights_of(model: BertForPreTraining) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def assert_equal_weights(found: BertForPreTraining, expected: dict[str, torch.Tensor]) -> None:
    for name, parameter in found.named_parameters():
        assert torch.equal(parameter, expected[name]), name


def other_model(config: ModelConfig, vocab_size: int) -> BertForPreTraining:
    torch.manual_seed(99)
    return BertForPreTraining(config, vocab_size)


@pytest.mark.parametrize("next_sentence", [True, False])
def test_a_written_folder_loads_in_transformers_without_a_missing_key(
    tiny, batch, pair_of, vocab_size, tmp_path, next_sentence
) -> None:
    ours, _ = pair_of(replace(tiny, next_sentence=next_sentence))
    values = config_to_transformers(ours.config, vocab_size)
    (tmp_path / "config.json").write_text(json.dumps(values))
    save_file(to_transformers_state_dict(ours), tmp_path / "model.safetensors", {"format": "pt"})
    kind = getattr(transformers, values["architectures"][0])
    loaded, info = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    assert loaded.config.vocab_size == vocab_size
    inputs = {name: value for name, value in vars(batch).items() if "label" not in name}
    with torch.no_grad():
        output = loaded.eval()(**inputs)
        flat = flatten_padded(batch.input_ids, batch.attention_mask, batch.token_type_ids)
        logits, _ = ours.logits(*flat[:5], positions=torch.arange(len(flat.input_ids)))
    expected = output.prediction_logits if next_sentence else output.logits
    real = batch.attention_mask.bool()
    torch.testing.assert_close(logits, expected[real], rtol=1e-5, atol=1e-5)

    # And back: what transformers saved, bit for bit, configuration included.
    loaded.save_pretrained(tmp_path / "back")
    saved = json.loads((tmp_path / "back" / "config.json").read_text())
    assert config_from_transformers(saved) == (ours.config, vocab_size)
    again = other_model(ours.config, vocab_size)
    report = load_transformers_state_dict(again, read_state_dict(tmp_path / "back"))
    assert report == ([], [])
    assert_equal_weights(again, weights_of(ours))


def test_ours_to_dle_and_back_is_bit_equal(pair, vocab_size, tmp_path) -> None:
    ours, _ = pair
    exported = to_dle_state_dict(ours)
    assert origin_of(exported) == "dle"
    assert origin_of(to_transformers_state_dict(ours)) == "transformers"
    assert "bert.encoder.layer.2.intermediate.dense_act.weight" in exported
    assert "bert.encoder.layer.2.output.dense.weight" in exported
    assert "bert.pooler.dense_act.bias" in exported
    assert "cls.predictions.transform.dense_act.weight" in exported
    assert exported["cls.predictions.decoder.weight"].shape[0] == 104  # 101 up to 8
    # The file as DLE writes it.
    path = tmp_path / "ckpt_7038.pt"
    torch.save({"model": exported, "optimizer": {"state": {}}, "epoch": 3}, path)
    again = other_model(ours.config, vocab_size)
    assert load_transformers_state_dict(again, read_state_dict(path)) == ([], [])
    assert_equal_weights(again, weights_of(ours))


def test_names_of_both_forms_of_gelu(tiny) -> None:
    values = config_to_transformers(tiny, 101)
    assert values["hidden_act"] == "gelu"
    assert config_from_transformers(values)[0].hidden_act == "gelu"
    for name in ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"):
        assert config_from_transformers(values | {"hidden_act": name})[0].hidden_act == "gelu_new"


@pytest.mark.parametrize("prefix", ["", "bert."])
def test_an_encoder_alone_leaves_the_heads_as_they_were(pair, vocab_size, prefix) -> None:
    ours, reference = pair
    encoder = {
        prefix + name: tensor
        for name, tensor in reference.bert.state_dict().items()
        if not name.startswith("pooler")
    }
    encoder[f"{prefix}embeddings.position_ids"] = torch.arange(40)[None]
    model = other_model(ours.config, vocab_size)
    before = weights_of(model)
    report = load_transformers_state_dict(model, encoder)
    heads = [name for name in before if name.startswith(("cls.", "bert.pooler."))]
    assert report.missing == heads
    assert report.unexpected == []
    expected = weights_of(ours) | {name: before[name] for name in heads}
    assert_equal_weights(model, expected)


def test_old_layer_norm_names_and_a_wrapper_prefix_are_understood(pair, vocab_size) -> None:
    ours, _ = pair
    old = {
        "module."
        + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace(
            "LayerNorm.bias", "LayerNorm.beta"
        ): tensor
        for name, tensor in to_transformers_state_dict(ours).items()
    }
    again = other_model(ours.config, vocab_size)
    assert load_transformers_state_dict(again, old) == ([], [])
    assert_equal_weights(again, weights_of(ours))


def test_heads_that_the_model_lacks_are_reported(pair, vocab_size) -> None:
    ours, _ = pair
    masked_lm = BertForPreTraining(replace(ours.config, next_sentence=False), vocab_size)
    report = load_transformers_state_dict(masked_lm, to_transformers_state_dict(ours))
    assert report.missing == []
    assert report.unexpected == [
        "bert.pooler.dense.weight",
        "bert.pooler.dense.bias",
        "cls.seq_relationship.weight",
        "cls.seq_relationship.bias",
    ]


@pytest.mark.parametrize(
    ("change", "vocab", "message"),
    [
        ({}, 100, "vocabulary of 101 tokens, but the tokenizer of the data has 100"),
        ({}, 102, "vocabulary of 101 tokens, but the tokenizer of the data has 102"),
        ({"num_hidden_layers": 2}, 101, "3 encoder layers, .*num_hidden_layers in the recipe is 2"),
        ({"num_hidden_layers": 5}, 101, "3 encoder layers, .*num_hidden_layers in the recipe is 5"),
        ({"hidden_size": 64}, 101, r"word_embeddings.*\(101, 32\), .* \(101, 64\)"),
        ({"intermediate_size": 96}, 101, r"shape \(64, 32\), .* \(96, 32\)"),
        ({"max_position_embeddings": 64}, 101, r"position_embeddings.*\(40, 32\), .* \(64, 32\)"),
    ],
)
def test_another_architecture_or_vocabulary_is_refused_and_nothing_changes(
    pair, change, vocab, message
) -> None:
    ours, _ = pair
    model = other_model(replace(ours.config, **change), vocab)
    before = weights_of(model)
    with pytest.raises(CheckpointError, match=message):
        load_transformers_state_dict(model, to_transformers_state_dict(ours))
    assert_equal_weights(model, before)


def test_dle_weights_of_another_vocabulary_are_refused(pair) -> None:
    ours, _ = pair
    model = other_model(ours.config, 96)
    with pytest.raises(CheckpointError, match="vocabulary of 104 tokens"):
        load_transformers_state_dict(model, to_dle_state_dict(ours))


def test_part_of_an_encoder_is_refused(pair, vocab_size) -> None:
    ours, _ = pair
    partial = to_transformers_state_dict(ours)
    del partial["bert.encoder.layer.1.output.dense.weight"]
    with pytest.raises(
        CheckpointError, match=r"do not include 1 .*encoder\.layer\.1\.output\.dense"
    ):
        load_transformers_state_dict(other_model(ours.config, vocab_size), partial)


def test_untied_word_tables_are_refused(pair, vocab_size) -> None:
    ours, _ = pair
    untied = to_transformers_state_dict(ours)
    untied["cls.predictions.decoder.weight"] = torch.zeros(vocab_size, 32)
    with pytest.raises(CheckpointError, match="untied"):
        load_transformers_state_dict(other_model(ours.config, vocab_size), untied)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "roberta"}, "model_type='roberta'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'"),
        ({"hidden_act": "relu"}, "hidden_act='relu'"),
        ({"is_decoder": True}, "is_decoder=True"),
        ({"vocab_size": None}, "vocab_size=None"),
        ({"hidden_size": "wide"}, "hidden_size='wide'"),
        ({"hidden_size": True}, "hidden_size=True is not a number"),
        ({"hidden_size": 32.5}, "hidden_size=32.5 must be a whole number"),
        ({"num_hidden_layers": 0}, "num_hidden_layers=0 must be at least 1"),
        ({"layer_norm_eps": 0}, "layer_norm_eps=0 must be above 0"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps=nan must be"),
    ],
)
def test_a_config_that_is_not_ours_names_the_key(tiny, change, message) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_from_transformers(config_to_transformers(tiny, 101) | change)


def test_dle_config_without_model_type_is_read() -> None:
    """bert_config.json of DLE's BERT-large, as published."""
    values = {
        "attention_probs_dropout_prob": 0.1,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "hidden_size": 1024,
        "initializer_range": 0.02,
        "intermediate_size": 4096,
        "max_position_embeddings": 512,
        "num_attention_heads": 16,
        "num_hidden_layers": 24,
        "type_vocab_size": 2,
        "vocab_size": 30522,
    }
    config, vocab_size = config_from_transformers(values)
    assert vocab_size == 30522
    assert (config.hidden_size, config.num_hidden_layers) == (1024, 24)


def test_sharded_and_pickled_folders_are_read(pair, vocab_size, tmp_path) -> None:
    ours, _ = pair
    weights = to_transformers_state_dict(ours)
    names = sorted(weights)
    parts = {"a.safetensors": names[:10], "b.safetensors": names[10:]}
    for file, members in parts.items():
        save_file({name: weights[name] for name in members}, tmp_path / file)
    index = {"weight_map": {name: file for file, members in parts.items() for name in members}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    torch.save(weights, pickled / "pytorch_model.bin")
    for folder in (tmp_path, pickled):
        found = read_state_dict(folder)
        assert sorted(found) == names
        assert all(torch.equal(found[name], weights[name]) for name in names)


class _Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_files_that_are_not_weights_are_refused_by_name(tmp_path) -> None:
    with pytest.raises(CheckpointError, match=r"neither model\.safetensors nor"):
        read_state_dict(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: no such file"):
        read_state_dict(tmp_path / "gone.safetensors")
    damaged = tmp_path / "model.safetensors"
    damaged.write_bytes(b"\x10\0\0\0\0\0\0\0{")
    with pytest.raises(CheckpointError, match=r"model\.safetensors: cannot be read"):
        read_state_dict(tmp_path)
    touched = tmp_path / "touched"
    with open(tmp_path / "code.pt", "wb") as file:
        pickle.dump({"weight": _Exploit(touched)}, file)
    with pytest.raises(CheckpointError, match=r"code\.pt: cannot be read"):
        read_state_dict(tmp_path / "code.pt")
    assert not touched.exists()
    torch.save({"steps": 3}, tmp_path / "numbers.pt")
    with pytest.raises(CheckpointError, match="contains no state dict"):
        read_state_dict(tmp_path / "numbers.pt")
    index = tmp_path / "sub" / "model.safetensors.index.json"
    index.parent.mkdir()
    index.write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(CheckpointError, match="not the name of a file in the same folder"):
        read_state_dict(index.parent)


def test_real_weights_give_the_hidden_states_of_transformers(shared_data) -> None:
    """all-MiniLM-L6-v2: an encoder alone, without the prefix, with a buffer of position ids."""
    folder = shared_data / "model" / "all-MiniLM-L6-v2"
    config, vocab_size = config_from_transformers(json.loads((folder / "config.json").read_text()))
    assert (config.hidden_size, config.num_hidden_layers, vocab_size) == (384, 6, 30522)
    ours = BertForPreTraining(config, vocab_size).eval()
    report = load_transformers_state_dict(ours, read_state_dict(folder))
    assert report.unexpected == []
    assert all(name.startswith("cls.") for name in report.missing)

    reference = transformers.BertModel.from_pretrained(folder).eval()
    sentences = [
        "The quick brown fox jumps over the lazy dog.",
        "Anarchism is a political philosophy that advocates self-governed societies.",
        "Yes.",
    ]
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    encoded = tokenizer(sentences, sentences[::-1], padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = reference(**encoded)
        flat = flatten_padded(
            encoded["input_ids"], encoded["attention_mask"], encoded["token_type_ids"]
        )
        hidden, pooled = ours.encode(*flat[:5])
    padded = pad_rows(hidden, flat.slots, *encoded["input_ids"].shape)
    real = encoded["attention_mask"].bool()
    size = expected.last_hidden_state.abs().max()
    assert (padded[real] - expected.last_hidden_state[real]).abs().max() < 1e-5 * size
    assert (pooled - expected.pooler_output).abs().max() < 1e-5
    # What is exported is what was read.
    exported = to_transformers_state_dict(ours)
    source = read_state_dict(folder)
    for name, tensor in source.items():
        if not name.endswith("position_ids"):
            assert torch.equal(exported[f"bert.{name}"], tensor), name
