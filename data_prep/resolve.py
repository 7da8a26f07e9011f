"""Turns a request into files and settings: inspects the inputs that it names, and checks them.

Nothing is written here. The result decides the bytes of the output, except for the number of
workers, which changes only the speed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypedDict

from bertds.config.row_settings import RowSettings
from bertds.data.vocabulary import load_tokenizer_info
from bertds.errors import ConfigError
from bertds.system.atomic_files import sha256_file
from bertds.system.processes import usable_cores
from bertds.system.secrets import masked
from bertds.system.storage import is_url, why_not_written
from data_prep.document import Limits, SourceFile
from data_prep.request import PrepRequest
from data_prep.selection.decontaminate import NgramTable, TestFile, check_ngram, read_test_files
from data_prep.selection.filters import FilterSettings
from data_prep.selection.minhash import MinHashSettings
from data_prep.selection.mixing import parse_mix
from data_prep.settings import PrepSettings
from data_prep.sources import SOURCE_KINDS, find_files, source_order
from data_prep.sources.hub import NAME_PREFIX, find_hub
from data_prep.store_output import work_folder
from data_prep.wiki.templates import check_file

_LICENCES = {"wiki": "CC BY-SA (Wikipedia contributors)", "books": "as stated in each book"}


@dataclass(frozen=True, kw_only=True)
class Resolved:
    """A request whose files were found and whose values are valid."""

    request: PrepRequest
    out: Path
    """Working folder on this machine; also the folder of the result, unless that is in a store."""
    url: str
    """URL of the result in a store; "" = the result is local."""
    files: list[SourceFile]
    """Ordered by kind and name."""
    settings: PrepSettings
    test_ngrams: NgramTable | None
    """N-grams of the files of ``decontaminate``; None without such files."""
    licences: dict[str, str]
    """Source -> licence."""
    workers: int
    """Number of processes of this task, at least 1."""


def resolve(request: PrepRequest) -> Resolved:
    """Find the files of a request and make its settings.

    Raises:
        BertdsError: a file or folder is missing or not of the kind that its field expects, a value
            is impossible, or a package is missing.
    """
    # Checked first: inspecting the sources can take minutes.
    if why_not := why_not_written(str(request.out)):
        raise ConfigError(f"--out {masked(request.out)}: {why_not}")
    url = str(request.out) if is_url(request.out) else ""
    if request.work_dir and not url:
        raise ConfigError("--work-dir requires --out URL; a local --out needs no work folder")
    out = work_folder(url, request.work_dir, request.task_count) if url else Path(request.out)
    option = "--work-dir" if url else "--out"
    _check_outside(option, out, _given_paths(request))
    files = source_files(request, out)
    _check_outside(option, out, [file.path for file in files if isinstance(file.path, Path)])
    filters, test_ngrams = filter_settings(request)
    settings = prep_settings(request, files, filters)
    return Resolved(
        request=request,
        out=out,
        url=url,
        files=files,
        settings=settings,
        test_ngrams=test_ngrams,
        licences=source_licences(request.licence, files),
        workers=worker_count(request.workers, files),
    )


def worker_count(asked: int, files: Sequence[SourceFile]) -> int:
    """Return the number of processes: as asked, or all cores, but fewer for small sources."""
    if asked > 0:
        return asked
    # A process takes a second to start, which is not worth it for less than a few megabytes.
    return max(1, min(usable_cores(), sum(file.bytes for file in files) // 4_000_000))


def _given_paths(request: PrepRequest) -> list[Path]:
    """Return the local files and folders that a request names."""
    given = [path for kind in SOURCE_KINDS for path in getattr(request, kind)]
    given += [*request.hf, *request.wiki_index, *request.decontaminate]
    given += filter(None, [request.vocab, request.wiki_templates])
    return [Path(path) for path in given if not is_url(path) and os.path.exists(path)]


def _check_outside(option: str, out: Path, paths: Sequence[Path]) -> None:
    """Refuse inputs in the folder that preparation fills: --overwrite would delete them.

    Raises:
        ConfigError: names the folder and the input.
    """
    folder = Path(os.path.realpath(out))  # Path.resolve raises an error for a loop of links
    for path in paths:
        real = Path(os.path.realpath(path))
        if folder == real or folder in real.parents:
            what = "is also an input" if folder == real else f"contains the input {path}"
            raise ConfigError(f"{out}: {what}; choose another folder for {option}")


def source_files(request: PrepRequest, out: Path | None = None) -> list[SourceFile]:
    """Return the input files after inspecting each; those in ``out`` are not inputs.

    Raises:
        BertdsError: there is none, or one is not of the kind that its option expects.
    """
    options = {
        "text": (request.text_layout,),
        "jsonl": (request.text_key,),
        "parquet": (request.text_key,),
    }
    if request.wiki_templates:
        path = Path(request.wiki_templates).resolve()
        check_file(path)
        # The hash is part of the option, so that results of an older version of the file are not
        # reused.
        options["wiki"] = (f"templates={sha256_file(path)}:{path}",)
    limits = _limits(request)
    files = []
    for kind in SOURCE_KINDS:
        files += find_files(
            kind,
            getattr(request, kind),
            options.get(kind, ()),
            request.wiki_index if kind == "wiki" else (),
            limits,
            out,
        )
    for given in request.hf:
        found = find_hub(given, request.hf_split, request.text_key)
        files += [file._replace(limits=limits) for file in found]
    if not files:
        raise ConfigError(
            "no source given; use --wiki, --books, --text, --jsonl, --parquet, --pubmed or --hf"
        )
    return files


def _limits(request: PrepRequest) -> Limits:
    for option, value in (
        ("--max-document-mb", request.max_document_mb),
        ("--max-unpack-ratio", request.max_unpack_ratio),
    ):
        if not 1 <= value <= 1_000_000:
            raise ConfigError(f"{option} {value}: allowed: 1 to 1000000")
    return Limits(request.max_document_mb << 20, request.max_unpack_ratio)


def filter_settings(request: PrepRequest) -> tuple[FilterSettings, NgramTable | None]:
    """Return the requirements on documents, and the n-grams of the test files.

    Raises:
        BertdsError: a value is impossible, a test file cannot be read, or a package is missing.
    """
    table = None
    files: tuple[TestFile, ...] = ()
    if request.decontaminate:
        check_ngram(request.decontaminate_ngram)
        files, table = read_test_files(request.decontaminate, request.decontaminate_ngram)
    if request.keep_language:
        from data_prep.selection.language import check_languages

        check_languages(request.keep_language)
    # A value that has no effect is replaced by its default, so that it changes no fingerprint.
    settings = FilterSettings(
        min_words=request.min_words,
        max_words=request.max_words,
        languages=tuple(sorted(set(request.keep_language))),
        language_score=(
            request.language_score if request.keep_language else FilterSettings.language_score
        ),
        quality=tuple(dict.fromkeys(request.quality)),
        test_files=files,
        test_ngram=(
            request.decontaminate_ngram if request.decontaminate else FilterSettings.test_ngram
        ),
    )
    return settings, table


def minhash_settings(request: PrepRequest) -> MinHashSettings:
    """Return the checked settings of the search for near-duplicates.

    Raises:
        ConfigError: a value is impossible, or was set without ``--dedup minhash``.
    """
    settings = MinHashSettings(
        bands=request.minhash_bands, rows=request.minhash_rows, ngram=request.minhash_ngram
    )
    if request.dedup != "minhash":
        for name in ("bands", "rows", "ngram"):
            if getattr(settings, name) != getattr(MinHashSettings, name):
                raise ConfigError(f"--minhash-{name} requires --dedup minhash")
    return settings


def prep_settings(
    request: PrepRequest, files: list[SourceFile], filters: FilterSettings | None = None
) -> PrepSettings:
    """Return the checked settings that decide the result.

    Args:
        request: the request.
        files: the input files.
        filters: requirements on documents.

    Raises:
        BertdsError: a value is impossible, or the vocabulary cannot be used.
    """
    tokenizer = _asked_tokenizer(request)
    rows = RowSettings(
        masked_lm_prob=request.masked_lm_prob,
        short_seq_prob=request.short_seq_prob,
        whole_word_masking=request.whole_word_masking,
        ngram=request.ngram,
        pairs=request.pairs,
    )
    instances = [_with_lengths(rows, text) for text in request.instances]
    if len({one.sequence_length for one in instances}) < len(instances):
        raise ConfigError("--instances: each sequence length may be given only once")
    # Readers of NVIDIA's files expect these names for these sources.
    kinds = {file.source for file in files}
    names = {
        frozenset({"wiki"}): "wikicorpus_en",
        frozenset({"books"}): "bookscorpus",
        frozenset({"wiki", "books"}): "books_wiki_en_corpus",
    }
    dataset = request.dataset_name or names.get(frozenset(kinds), "corpus")
    if not dataset.replace("_", "").replace("-", "").isalnum():
        raise ConfigError(f"--dataset-name {dataset!r}: only letters, digits, _ and - are allowed")
    return PrepSettings(
        seed=request.seed,
        **tokenizer,
        wiki_templates_sha256=(
            sha256_file(Path(request.wiki_templates)) if request.wiki_templates else ""
        ),
        vocab_size=request.train_vocab,
        vocab_sample_bytes=(
            request.vocab_sample_bytes if request.train_vocab else PrepSettings.vocab_sample_bytes
        ),
        language=request.language,
        min_tokens=request.min_tokens,
        shard_tokens=request.shard_tokens,
        validation_fraction=request.validation_fraction,
        dataset=dataset,
        rows=rows,
        instances=tuple(instances),
        dupe_factor=request.dupe_factor,
        compression=request.compression,
        filters=filters or FilterSettings(),
        dedup=request.dedup,
        minhash=minhash_settings(request),
        mix=parse_mix(request.mix, source_order(files)),
        keep_dropped=request.keep_dropped,
    )


def _with_lengths(rows: RowSettings, text: str) -> RowSettings:
    """Return the rows of one ``--instances S:P``, such as ``128:20``.

    Raises:
        ConfigError: the text is not of this form.
    """
    length, colon, predictions = text.partition(":")
    if not (colon and length.isdecimal() and predictions.isdecimal()):
        raise ConfigError(f"--instances {text}: expected S:P, for example 128:20")
    return replace(rows, sequence_length=int(length), max_predictions=int(predictions))


class _Tokenizer(TypedDict, total=False):
    """The fields of PrepSettings that describe the tokenizer."""

    lower_case: bool
    strip_accents: bool | None
    chinese_characters: bool
    tokenizer_model: str
    vocab_sha256: str


def _asked_tokenizer(request: PrepRequest) -> _Tokenizer:
    """Return the settings of the tokenizer, whether it is given or to be trained."""
    strip_accents = False if request.keep_accents else None
    if not request.vocab:
        lower_case = request.lower_case is not False
        # strip_accents=None already means "keep" for cased text, so only the other case is
        # recorded.
        unusual = request.keep_accents and lower_case
        return {"lower_case": lower_case, "strip_accents": False if unusual else None}
    tokenizer = load_tokenizer_info(request.vocab, request.lower_case, strip_accents)
    if request.instances and not tokenizer.is_wordpiece:
        raise ConfigError(
            f"--instances requires a WordPiece vocabulary, but {request.vocab} is "
            f"{tokenizer.model}; omit --instances (token shards support any tokenizer)"
        )
    # Two files with the same pieces and rules count as the same tokenizer.
    same = tokenizer.fingerprint if not tokenizer.is_wordpiece else sha256_file(tokenizer.main_file)
    return {
        "lower_case": tokenizer.lower_case,
        "strip_accents": tokenizer.strip_accents,
        "chinese_characters": tokenizer.chinese_characters,
        "tokenizer_model": tokenizer.model,
        "vocab_sha256": same,
    }


def source_licences(given: Sequence[str], files: Sequence[SourceFile]) -> dict[str, str]:
    """Return the licence of each source.

    It is that of ``SOURCE=TEXT``, else the one that the source states, else the usual one.
    ``hf=TEXT`` applies to all datasets of ``--hf``.

    Raises:
        ConfigError: the text is not of this form, or names a source that is not in this run.
    """
    licences = dict(_LICENCES)
    licences.update({file.source: file.licence for file in files if file.licence})
    names = {file.source for file in files}
    allowed = [*SOURCE_KINDS, "hf", *sorted(names.difference(SOURCE_KINDS))]
    for text in given:
        # A licence may contain "=", the name of a source does not.
        source, equals, licence = text.partition("=")
        if not equals or source not in allowed:
            raise ConfigError(
                f"--licence {text}: expected SOURCE=TEXT, where SOURCE is one of "
                f"{', '.join(allowed)}"
            )
        is_hub = any(name.startswith(NAME_PREFIX) for name in names)
        if source not in names and not (source == "hf" and is_hub):
            raise ConfigError(
                f"--licence {text}: no such source; the sources are: {', '.join(sorted(names))}"
            )
        if source == "hf":
            licences.update({n: licence for n in names if n.startswith(NAME_PREFIX)})
        licences[source] = licence
    return licences
