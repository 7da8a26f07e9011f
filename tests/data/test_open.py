from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from bertds.config.batch_plan import BatchPlan
from bertds.config.recipe import DataConfig
from bertds.config.row_settings import RowSettings
from bertds.data.formats.nvidia_hdf5 import write_instance_file
from bertds.data.formats.padded_columns import join_columns
from bertds.data.loader import BatchLoader, open_source
from bertds.data.rng import random_u64
from bertds.data.samples.flat_rows import build_instances
from bertds.errors import ConfigError, DataError

PLAN = BatchPlan(global_batch_size=4, micro_batch_size=2, world_size=1)


def small(path, **more):
    more.setdefault("sequence_length", 32)
    more.setdefault("max_predictions_per_sequence", 5)
    return DataConfig(path=str(path), **more)


def start(config):
    """Open the data and take one batch, as a run does."""
    with BatchLoader(open_source(config, 1), config, PLAN, 0, seed=1) as loader:
        return next(loader)


def test_flipped_bits_stop_a_run_before_its_first_step(make_corpus):
    folder = make_corpus()
    start(small(folder))
    rng = random.Random(2)
    for shard in sorted(folder.glob("train/*.h5")):
        good = shard.read_bytes()
        for _ in range(5):
            damaged = bytearray(good)
            damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
            shard.write_bytes(damaged)
            with pytest.raises(DataError, match=shard.name):
                start(small(folder))
        shard.write_bytes(good)
    start(small(folder))


def test_shards_of_another_size_and_missing_ones_stop_a_run_even_when_only_sizes_are_checked(
    make_corpus,
):
    folder = make_corpus()
    shard = folder / "train" / "shard_00001.h5"
    whole = shard.read_bytes()
    for content in (whole[: len(whole) // 2], whole + b"x"):
        shard.write_bytes(content)
        for verify in ("full", "size"):
            message = r"shard_00001\.h5: .* bytes, but the manifest says"
            with pytest.raises(DataError, match=message):
                open_source(small(folder, verify=verify), 1)  # before any shard is read
    shard.unlink()
    with pytest.raises(DataError, match=r"shard_00001\.h5: missing"):
        start(small(folder, verify="size"))


def test_another_vocabulary_is_refused(make_corpus, vocab, tmp_path):
    folder = make_corpus()
    assert open_source(small(folder, vocab=str(vocab)), 1).tokenizer.vocab_size == 400
    other = tmp_path / "vocab.txt"
    other.write_text(vocab.read_text() + "more\n")
    with pytest.raises(DataError, match="is not the vocabulary that"):
        open_source(small(folder, vocab=str(other)), 1)
    (folder / "tokenizer" / "vocab.txt").write_bytes(other.read_bytes())
    with pytest.raises(DataError, match=r"vocab\.txt: not the vocabulary"):
        open_source(small(folder), 1)


def test_a_shard_of_another_tokenizer_is_refused(make_corpus):
    folder = make_corpus()
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    value["tokenizer"].update(lower_case=False, fingerprint="0" * 64)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match="fingerprint"):
        start(small(folder))


def test_one_document_is_refused_when_pairs_are_asked_for(make_corpus):
    folder = make_corpus(train=(1,), validation=())
    with pytest.raises(DataError, match="single document"):
        open_source(small(folder), 1)
    start(small(folder, pairs="none"))
    start(small(folder, pairs="sop"))
    start(small(make_corpus(train=(1, 1), validation=())))


def test_paths_that_are_not_data_are_explained(make_corpus, tmp_path):
    folder = make_corpus()
    with pytest.raises(ConfigError, match=r"data\.path is not set"):
        open_source(small(""), 1)
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(small(tmp_path / "nothing"), 1)
    with pytest.raises(DataError, match="give its parent folder"):
        open_source(small(folder / "train"), 1)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="incomplete"):
        open_source(small(folder), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"neither manifest\.json .* nor \.hdf5"):
        open_source(small(tmp_path / "empty"), 1)
    (tmp_path / "empty" / ".work").mkdir()
    with pytest.raises(DataError, match="Run preparation again"):
        open_source(small(tmp_path / "empty"), 1)


@pytest.fixture
def sentences(tmp_path):
    """A text file of numbered words, so that a row's words report where they are."""
    path = tmp_path / "corpus.txt"
    rng = random.Random(0)
    documents = [
        [" ".join(f"word{rng.randrange(300)}" for _ in range(rng.randint(2, 9))) for _ in range(n)]
        for n in (4, 1, 7, 12, 3)
    ]
    path.write_text("\n\n".join("\n".join(lines) for lines in documents) + "\n")
    return path, documents


def test_text_is_tokenised_as_transformers_does(sentences, vocab):
    from transformers import BertTokenizer

    path, documents = sentences
    extra = "Word3, WORD4 wörd5\u00a0word6word7 [MASK] 東京"
    path.write_text(path.read_text() + extra + "\n")
    tokenizer = BertTokenizer(str(vocab), do_lower_case=True)
    shard = open_source(small(path, vocab=str(vocab), lower_case=True), 1).shard(0)
    assert shard.documents == 5 and shard.sentences == sum(map(len, documents)) + 1
    lines = [line for document in documents for line in document]
    for number, line in enumerate(lines):
        ids = shard.token_ids[shard.sentence_offsets[number] : shard.sentence_offsets[number + 1]]
        assert ids.tolist() == tokenizer(line, add_special_tokens=False)["input_ids"]
    # A special token's name in a text is text, never the token.
    assert tokenizer.mask_token_id not in shard.token_ids


def test_text_edges_are_handled(tmp_path, vocab):
    path = tmp_path / "t.txt"
    path.write_bytes(b"\xef\xbb\xbf\n\nword1 word2\r\n   \n\n\t\nword3\nword4\n\n\n")
    shard = open_source(small(path, vocab=str(vocab)), 1).shard(0)
    assert shard.document_offsets.tolist() == [0, 1, 3] and shard.tokens == 4
    path.write_text("\n\n")
    with pytest.raises(DataError, match="contains no text"):
        open_source(small(path, vocab=str(vocab)), 1)
    path.write_bytes(b"word1\n\nword2 \xff\n")
    with pytest.raises(DataError, match=r"t\.txt: line 3 is not UTF-8 \(byte 0xff at column 7\)"):
        open_source(small(path, vocab=str(vocab)), 1)
    path.write_text("word1\nword2\n")
    with pytest.raises(DataError, match="single document"):
        open_source(small(path, vocab=str(vocab)), 1)
    with pytest.raises(ConfigError, match=r"data\.vocab is not set"):
        open_source(small(path), 1)


def test_text_gives_the_rows_that_its_tokens_in_shards_give(sentences, vocab, tmp_path):
    from bertds.data.formats.manifest import Manifest, SplitInfo
    from bertds.data.formats.token_shards import write_token_shard

    path, _ = sentences
    text = open_source(small(path, vocab=str(vocab)), 1)
    shard = text.shard(0)
    folder = tmp_path / "prepared"
    for name in ("tokenizer", "train"):
        (folder / name).mkdir(parents=True)
    (folder / "tokenizer" / "vocab.txt").write_bytes(vocab.read_bytes())
    info = write_token_shard(
        folder / "train" / "shard_00000.h5",
        shard.token_ids,
        shard.sentence_offsets,
        shard.document_offsets,
        vocab_size=text.tokenizer.vocab_size,
        fingerprint=text.tokenizer.fingerprint,
    )
    Manifest(
        tokenizer=text.tokenizer,
        splits={"train": SplitInfo(shards=(info,))},
        documents={"read": 5, "written": 5, "dropped": {}},
    ).save(folder)
    one, two = start(small(path, vocab=str(vocab))), start(small(folder))
    assert np.array_equal(one.samples, two.samples)
    for a, b in zip(one.micro_batches, two.micro_batches, strict=True):
        assert a.input_ids.tolist() == b.input_ids.tolist()
        assert a.masked_lm_positions.tolist() == b.masked_lm_positions.tolist()
    assert open_source(small(folder), 1).held_out() is None
    assert text.held_out() is None


def test_instance_folders_have_their_own_splits_and_find_the_tokenizer(
    tmp_path, make_shard, tokenizer, vocab
):
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "tokenizer" / "vocab.txt").write_bytes(vocab.read_bytes())
    name = "hdf5_lower_case_0_seq_len_32_max_pred_5_masked_lm_prob_0.15_random_seed_1_dupe_factor_1"
    folder = tmp_path / name / "wiki"
    folder.mkdir(parents=True)
    settings = RowSettings(sequence_length=32, max_predictions=5)
    for split in ("training", "test"):
        chunks = build_instances([make_shard(20)], 0, settings, 1, tokenizer=tokenizer)
        write_instance_file(folder / f"wiki_{split}_0.hdf5", join_columns(chunks))
    for path in (folder, folder.parent):
        source = open_source(small(path), 1)
        assert source.describe()["shards"] == 1 and source.tokenizer.lower_case is False
        assert source.held_out().describe()["split"] == "validation"
    single = small(folder / "wiki_training_0.hdf5")
    assert open_source(single, 1).held_out() is None
    with pytest.raises(DataError, match=r"rows of 32 tokens, but data\.sequence_length=16"):
        open_source(replace(single, sequence_length=16), 1)
    assert open_source(replace(single, sequence_length=64), 1).describe()["rows"] > 20
    # Padding needs the largest number of masked positions of a row.
    packed = replace(single, pack_tokens=64)
    assert open_source(packed, 1).describe()["max_predictions"] == 5
    fewer = replace(packed, max_predictions_per_sequence=4)
    with pytest.raises(DataError, match=r"up to 5 masked positions, but .*_per_sequence=4"):
        open_source(fewer, 1)
    assert open_source(replace(fewer, pack_tokens=0), 1).describe()["max_predictions"] == 5
    (tmp_path / "tokenizer" / "vocab.txt").unlink()
    with pytest.raises(DataError, match=r"set data\.vocab"):
        open_source(single, 1)


@pytest.mark.parametrize("user_cache", ["writable", "not writable"])
def test_a_read_only_installation_still_compiles(repository, tmp_path, user_cache):
    package = tmp_path / "site" / "bertds"
    shutil.copytree(repository / "bertds", package, ignore=shutil.ignore_patterns("__pycache__"))
    # A file where numba would make its folder: it cannot be written, not even by root.
    (package / "data" / "samples" / "__pycache__").touch()
    cache = tmp_path / "cache"
    if user_cache == "not writable":
        cache.touch()
    script = (
        "from bertds.data.samples import kernels; import numpy as np; print(kernels.__file__); "
        "print(kernels.scan.stats.cache_path); print(kernels.jit_u64(np.uint64(1), np.uint64(0)))"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(package.parent),
        "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(cache),
        "XDG_CACHE_HOME": str(cache),
    }
    environment.pop("NUMBA_CACHE_DIR", None)
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    module, where, draw = done.stdout.splitlines()
    assert module.startswith(str(package)) and int(draw) == random_u64(1, 0)
    assert where.startswith(str(cache)) if user_cache == "writable" else where == "None"


def test_preparation_needs_no_torch(repository):
    script = (
        "import sys; sys.modules['torch'] = None; sys.modules['deepspeed'] = None\n"
        "from bertds.data import order, rng, vocabulary\n"
        "from bertds.data.formats import manifest, nvidia_hdf5, token_shards\n"
        "from bertds.data.samples import flat_rows, kernels, masking, pairing\n"
        "from bertds.data.sources import open"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_rows_of_a_real_book_decode_to_its_text(shared_data, tmp_path):
    from transformers import BertTokenizer

    book = (shared_data / "books" / "11-alices-adventures-in-wonderland.txt").read_bytes()
    text = book.decode("utf-8-sig").replace("\r\n", "\n")
    path = tmp_path / "alice.txt"
    path.write_text(text)
    vocab = shared_data / "vocab" / "bert-base-uncased-vocab.txt"
    config = small(path, vocab=str(vocab), sequence_length=64, max_predictions_per_sequence=10)
    tokenizer = BertTokenizer(str(vocab))
    everything = " ".join(tokenizer.tokenize(text))
    labels = []
    for micro_batch in start(replace(config, prefetch_steps=1)).micro_batches:
        ids = micro_batch.input_ids.clone()
        ids[micro_batch.masked_lm_positions] = micro_batch.masked_lm_ids
        bounds = micro_batch.cu_seqlens.tolist()
        for row, label in enumerate(micro_batch.next_sentence_labels.tolist()):
            tokens = tokenizer.convert_ids_to_tokens(ids[bounds[row] : bounds[row + 1]].tolist())
            assert tokens[0] == "[CLS]" and tokens[-1] == "[SEP]" and tokens.count("[SEP]") == 2
            middle = tokens.index("[SEP]")
            first, second = " ".join(tokens[1:middle]), " ".join(tokens[middle + 1 : -1])
            assert first in everything and second in everything
            labels.append(label)
    assert len(labels) == 4
