"""Words of a text and their hashes, by which near-duplicates and contamination are found.

A word is a run of letters and digits in lower case. Punctuation, spacing and case do not count, as
in GPT-3 (arXiv:2005.14165, appendix C). An ideograph or a kana is a word of its own, since those
scripts do not use spaces.
"""

from __future__ import annotations

import re

import numpy as np

from bertds.data.scripts import IDEOGRAPHS
from bertds.system.numba_jit import compiled
from bertds.system.start_up import pattern_on_first_use

_NOT_WORD = re.compile(r"[\W_]+")
_UNSPACED = pattern_on_first_use(f"([{IDEOGRAPHS}])")
_SPACE = np.uint8(32)
_OFFSET = np.uint64(0xCBF29CE484222325)  # FNV-1a, 64 bits
_PRIME = np.uint64(0x100000001B3)
_M1, _M2 = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)  # SplitMix64's
_27, _30, _31 = np.uint64(27), np.uint64(30), np.uint64(31)
# Odd, so that the position of a word in an n-gram counts: h = h * PLACE + word.
_PLACE = np.uint64(0x9E3779B97F4A7C15)


def normalised(text: str) -> str:
    """Return the words of a text in lower case, separated by single spaces."""
    text = text.lower()
    if not text.isascii() and _UNSPACED.search(text):
        text = _UNSPACED.sub(r" \1 ", text)
    return _NOT_WORD.sub(" ", text).strip()


def word_hashes(text: str) -> np.ndarray:
    """Return a hash of every word of a text, uint64 [words]."""
    # A word has at least one byte and a separator, which bounds the number of words.
    data = np.frombuffer(normalised(text).encode("utf-8", "surrogatepass"), np.uint8)
    out = np.empty(len(data) // 2 + 1, np.uint64)
    return out[: _hash_words(data, out)]


@compiled
def mixed(word):
    """SplitMix64's finalizer: every bit of the result depends on every bit of the word."""
    word = (word ^ (word >> _30)) * _M1
    word = (word ^ (word >> _27)) * _M2
    return word ^ (word >> _31)


@compiled
def _hash_words(data, out):
    count = 0
    inside = False
    word = _OFFSET
    for byte in data:
        if byte == _SPACE:
            if inside:
                out[count] = mixed(word)
                count += 1
            inside = False
            word = _OFFSET
        else:
            inside = True
            word = (word ^ np.uint64(byte)) * _PRIME
    if inside:
        out[count] = mixed(word)
        count += 1
    return count


@compiled
def ngram_hashes(words, n):
    """Return a hash of every n-gram of words, uint64 [words - n + 1]; none if there are fewer."""
    count = max(0, len(words) - n + 1)
    out = np.empty(count, np.uint64)
    for start in range(count):
        code = np.uint64(n)
        for i in range(start, start + n):
            code = code * _PLACE + words[i]
        out[start] = mixed(code)
    return out
