from __future__ import annotations

import json
import random
import shutil

import h5py
import numpy as np
import pytest

from bertds.data.formats.manifest import Manifest
from bertds.data.formats.token_shards import TokenShard, token_dtype, write_token_shard
from bertds.data.vocabulary import load_tokenizer_info, tokenizer_fingerprint
from bertds.errors import DataError

ARRAYS = (np.arange(100, 200), [0, 30, 31, 100], [0, 1, 3])


def write(path, arrays=ARRAYS, vocab_size=1000, fingerprint="f"):
    return write_token_shard(path, *arrays, vocab_size=vocab_size, fingerprint=fingerprint)


@pytest.mark.parametrize(("words", "size"), [(100, 2), (65_535, 2), (65_536, 4), (10**6, 4)])
def test_the_dtype_holds_every_id(words, size):
    assert token_dtype(words).itemsize == size
    assert np.array([words - 1]).astype(token_dtype(words)) == words - 1


def test_a_shard_is_read_back_as_written(tmp_path):
    info = write(tmp_path / "shard_00000.h5")
    shard = TokenShard.open(tmp_path / "shard_00000.h5", info, fingerprint="f")
    assert (info.documents, info.sentences, info.tokens) == (2, 3, 100)
    assert (shard.documents, shard.sentences, shard.tokens) == (2, 3, 100)
    assert info.file == f"{tmp_path.name}/shard_00000.h5"
    for array, expected in zip(
        (shard.token_ids, shard.sentence_offsets, shard.document_offsets), ARRAYS
    ):
        assert array.tolist() == list(expected)
        assert not array.flags.writeable
    assert shard.token_ids.dtype == np.uint16


def test_no_time_is_stored(tmp_path):
    """Equal contents give equal bytes in another second, too."""
    write(tmp_path / "shard_00000.h5")
    with h5py.File(tmp_path / "shard_00000.h5") as file:
        for name in file:
            assert not file[name].id.get_create_plist().get_obj_track_times(), name


def test_any_hdf5_reader_can_look_inside(tmp_path):
    write(tmp_path / "s.h5")
    with h5py.File(tmp_path / "s.h5") as file:
        assert file["token_ids"][:].tolist() == list(range(100, 200))
        assert file["token_ids"].chunks is None and file["token_ids"].compression is None
        assert file.attrs["fingerprint"] == "f" and file.attrs["version"] == 1


def test_equal_contents_give_equal_bytes(tmp_path):
    first, second = write(tmp_path / "a.h5"), write(tmp_path / "b.h5")
    assert first.sha256 == second.sha256
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_large_vocabularies_get_32_bit_ids(tmp_path):
    big = (np.array([70_000, 5]), [0, 1, 2], [0, 1, 2])
    write(tmp_path / "s.h5", big, vocab_size=120_000)
    assert TokenShard.open(tmp_path / "s.h5").token_ids.tolist() == [70_000, 5]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ((np.arange(5), [0, 5, 5], [0, 1, 2]), "strictly"),
        ((np.arange(5), [0, 4], [0, 1]), "runs from 0 to 4"),
        ((np.arange(5), [0, 5], [0, 2]), "document_offsets"),
        ((np.array([1000]), [0, 1], [0, 1]), "token ids"),
    ],
)
def test_writing_refuses_broken_arrays(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message):
        write(tmp_path / "s.h5", arrays)
    assert not list(tmp_path.iterdir())


def test_sixty_of_sixty_flipped_bits_are_detected(tmp_path):
    path = tmp_path / "s.h5"
    tokens = np.random.default_rng(0).integers(0, 1000, 20_000)
    info = write(path, (tokens, np.arange(0, 20_001, 10), np.arange(0, 2_001, 10)))
    good = path.read_bytes()
    rng = random.Random(1)
    for _ in range(60):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good))] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"s\.h5: damaged"):
            TokenShard.open(path, info, verify="full")


@pytest.mark.parametrize("verify", ["full", "size"])
def test_truncated_and_missing_shards_are_named(tmp_path, verify):
    path = tmp_path / "s.h5"
    info = write(path)
    whole = path.read_bytes()
    for length in (0, 96, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match=r"s\.h5: .* but the manifest says"):
            TokenShard.open(path, info, verify)
        with pytest.raises(DataError, match=r"s\.h5"):
            TokenShard.open(path)
    path.unlink()
    with pytest.raises(DataError, match=r"s\.h5: missing"):
        TokenShard.open(path, info, verify)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "s.h5"
    write(path)
    with pytest.raises(DataError, match="another tokenizer"):
        TokenShard.open(path, fingerprint="g")
    with h5py.File(path, "r+") as file:
        file.attrs["version"] = 2
    with pytest.raises(
        DataError, match="shard version 2, but this version of bertds reads version 1"
    ):
        TokenShard.open(path)
    with h5py.File(path, "w") as file:
        file["token_ids"] = [1]
    with pytest.raises(DataError, match="not a token shard"):
        TokenShard.open(path)
    path.write_text("hello")
    with pytest.raises(DataError, match="not a token shard"):
        TokenShard.open(path)


def test_unaligned_shards_can_be_opened(tmp_path):
    path = tmp_path / "s.h5"
    with h5py.File(path, "w", userblock_size=512) as file:
        file.attrs.update({"format": "bertds-token-shard", "version": 1, "fingerprint": "f"})
        file["token_ids"] = np.arange(5, dtype=np.uint16)
        file["sentence_offsets"] = np.array([0, 2, 5])
        file["document_offsets"] = np.array([0, 2])
    shard = TokenShard.open(path)
    assert shard.token_ids.tolist() == [0, 1, 2, 3, 4]
    assert shard.sentence_offsets.flags.aligned and shard.sentence_offsets.tolist() == [0, 2, 5]


def test_manifest_round_trip_is_byte_stable(make_corpus, tmp_path):
    folder = make_corpus()
    manifest = Manifest.load(folder)
    manifest.save(tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == (folder / "manifest.json").read_bytes()
    train = manifest.split(folder, "train")
    assert train.documents == 34 and len(train.shards) == 3
    assert set(manifest.tokenizer.files) == {"vocab.txt"}


def test_splits_without_documents_are_named(make_corpus):
    folder = make_corpus(validation=())
    with pytest.raises(DataError, match=r"no 'validation' split \(available: train\)"):
        Manifest.load(folder).split(folder, "validation")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=2), "version is 2, but this version of bertds reads version 1"),
        (lambda m: m.update(format="mds"), "format is 'mds'"),
        (lambda m: m.pop("tokenizer"), "key 'tokenizer' is missing"),
        (lambda m: m["documents"].update(read=7), "do not add up: 7 read"),
        (lambda m: m["splits"]["train"].update(tokens=1), "splits.train.tokens is not the sum"),
        (
            lambda m: m["splits"]["train"]["shards"][0].update(odd=1),
            r"unknown key .splits\.train\.shards\[0\]\.odd.; allowed: file",
        ),
    ],
)
def test_broken_manifests_are_explained(make_corpus, change, message):
    folder = make_corpus()
    path = folder / "manifest.json"
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))
    with pytest.raises(DataError, match=message):
        Manifest.load(folder)


def test_missing_and_garbled_manifests_are_explained(make_corpus):
    folder = make_corpus()
    (folder / "manifest.json").write_text('{"format": ')
    with pytest.raises(DataError, match=r"manifest\.json: damaged"):
        Manifest.load(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"manifest\.json: missing"):
        Manifest.load(folder)


def test_real_vocabularies_and_their_casing(shared_data):
    uncased = load_tokenizer_info(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    cased = load_tokenizer_info(shared_data / "vocab" / "bert-base-cased-vocab.txt")
    assert (uncased.vocab_size, uncased.lower_case) == (30_522, True)
    assert (cased.vocab_size, cased.lower_case) == (28_996, False)
    assert uncased.special_ids == {"pad": 0, "unk": 100, "cls": 101, "sep": 102, "mask": 103}
    assert uncased.continuation_pieces().sum() == 5_828
    folder = load_tokenizer_info(shared_data / "model" / "all-MiniLM-L6-v2")
    assert folder == uncased
    assert set(folder.files) == {"vocab.txt", "tokenizer.json", "tokenizer_config.json"}


def test_fingerprint_is_the_documented_hash_and_casing_counts(vocab):
    import hashlib

    raw = vocab.read_bytes()
    assert tokenizer_fingerprint(raw, True) == hashlib.sha256(raw + b"\nuncased").hexdigest()
    assert tokenizer_fingerprint(raw, True) != tokenizer_fingerprint(raw, False)


def test_bad_vocabularies_are_explained(tmp_path, vocab):
    path = tmp_path / "vocab.txt"
    with pytest.raises(DataError, match="cannot be read"):
        load_tokenizer_info(path)
    path.write_text(vocab.read_text().replace("[MASK]\n", ""))
    with pytest.raises(DataError, match=r"does not contain \[MASK\]"):
        load_tokenizer_info(path)
    path.write_text(vocab.read_text() + "word3\n")
    with pytest.raises(DataError, match="'word3' occurs twice"):
        load_tokenizer_info(path)
    path.write_bytes(b"[PAD]\n\xff\xfe\n")
    with pytest.raises(DataError, match="byte 6 is not UTF-8"):
        load_tokenizer_info(path)
    shutil.copy(vocab, path)
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    assert load_tokenizer_info(tmp_path).lower_case is False
