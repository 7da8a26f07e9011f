"""The tables of docs/migrating.md against the flags of the other systems and our own keys."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bertds.cli import COMMANDS
from bertds.config.keys import all_keys, dotted
from bertds.config.load import load_config, split_assignments
from bertds.engine.ds_config_keys import TOP
from tests.training.test_nemo_config import HDF5, NEWEST, TEXT

# The names that their argument parsers and files take.
DLE = """
    input_dir config_file output_dir vocab_file init_checkpoint max_seq_length
    max_predictions_per_seq train_batch_size learning_rate num_train_epochs max_steps
    warmup_proportion local_rank seed gradient_accumulation_steps fp16 amp loss_scale log_freq
    checkpoint_activations resume_from_checkpoint resume_step num_steps_per_checkpoint
    skip_checkpoint phase2 resume_phase2 allreduce_post_accumulation
    allreduce_post_accumulation_fp16 phase1_end_step init_loss_scale do_train json-summary use_env
    disable_progress_bar steps_this_run profile profile-start num_workers no_dense_sequence_output
    disable_jit_fusions cuda_graphs
""".split()  # noqa: SIM905
BING = """
    config-file cf output_dir max_seq_length max_predictions_per_seq max_pred seed do_lower_case
    local_rank use_pretrain refresh_bucket_size finetune lr_schedule lr_offset
    load_training_checkpoint load_cp load_checkpoint_id load_cp_id job_name rewarmup max_steps
    max_steps_per_epoch print_steps data_path_prefix validation_data_path_prefix
    deepspeed_transformer_kernel stochastic_mode ckpt_to_save attention_dropout_checkpoint
    normalize_invertible gelu_checkpoint deepspeed_sparse_attention use_nvidia_dataset
    progressive_layer_drop deepspeed deepspeed_config
""".split()  # noqa: SIM905


HEADINGS = ("NVIDIA", "DeepSpeed's", "NeMo", "Hugging Face", "Accelerate", "MosaicBERT")
# The arguments of its ModelArguments and DataTrainingArguments.
RUN_MLM = """
    model_name_or_path model_type config_overrides config_name tokenizer_name cache_dir
    use_fast_tokenizer model_revision token trust_remote_code dtype low_cpu_mem_usage dataset_name
    dataset_config_name train_file validation_file overwrite_cache validation_split_percentage
    max_seq_length preprocessing_num_workers mlm_probability line_by_line pad_to_max_length
    max_train_samples max_eval_samples streaming
""".split()  # noqa: SIM905


def table(repository: Path, heading: str) -> list[tuple[str, str]]:
    """The rows of all tables under a heading: (their side, ours)."""
    text = (repository / "docs/migrating.md").read_text(encoding="utf-8")
    part = text.split(f"## {heading}", 1)[1].split("\n## ", 1)[0]
    rows = [line.strip("|").split(" | ") for line in part.splitlines() if line.startswith("| `")]
    assert all(len(row) == 2 for row in rows)
    return [(theirs.strip(), ours.strip()) for theirs, ours in rows]


@pytest.mark.parametrize(("heading", "flags"), [("NVIDIA", DLE), ("DeepSpeed's", BING)])
def test_every_flag_of_bing_bert_has_a_row(
    repository: Path, heading: str, flags: list[str]
) -> None:
    named = re.findall(r"`--([\w-]+)", " ".join(left for left, _ in table(repository, heading)))
    assert set(named) == set(flags)
    assert len(named) == len(flags) + (2 if heading == "DeepSpeed's" else 0)  # EE, LE, EP


def test_every_flag_of_run_mlm_has_a_row(repository: Path) -> None:
    """The Trainer's own must be arguments that transformers knows."""
    from dataclasses import fields

    from transformers import TrainingArguments

    rows = table(repository, "Hugging Face")
    named = re.findall(r"`--(\w+)`", " ".join(left for left, _ in rows))
    assert set(RUN_MLM) <= set(named) and len(named) == len(set(named))
    older = {"torch_dtype", "use_auth_token", "overwrite_output_dir", "warmup_ratio"}
    trainers = set(named) - set(RUN_MLM) - older
    assert trainers <= {item.name for item in fields(TrainingArguments)}


def test_every_key_of_nemos_files_has_a_row(repository: Path) -> None:
    named = re.findall(r"`([\w.]+)`", " ".join(left for left, _ in table(repository, "NeMo")))
    for file in (TEXT, HDF5, NEWEST):
        for key in dotted(yaml.safe_load(file), keep_empty=True):
            # A validation key is what the training key of its name is.
            known = (key, key.replace("train_ds.", ""), key.replace("validation_ds", "train_ds"))
            if key in ("name", "model.pretrained_model_name", "model.tokenizer"):
                continue  # references only
            if key.startswith("model.tokenizer."):
                known = (*known, "model.tokenizer.vocab_file")
            found = any(k == n or k.startswith(f"{n}.") for k in known for n in named)
            short = key.replace("validation_ds", "train_ds").replace("train_ds.", "")
            assert found or short in named, key


def test_every_key_of_ours_exists(repository: Path) -> None:
    keys, sections = set(all_keys()), {key.split(".")[0] for key in all_keys()}
    rows = [row for h in HEADINGS for row in table(repository, h)]
    assert len(rows) > 110
    for theirs, ours in rows:
        assert ours, theirs
        if ours.startswith("-"):
            assert len(ours) > 10, f"{theirs}: why is there no counterpart?"
        for text in re.findall(r"`([^`]+)`", ours):
            if re.match(r"[a-z_]+\.[a-z_]+=", text):
                load_config(
                    None,
                    {
                        k: v
                        for k, v in split_assignments(text.split()).items()
                        if not str(v).isupper()
                    },
                )
            elif re.fullmatch(r"[a-z]+\.[a-z_]+", text) and text.split(".")[0] in sections:
                assert text in keys, f"{theirs}: {text}"
            elif text.startswith("bertds "):
                assert text.split()[1] in COMMANDS, text
            elif "JSON" in ours and re.fullmatch(r"[a-z_0-9.]+", text) and "/" not in text:
                json_key(text)


def json_key(key: str) -> None:
    """A key of the DeepSpeed JSON that our check knows."""
    if key == "metrics.jsonl":
        return
    place: Any = TOP
    for part in key.split("."):
        if place == "any":  # optimizer.params: the registry's
            assert part in ("lr", "betas", "eps", "weight_decay"), key
            return
        assert isinstance(place, dict) and part in place, f"{key} is no key of the DeepSpeed JSON"
        place = place[part]


def test_the_learning_rates_of_bing_bert_by_its_flags(repository: Path) -> None:
    """LE, EE and EP of its optimization.py, written out, with an offset."""
    from bertds.optim.lr_schedule import LearningRate

    peak, offset, total, warmup = 11e-3, 10e-4, 1000, 0.1
    rows = dict(table(repository, "DeepSpeed's"))
    shapes = {
        "EE": (lambda t: (t / 100) ** 2.0, lambda t: 0.9 ** ((t - 100) / 250)),
        "LE": (lambda t: t / 100, lambda t: 0.9 ** ((t - 100) / 250)),
        "EP": (lambda t: (t / 100) ** 1.5, lambda t: (1 - t / total) ** 2.0),
    }
    share = offset / (peak + offset)
    for name, (rise, fall) in shapes.items():
        ours = re.findall(r"`([^`]+)`", rows[f"`--lr_schedule {name}`"])[-1].split()
        if name == "LE":
            ours = [
                "schedule.warmup_power=1.0",
                *re.findall(r"`([^`]+)`", rows["`--lr_schedule EE`"])[0].split()[1:],
            ]
        values = {
            **split_assignments(ours),
            "schedule.floor": share,
            "schedule.warmup_from": share,
            "schedule.warmup_ratio": warmup,
            "schedule.total_steps": total,
        }
        rate = LearningRate(peak + offset, load_config(None, values).schedule)
        for step in (10, 50, 99, 250, 600):
            # Our first update is step 1 of the warm-up, theirs step 0.
            t = step + 1 if step < 100 else step
            shape = rise(t) if step < 100 else fall(t)
            assert rate(step) == pytest.approx(peak * shape + offset, rel=5e-3), (name, step)
