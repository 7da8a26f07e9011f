"""Splits paragraphs into sentences with Wikimedia's sentencex.

It knows the abbreviations of about 100 languages and splits about 70 MB/s per core, paragraph by
paragraph (a regular expression without abbreviations: about 55; both measured on one core with the
text of benchmarks/prep.py). It slows down on very long inputs, so these are cut first. For scripts
whose sentence ends it does not know (Khmer, Tibetan, Thai, Lao), those of bertds/data/scripts.py
are used.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

from bertds.data.scripts import last_break, needs_own_ends, split_further

LONGEST_PARAGRAPH = 20_000
"""In characters; longer paragraphs are cut at a space before splitting, so that time is linear."""
LONGEST_SENTENCE = 2_000
"""In characters; longer sentences are cut at a space. This is about the longest row (512 tokens):
text beyond a row would never be trained on, and the limit bounds the memory."""


def cut(text: str, limit: int) -> Iterator[str]:
    """Yield pieces of at most ``limit`` characters, cut at the last space if there is one.

    A text without spaces is cut after the last mark that ends a sentence or a clause.
    """
    start = 0
    while len(text) - start > limit:
        end = text.rfind(" ", start + limit // 2, start + limit)
        if end < 0:
            end = last_break(text, start + limit // 2, start + limit)
        if end < 0:
            end = start + limit
        yield text[start:end]
        start = end
    yield text[start:]


_WIDE_SPACES = dict.fromkeys(map(ord, "\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"), " ")
_WIDE_SPACES |= dict.fromkeys(range(0x2000, 0x200B), " ")
"""Spaces of more than one byte in UTF-8."""


def safe_segmenter() -> Callable[[str, str], list[str]]:
    """Return sentencex's function from a language and a paragraph to sentences, for any spaces.

    sentencex 1.0.32 panics if there is a wide space between an initial and a full stop
    (J, no-break space, full stop). Such a paragraph is split with plain spaces instead.
    """
    import sentencex

    segment = sentencex.segment

    def segment_safely(language: str, text: str) -> list[str]:
        try:
            return segment(language, text)
        except BaseException as error:  # a panic of Rust code is not an Exception
            if type(error).__name__ != "PanicException":
                raise
        return segment(language, text.translate(_WIDE_SPACES))

    return segment_safely


def whole_abbreviations(pieces: list[str]) -> list[str]:
    """Join pieces that were divided inside an abbreviation: ``av. J.`` and ``-C. fut long.``.

    sentencex does not know all abbreviations of all languages. One or two letters, a full stop and
    another letter without a space are an abbreviation. A tokenizer that is not WordPiece would see
    a space there that the text does not have.
    """
    # Nearly all sentences but the last have a space at their end.
    if "." not in [piece[-1:] for piece in pieces[:-1]]:
        return pieces
    whole: list[list[str]] = []
    for before, piece in zip(["", *pieces], pieces, strict=False):
        if before[-1:] == "." and _CONTINUES.match(piece):
            word = _BEFORE_FULL_STOP.split(before)[-2]
            if 0 < sum(map(str.isalpha, word)) <= 2:
                whole[-1].append(piece)
                continue
        whole.append([piece])
    return ["".join(parts) for parts in whole]


_CONTINUES = re.compile(r"-?[^\W\d_]")
_STOP_INSIDE = re.compile(rf"\.{_CONTINUES.pattern}")
_BEFORE_FULL_STOP = re.compile(r"[\s.]")


def sentence_splitter(language: str) -> Callable[[str], list[str]]:
    """Return a function from a document (paragraphs, one a line) to its sentences."""
    strip, segment_safely = str.strip, safe_segmenter()

    def segment_whole(code: str, text: str) -> list[str]:
        return whole_abbreviations(segment_safely(code, text))

    def segment_further(code: str, text: str) -> list[str]:
        return [p for sentence in segment_whole(code, text) for p in split_further(sentence)]

    def split(document: str) -> list[str]:
        sentences: list[str] = []
        # Decided once per document, so that most paragraphs cost nothing.
        segment = segment_whole if _STOP_INSIDE.search(document) else segment_safely
        if needs_own_ends(document):
            segment = segment_further
        for paragraph in document.split("\n"):
            if len(paragraph) <= LONGEST_SENTENCE:
                # Nearly all paragraphs: none of their sentences can be too long.
                sentences += filter(None, map(strip, segment(language, paragraph)))
                continue
            pieces = [s for p in cut(paragraph, LONGEST_PARAGRAPH) for s in segment(language, p)]
            for piece in pieces:
                if len(piece) > LONGEST_SENTENCE:
                    sentences.extend(filter(None, map(strip, cut(piece, LONGEST_SENTENCE))))
                elif piece := piece.strip():
                    sentences.append(piece)
        return sentences

    return split
