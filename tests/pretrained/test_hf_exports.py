"""What only transformers sees: every architecture and tokenizer that an export can have."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bertds.cli import main
from bertds.config.recipe import ModelConfig
from bertds.data.vocabulary import TokenizerInfo, load_tokenizer_info
from bertds.model.build import PreTrainingModel, build_model
from bertds.pretrained.hf_weights import to_transformers_state_dict
from bertds.pretrained.load import load_pretrained
from bertds.pretrained.save import save_pretrained
from tests.data.test_tokenizer_folder import TOKENS, roberta
from tests.support.padded_rows import flatten_padded

SIZES: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 32,
}
ARCHITECTURES = {
    "bert": ModelConfig(**SIZES),
    "masked_lm": ModelConfig(**SIZES, next_sentence=False, hidden_act="gelu_new"),
    "modern": ModelConfig(**SIZES, style="modern", next_sentence=False, local_attention=4),
}
HEADS = ("", "ForMaskedLM", "ForSequenceClassification", "ForTokenClassification")


def tokenizer_of(kind: str, folder: Path) -> TokenizerInfo:
    if kind == "bpe":
        return load_tokenizer_info(roberta(folder))
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(TOKENS) + "\n", encoding="utf-8")
    # The file alone, as plain text is trained with.
    return load_tokenizer_info(folder / "vocab.txt", lower_case=kind == "uncased")


def random_model(config: ModelConfig, vocab_size: int) -> PreTrainingModel:
    torch.manual_seed(0)
    model = build_model(config, vocab_size).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@pytest.mark.parametrize("kind", ["uncased", "cased", "bpe"])
@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_an_export_is_used_with_transformers_alone_and_comes_back(
    tmp_path: Path, name: str, kind: str
) -> None:
    import transformers

    config, info = ARCHITECTURES[name], tokenizer_of(kind, tmp_path / "tok")
    model = random_model(config, info.vocab_size)
    out = save_pretrained(model, tmp_path / "out", info)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    texts = ["Café École 東京.", f"naive {info.special_tokens['mask']}"]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    heads = [*HEADS, *(["ForPreTraining"] if config.style == "bert" else [])]
    for head in heads:
        loaded, report = getattr(transformers, f"AutoModel{head}").from_pretrained(
            out, output_loading_info=True
        )
        assert not report["mismatched_keys"]
        with torch.no_grad():
            output = loaded.eval()(**batch)
        if head == "ForMaskedLM":
            assert not report["missing_keys"]
            flat = flatten_padded(
                batch["input_ids"],
                batch["attention_mask"],
                batch.get("token_type_ids", torch.zeros_like(batch["input_ids"])),
            )
            with torch.no_grad():
                ours = model.logits(*flat[:5], positions=torch.arange(len(flat.input_ids)))
            expected = output.logits[batch["attention_mask"].bool()]
            torch.testing.assert_close(
                ours[0] if isinstance(ours, tuple) else ours, expected, rtol=1e-5, atol=1e-5
            )
            loaded.save_pretrained(tmp_path / "saved", max_shard_size="8KB")
    (best,) = transformers.pipeline("fill-mask", model=str(out), top_k=1)(texts[1])
    assert 0 <= best["token"] < info.vocab_size

    # Saved by transformers and converted back: the same weights, settings and tokenizer.
    tokenizer.save_pretrained(tmp_path / "saved")
    back = tmp_path / "back"
    assert main(["convert", str(tmp_path / "saved"), str(back), "--to", "hf"]) == 0
    again = load_pretrained(back)
    before = to_transformers_state_dict(model)
    # A BertForMaskedLM has no pooler and no next-sentence head.
    for key, value in to_transformers_state_dict(again.model).items():
        assert torch.equal(value, before[key]), key
    assert again.config.style == config.style
    found = load_tokenizer_info(back)
    assert (found.rules, found.special_ids) == (info.rules, info.special_ids)
    assert found.vocabulary() == info.vocabulary()
    loaded = transformers.AutoTokenizer.from_pretrained(back)
    assert loaded(texts, texts)["input_ids"] == tokenizer(texts, texts)["input_ids"]


@pytest.mark.parametrize("name", ["bert", "modern"])
def test_an_extended_vocabulary_is_used_with_transformers(tmp_path: Path, name: str) -> None:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

    info = tokenizer_of("cased", tmp_path / "tok")
    model = random_model(ARCHITECTURES[name], info.vocab_size)
    save_pretrained(model, tmp_path / "out", info)
    words = tmp_path / "words.txt"
    words.write_text("Kafé\n##é\n大阪\n", encoding="utf-8")
    arguments = ["extend", str(tmp_path / "out"), str(tmp_path / "more"), "--words", str(words)]
    assert main(arguments) == 0
    loaded = AutoTokenizer.from_pretrained(tmp_path / "more")
    found = AutoModelForMaskedLM.from_pretrained(tmp_path / "more")
    assert len(loaded) == found.config.vocab_size == len(TOKENS) + 3
    assert loaded.tokenize("Kafé cafeé kafé") == ["Kafé", "cafe", "##é", "[UNK]"]
    # A folder as transformers 5 saves it, without vocab.txt, is a vocabulary for another model.
    loaded.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.txt").exists()
    arguments = ["extend", str(tmp_path / "out"), str(tmp_path / "same"), "--vocab"]
    assert main([*arguments, str(tmp_path / "saved")]) == 0
    assert load_tokenizer_info(tmp_path / "same").vocabulary() == sorted(
        loaded.get_vocab(), key=loaded.get_vocab().get
    )


def test_the_period_of_global_layers_survives_an_export_of_few_layers(tmp_path: Path) -> None:
    """2 layers are the same with every 3rd and every 2nd global; ``init.from`` compares it."""
    config = ARCHITECTURES["modern"]
    save_pretrained(build_model(config, 10), tmp_path / "out")
    assert load_pretrained(tmp_path / "out").config == config
    values = json.loads((tmp_path / "out" / "config.json").read_text())
    values["global_attn_every_n_layers"] = 1  # layer_types decides
    (tmp_path / "out" / "config.json").write_text(json.dumps(values))
    assert load_pretrained(tmp_path / "out").config.global_attn_every_n_layers == 2


@pytest.mark.parametrize("name", ["tokenizer.json", "my_tokenizer.json", "FOLDER"])
def test_convert_takes_a_tokenizer_json_as_vocabulary(
    folder: Path, tmp_path: Path, name: str
) -> None:
    """The folder next to it has another vocab.txt, which must not be mixed with it."""
    from bertds.data.tokenizer_folder import bert_tokenizer_json
    from bertds.data.wordpiece_rules import WordPieceRules
    from tests.support.bert_folder import VOCABULARY

    assert main(["convert", str(folder), str(tmp_path / "dle"), "--to", "dle"]) == 0
    (given := tmp_path / "given").mkdir()
    content = bert_tokenizer_json(VOCABULARY, WordPieceRules.of(lower_case=False))
    file = given / (name if name.endswith("json") else "tokenizer.json")
    file.write_text(content)
    if name != "FOLDER":
        (given / "vocab.txt").write_text("\n".join([*VOCABULARY[:5], *"abc"]) + "\n")
    source = str(next((tmp_path / "dle").glob("*.pt")))
    vocab = ["--vocab", str(given if name == "FOLDER" else file)]
    assert main(["convert", source, str(tmp_path / "out"), "--to", "hf", *vocab]) == 0
    info = load_tokenizer_info(tmp_path / "out")
    assert info.vocabulary() == VOCABULARY and not info.lower_case
