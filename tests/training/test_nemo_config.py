from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from bertds.cli import main
from bertds.config.load import load_config
from bertds.errors import ConfigError
from bertds.optim.lr_schedule import LearningRate
from bertds.training.nemo.translate import translate

# The keys and values of NeMo's two published files.
TEXT = """
trainer: {gpus: 1, num_nodes: 1, max_epochs: 2, max_steps: null, accumulate_grad_batches: 1,
  precision: 16, amp_level: O1, distributed_backend: ddp, gradient_clip_val: 0.0,
  row_log_interval: 1, val_check_interval: 1.0, checkpoint_callback: false, logger: false}
model:
  only_mlm_loss: false
  pretrained_model_name: bert-base-uncased
  max_seq_length: 128
  mask_prob: 0.15
  short_seq_prob: 0.1
  language_model:
    pretrained_model_name: ${model.pretrained_model_name}
    bert_checkpoint: null
    bert_config: {attention_probs_dropout_prob: 0.1, hidden_act: gelu, hidden_dropout_prob: 0.1,
      hidden_size: 768, initializer_range: 0.02, intermediate_size: 3072,
      max_position_embeddings: 512, num_attention_heads: 12, num_hidden_layers: 12,
      type_vocab_size: 2, vocab_size: 30522}
    bert_config_file: null
  tokenizer: {tokenizer_name: nemobert, pretrained_model_name: "${model.pretrained_model_name}",
    special_tokens: null, vocab_file: null, data_file: null, tokenizer_model: null,
    sample_size: null, vocab_size: "${model.language_model.bert_config.vocab_size}",
    do_lower_case: null}
  train_ds: {data_file: null, max_seq_length: "${model.max_seq_length}",
    mask_prob: "${model.mask_prob}", short_seq_prob: "${model.short_seq_prob}", batch_size: 16,
    shuffle: true, num_samples: -1, num_workers: 2, use_cache: true, drop_last: false,
    pin_memory: false}
  validation_ds: {data_file: null, max_seq_length: "${model.max_seq_length}",
    mask_prob: "${model.mask_prob}", short_seq_prob: "${model.short_seq_prob}", batch_size: 16,
    shuffle: false, num_samples: -1, num_workers: 2, use_cache: true, drop_last: false,
    pin_memory: false}
  optim: {name: adamw, lr: 3e-5, weight_decay: 0.0, sched: {name: CosineAnnealing,
    warmup_steps: null, warmup_ratio: 0.1, min_lr: 0.0, last_epoch: -1}}
exp_manager: {root_dir: NeMo_experiments, name: PretrainingBERTFromText,
  create_tensorboard_logger: True, create_checkpoint_callback: True}
hydra: {run: {dir: .}, job_logging: {root: {handlers: null}}}
"""
HDF5 = """
trainer: {devices: 8, num_nodes: 2, max_steps: 2285714, max_epochs: null, precision: 16-mixed,
  accelerator: gpu, strategy: ddp, num_sanity_val_steps: 0, use_distributed_sampler: false,
  accumulate_grad_batches: 1, gradient_clip_val: 1.0, log_every_n_steps: 20,
  val_check_interval: 1000, enable_checkpointing: false, logger: false}
model:
  nemo_path: null
  only_mlm_loss: true
  language_model:
    pretrained_model_name: null
    lm_checkpoint: null
    config: {hidden_size: 64, num_hidden_layers: 2, num_attention_heads: 2,
      intermediate_size: 128, max_position_embeddings: 512, vocab_size: 65}
    config_file: null
  tokenizer: {vocab_file: VOCAB, do_lower_case: true}
  train_ds: {data_file: DATA, max_predictions_per_seq: 80, batch_size: 8, shuffle: true,
    num_samples: -1, num_workers: 2, drop_last: false, pin_memory: false}
  optim: {name: adamw, lr: 0.4375e-4, weight_decay: 0.01, betas: [0.9, 0.999], sched:
    {name: SquareRootAnnealing, warmup_ratio: 0.01, min_lr: 0.0, last_epoch: -1}}
exp_manager: {exp_dir: null, name: X}
"""


# What the newest published files have in addition to these (NeMo 1.x, its last state).
NEWEST = """
name: &name PretrainingBERTFromText
trainer: {devices: 1, num_nodes: 1, max_epochs: 2, max_steps: -1, accumulate_grad_batches: 1,
  precision: 16, accelerator: gpu, gradient_clip_val: 0.0, log_every_n_steps: 1,
  val_check_interval: 1.0, enable_checkpointing: False, logger: false}
model:
  nemo_path: null
  only_mlm_loss: false
  num_tok_classification_layers: 1
  num_seq_classification_layers: 2
  max_seq_length: 128
  mask_prob: 0.15
  short_seq_prob: 0.1
  language_model:
    pretrained_model_name: bert-base-uncased
    lm_checkpoint: null
    config: {attention_probs_dropout_prob: 0.1, hidden_act: gelu, hidden_dropout_prob: 0.1,
      hidden_size: 768, initializer_range: 0.02, intermediate_size: 3072,
      max_position_embeddings: 512, num_attention_heads: 12, num_hidden_layers: 12,
      type_vocab_size: 2, vocab_size: 30522}
    config_file: null
  tokenizer:
    tokenizer_name: ${model.language_model.pretrained_model_name}
    vocab_file: null
    tokenizer_model: null
    special_tokens: {unk_token: '[UNK]', sep_token: '[SEP]', pad_token: '[PAD]',
      bos_token: '[CLS]', mask_token: '[MASK]', eos_token: '[SEP]', cls_token: '[CLS]'}
  train_ds: {data_file: '???', max_seq_length: "${model.max_seq_length}",
    mask_prob: "${model.mask_prob}", short_seq_prob: "${model.short_seq_prob}", batch_size: 16,
    shuffle: true, num_samples: -1, num_workers: 2, drop_last: false, pin_memory: false}
  validation_ds: {data_file: '???', max_seq_length: "${model.max_seq_length}",
    mask_prob: "${model.mask_prob}", short_seq_prob: "${model.short_seq_prob}", batch_size: 16,
    shuffle: false, num_samples: -1, num_workers: 2, drop_last: false, pin_memory: false}
  optim: {name: adamw, lr: 3e-5, weight_decay: 0.0, sched: {name: CosineAnnealing,
    warmup_steps: null, warmup_ratio: 0.1, min_lr: 0.0, last_epoch: -1}}
exp_manager: {exp_dir: null, name: *name, create_tensorboard_logger: True,
  create_checkpoint_callback: True}
hydra: {run: {dir: .}, job_logging: {root: {handlers: null}}}
"""


@pytest.fixture
def text(tmp_path: Path, tiny_vocab: Path) -> dict:
    values = yaml.safe_load(TEXT)
    values["model"]["train_ds"]["data_file"] = str(tmp_path / "corpus.txt")
    values["model"]["tokenizer"]["vocab_file"] = str(tiny_vocab)
    return values


def rows(_: dict) -> int:
    return 1603


def test_the_text_file(text: dict) -> None:
    result = translate(text, "F.yaml", rows)
    config = load_config(result.recipe)
    assert config.model.hidden_size == 768 and config.model.next_sentence
    assert (config.data.sequence_length, config.data.masked_lm_prob) == (128, 0.15)
    assert config.schedule.total_steps == 2 * (1603 // 16)  # max_epochs
    assert config.validation.every_steps == 1603 // 16  # val_check_interval 1.0
    assert (config.run.dir, config.log.every_steps) == (
        "NeMo_experiments/PretrainingBERTFromText",
        1,
    )
    assert config.tracking.tensorboard and config.init.from_ == ""
    assert result.deepspeed["train_batch_size"] == 16
    assert result.deepspeed["optimizer"] == {
        "type": "AdamW",
        "params": {"lr": 3e-5, "weight_decay": 0.0},
    }
    assert any("trainer.amp_level is not used" in note for note in result.notes)


def test_the_newest_text_file_as_published(tmp_path: Path, tiny_vocab: Path) -> None:
    values = yaml.safe_load(NEWEST)
    with pytest.raises(ConfigError, match=r"train_ds\.data_file is not set"):
        translate(values, "F.yaml", rows)  # its ??? is for the user to fill
    given = {"model.train_ds.data_file": "corpus.txt", "model.tokenizer.vocab_file": tiny_vocab}
    result = translate(values, "F.yaml", rows, given)
    config = load_config(result.recipe)
    assert config.schedule.total_steps == 2 * (1603 // 16)
    assert config.data.vocab == str(tiny_vocab) and config.validation.path == ""
    assert any("the two-layer head of NeMo" in note for note in result.notes)
    for key, value, message in (
        (
            "model.num_tok_classification_layers",
            3,
            "num_tok_classification_layers=3 is not supported",
        ),
        (
            "model.num_seq_classification_layers",
            1,
            "num_seq_classification_layers=1 is not supported",
        ),
        ("model.tokenizer.special_tokens.unk_token", "<unk>", "unk_token='<unk>' is not supported"),
    ):
        with pytest.raises(ConfigError, match=message):
            translate(values, "F.yaml", rows, {**given, key: value})


def test_cosine_annealing_by_hand(text: dict) -> None:
    config = load_config(translate(text, "F", rows, {"trainer.max_steps": 110}).recipe)
    rate = LearningRate(2.0, config.schedule)
    assert config.schedule.warmup_ratio == 0.1  # 11 steps
    assert rate(10) == pytest.approx(2.0) and rate(11) == pytest.approx(2.0)
    assert rate(11 + 33) == pytest.approx(1.5)  # 33% of the way: 1 + cos(pi / 3)
    assert rate(109) == pytest.approx(0.0, abs=1e-3)


def test_the_hdf5_file(tmp_path: Path, tiny_vocab: Path) -> None:
    import h5py
    import numpy as np

    with h5py.File(tmp_path / "x_training_0.hdf5", "w") as file:
        file["input_ids"] = np.zeros((3, 512), np.int32)
    source = HDF5.replace("VOCAB", str(tiny_vocab)).replace("DATA", str(tmp_path))
    result = translate(yaml.safe_load(source), "F", rows)
    config = load_config(result.recipe)
    assert (config.data.sequence_length, config.data.max_predictions_per_sequence) == (512, 80)
    assert config.data.pairs == "none" and not config.model.next_sentence
    assert (config.schedule.total_steps, config.validation.every_steps) == (2285714, 1000)
    assert (config.schedule.decay, config.schedule.power) == ("polynomial", 0.5)
    assert result.deepspeed["train_batch_size"] == 8 * 8 * 2
    assert result.deepspeed["gradient_clipping"] == 1.0
    assert LearningRate(1.0, config.schedule)(2285714 // 2) == pytest.approx(0.5**0.5)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.optim.sched.name", "NoamAnnealing", "sched.name='NoamAnnealing' is not supported"),
        ("model.optim.name", "novograd", "allowed: adam, adamw, lamb"),
        ("model.tokenizer.tokenizer_name", "sentencepiece", "allowed: WordPiece"),
        ("model.train_ds.num_samples", 500, "prepare a smaller corpus"),
        ("model.train_ds.shuffle", False, "model.train_ds.shuffle=False is not supported"),
        ("model.train_ds.max_seq_len", 5, r"not supported \(did you mean model.train_ds.max"),
        ("model.validation_ds.max_seq_length", 64, "allowed: 128, as in model.train_ds"),
        ("trainer.precision", 64, "allowed: 16, bf16, 32"),
        ("trainer.limit_train_batches", 0.5, "trainer.limit_train_batches: unknown"),
        ("model.mask_prob", "${model.max}", "there is no such key"),
        ("model.train_ds.data_file", None, "data_file is not set"),
        ("model.optim.lr", "fast", "model.optim.lr='fast'"),
    ],
)
def test_refused_by_name(text: dict, key: str, value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        translate(text, "F.yaml", rows, {key: value})


def test_a_named_model_without_a_configuration_is_the_start(
    text: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertConfig

    folder = tmp_path / "bert-base-uncased"
    BertConfig(hidden_size=24, num_attention_heads=2, vocab_size=65).save_pretrained(folder)
    monkeypatch.setenv("BERTDS_MODELS", str(tmp_path))
    del text["model"]["language_model"]["bert_config"]
    text["model"]["tokenizer"]["vocab_size"] = 65
    result = translate(text, "F", rows)
    assert result.recipe["init"]["from"] == str(folder)
    assert result.recipe["model"]["hidden_size"] == 24


SMALL = [
    "model.language_model.bert_config.hidden_size=32",
    "trainer.max_steps=3",
    "model.language_model.bert_config.num_hidden_layers=1",
    "model.max_seq_length=32",
    "model.language_model.bert_config.num_attention_heads=2",
    "trainer.precision=32",
    "model.language_model.bert_config.intermediate_size=64",
]


def test_written_files(
    tmp_path: Path, tiny_text: Path, tiny_vocab: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "F.yaml").write_text(TEXT)
    assert (
        main(
            [
                "train",
                "--nemo-config",
                str(tmp_path / "F.yaml"),
                "--write",
                str(tmp_path / "o"),
                f"model.train_ds.data_file={tiny_text}",
                *SMALL,
                f"model.tokenizer.vocab_file={tiny_vocab}",
            ]
        )
        == 0
    )
    assert load_config(tmp_path / "o" / "recipe.yaml").model.hidden_size == 32
    from bertds.engine.ds_config import load_deepspeed_json

    assert load_deepspeed_json(tmp_path / "o" / "deepspeed.json").train_batch_size == 16


@pytest.mark.slow
def test_it_trains(tmp_path: Path, tiny_text: Path, tiny_vocab: Path) -> None:
    import os
    import subprocess
    import sys

    (tmp_path / "F.yaml").write_text(TEXT)
    command = [
        sys.executable,
        "-m",
        "bertds.cli",
        "train",
        "--nemo-config",
        str(tmp_path / "F.yaml"),
        f"model.train_ds.data_file={tiny_text}",
        *SMALL,
        f"model.tokenizer.vocab_file={tiny_vocab}",
        f"exp_manager.root_dir={tmp_path / 'runs'}",
        "exp_manager.create_tensorboard_logger=false",
    ]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    run = tmp_path / "runs" / "PretrainingBERTFromText"
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert (run / "DONE").is_file() and lines[-1]["step"] == 3
