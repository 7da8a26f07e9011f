"""BLiMP: does a model prefer the correct one of two sentences that differ in one point of grammar?

    pairs --tokenizer--> sentences --one masked copy per token--> passes --sums--> accuracies

The set has 67 paradigms of 1,000 pairs (Warstadt et al. 2020, arXiv:1912.00582). A masked language
model scores a sentence by its pseudo-log-likelihood (Salazar et al. 2020, arXiv:1910.14659): each
token in turn is masked, and the log-probabilities of the true tokens are summed. A pair counts as
right only if the sum of the good sentence is higher; a tie is wrong.

The masked copies of many sentences of similar length form one forward pass without padding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bertds.errors import DataError, reason_of
from bertds.system.json_fields import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from bertds.config.recipe import ModelConfig
    from bertds.model.build import PreTrainingModel

TOKENS_PER_PASS = 16_384
"""Maximum number of tokens in one forward pass, all masked copies counted."""
LOGITS_BYTES = 1 << 28
"""Maximum size of the float32 logits of one forward pass."""
FILE = "blimp.json"
"""File of the scores in a run folder, for the report and the model card."""
PARADIGMS = 67
"""Number of files in the official set."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One minimal pair."""

    good: str
    bad: str
    paradigm: str
    """The UID, which is the name of the file."""
    field: str
    """morphology, syntax, semantics or syntax_semantics."""
    term: str
    """The phenomenon, one of twelve."""


def read_pairs(folder: Path | str, limit: int = 0) -> list[Pair]:
    """Read the pairs of all ``*.jsonl`` files of a folder (or of its ``data/``), file by file.

    Args:
        folder: the official files, or others of the same form.
        limit: maximum number of pairs from each file, from its beginning; 0 = all.

    Raises:
        DataError: there is no file, or a line is not a pair (names file, line and key).
    """
    folder = Path(folder)
    files = sorted(folder.glob("*.jsonl")) or sorted((folder / "data").glob("*.jsonl"))
    if not files:
        raise DataError(
            f"--blimp {folder}: contains no *.jsonl files; give the data folder of the BLiMP "
            "repository"
        )
    pairs: list[Pair] = []
    for file in files:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{file}: cannot be read ({reason_of(error)})") from None
        numbered = [(n, line) for n, line in enumerate(lines, 1) if line.strip()]
        pairs += [_pair(file, n, line) for n, line in numbered[: limit or None]]
    if not pairs:
        raise DataError(f"--blimp {folder}: its files contain no pairs")
    return pairs


def _pair(file: Path, number: int, line: str) -> Pair:
    try:
        values = parse_json(line)
    except ValueError as error:
        raise DataError(f"{file}: line {number} is not JSON ({error})") from None
    found = {}
    for key in ("sentence_good", "sentence_bad", "UID", "field", "linguistics_term"):
        value = values.get(key) if isinstance(values, dict) else None
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"{file}: line {number} has no text under {key}")
        found[key] = value
    return Pair(
        found["sentence_good"],
        found["sentence_bad"],
        found["UID"],
        found["field"].replace("/", "_"),  # one official file writes syntax/semantics
        found["linguistics_term"],
    )


@dataclass(slots=True)
class _Sentence:
    ids: list[int]
    scored: list[int]
    """Positions that are masked in turn: all but the special tokens."""


def pseudo_log_likelihoods(
    model: PreTrainingModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
) -> list[float]:
    """Return for each text the sum of the log-probabilities of its tokens, each masked in turn.

    Args:
        model: a model of ``build_model``, in evaluation mode.
        tokenizer: the model's tokenizer (transformers).
        texts: any number of texts. Texts with the same tokens are computed once, so that they tie
            exactly.

    Raises:
        DataError: a text has no tokens, or more than the model can read; the tokenizer has no mask
            token; or the model's outputs are not finite.
    """
    if tokenizer.mask_token_id is None:
        raise DataError("the tokenizer of the model has no mask token, so nothing can be masked")
    encoded = {text: _encode(tokenizer, text, model.config) for text in dict.fromkeys(texts)}
    numbers: dict[tuple[int, ...], int] = {}
    sentences: list[_Sentence] = []
    for sentence in encoded.values():
        if numbers.setdefault(tuple(sentence.ids), len(sentences)) == len(sentences):
            sentences.append(sentence)
    # Copies of similar length share a pass; the sums are taken in float64.
    order = sorted(range(len(sentences)), key=lambda n: len(sentences[n].ids))
    sums = torch.zeros(len(sentences), dtype=torch.float64)
    copies = [(n, position) for n in order for position in sentences[n].scored]
    mask_id = int(tokenizer.mask_token_id)
    with torch.inference_mode():
        for chunk in _passes(copies, sentences, model.vocab_size):
            scores = score_sentences(model, chunk, sentences, mask_id)
            sums.index_add_(0, torch.tensor([n for n, _ in chunk]), scores)
    if not bool(sums.isfinite().all()):  # NaN is never higher, so damaged weights would score 0%
        raise DataError("the outputs of the model are not finite; its weights are damaged")
    return [float(sums[numbers[tuple(encoded[text].ids)]]) for text in texts]


def _encode(tokenizer: PreTrainedTokenizerBase, text: str, config: ModelConfig) -> _Sentence:
    encoded = tokenizer(text, return_special_tokens_mask=True)
    ids, special = encoded["input_ids"], encoded["special_tokens_mask"]
    scored = [position for position, is_special in enumerate(special) if not is_special]
    if len(ids) > config.max_position_embeddings:
        raise DataError(
            f"{text[:60]!r}: {len(ids)} tokens, but the model reads at most "
            f"{config.max_position_embeddings}"
        )
    if not scored:
        raise DataError(f"{text[:60]!r}: the tokenizer returns no tokens for it")
    return _Sentence(ids, scored)


def _passes(
    copies: Sequence[tuple[int, int]], sentences: Sequence[_Sentence], vocab_size: int
) -> Iterator[Sequence[tuple[int, int]]]:
    """Split the masked copies, which are sorted by length, into forward passes."""
    most = max(1, LOGITS_BYTES // (4 * vocab_size))
    begin = tokens = 0
    for end, (number, _) in enumerate(copies):
        length = len(sentences[number].ids)
        if end > begin and (tokens + length > TOKENS_PER_PASS or end - begin >= most):
            yield copies[begin:end]
            begin, tokens = end, 0
        tokens += length
    yield copies[begin:]


def score_sentences(
    model: PreTrainingModel,
    copies: Sequence[tuple[int, int]],
    sentences: Sequence[_Sentence],
    mask_id: int,
) -> torch.Tensor:
    """Return the log-probability of the masked token of each copy, float64 [M] on the CPU."""
    device = next(model.parameters()).device
    # All copies form one flat row, as in training: `starts` are the offsets of its sentences.
    rows = [sentences[number].ids for number, _ in copies]
    lengths = torch.tensor([len(row) for row in rows])
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    ids = torch.tensor([token for row in rows for token in row])
    # One position in each copy is masked; its true token is what the model must predict.
    masked = starts[:-1] + torch.tensor([position for _, position in copies])
    true_ids = ids[masked]
    ids[masked] = mask_id
    places = torch.cat([torch.arange(length) for length in lengths.tolist()])
    logits_MK, _ = model.logits(
        ids.to(device),
        torch.zeros_like(ids).to(device),
        places.to(device),
        starts.to(torch.int32).to(device),
        int(lengths.max()),
        masked.to(device),
    )
    log_probs_MK = logits_MK.float().log_softmax(-1)
    return log_probs_MK.gather(1, true_ids.to(device)[:, None])[:, 0].double().cpu()


def evaluate_blimp(
    model: PreTrainingModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
) -> dict[str, Any]:
    """Score pairs.

    Returns:
        ``overall``, ``fields``, ``terms`` and ``paradigms`` in percent, and the number of
        ``pairs``. The scores of a field, of a term and overall are means over paradigms, as in the
        paper. With all pairs this equals the mean over pairs.
    """
    texts = [text for pair in pairs for text in (pair.good, pair.bad)]
    sums = pseudo_log_likelihoods(model, tokenizer, texts)
    right: dict[str, list[bool]] = {}
    homes: dict[str, Pair] = {}
    for pair, good, bad in zip(pairs, sums[0::2], sums[1::2], strict=True):
        right.setdefault(pair.paradigm, []).append(good > bad)
        homes[pair.paradigm] = pair
    paradigms = {name: 100.0 * sum(hits) / len(hits) for name, hits in sorted(right.items())}
    fields: dict[str, list[float]] = {}
    terms: dict[str, list[float]] = {}
    for name, score in paradigms.items():
        fields.setdefault(homes[name].field, []).append(score)
        terms.setdefault(homes[name].term, []).append(score)
    return {
        "pairs": len(pairs),
        "overall": _mean(list(paradigms.values())),
        "fields": {name: _mean(scores) for name, scores in sorted(fields.items())},
        "terms": {name: _mean(scores) for name, scores in sorted(terms.items())},
        "paradigms": {name: round(score, 4) for name, score in paradigms.items()},
    }


def _mean(scores: Sequence[float]) -> float:
    return round(sum(scores) / len(scores), 4)


def describe(result: dict[str, Any]) -> list[str]:
    """Return a result as lines of text: overall, fields, paradigms."""
    lines = [f"  {'overall':<58} {result['overall']:6.2f}"]
    if len(result["paradigms"]) != PARADIGMS:
        count = len(result["paradigms"])
        lines.append(f"  not comparable: {count} paradigms here, {PARADIGMS} in the official set")
    for title in ("fields", "terms", "paradigms"):
        lines += ["", f"  {title}"]
        lines += [f"    {name:<56} {score:6.2f}" for name, score in result[title].items()]
    return lines
