"""Words and sentences of scripts: the one table that every rule about text uses.

English text has no cost: callers first count something that they need anyway (spaces, full stops),
and use this module only for the few lines that such a count does not decide.

Sources: the Unicode Standard, chapters 6.2 (sentence ends), 13.4 (Tibetan), 16 (Southeast Asia) and
18 (East Asia). Line joining follows CSS Text Module Level 3, section 4.1.3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from bertds.system.start_up import pattern_on_first_use


class Script(NamedTuple):
    """A script without spaces between words."""

    name: str
    letters: str
    """Ranges of a character class: letters, and the marks that combine with them."""
    word: float
    """Approximate number of letters in a word, from which words are counted without spaces."""
    ends: str
    """Marks that end a sentence; "" if only a space ends it."""
    spaced_ends: bool
    """Whether a space follows an end, as in English (not in East Asia, where marks are wide)."""


UNSPACED = (
    Script(
        "Han and kana",
        "\u3005-\u3007\u3021-\u3029\u3031-\u3035\u303b\u3040-\u30fa\u30fc-\u312f\u31a0-\u31bf"
        "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
        "\U00016fe0-\U00018cff\U0001aff0-\U0001b16f\U00020000-\U000323af",
        1.6,
        "。！？．｡",
        False,
    ),
    Script("Yi", "\ua000-\ua4cf", 1.6, "。！？", False),
    Script("Thai", "\u0e01-\u0e3a\u0e40-\u0e4e\u0e50-\u0e59", 4.5, "", True),
    Script("Lao", "\u0e81-\u0ebd\u0ec0-\u0edf", 4.5, "", True),
    Script("Tibetan", "\u0f00\u0f0b\u0f0c\u0f18-\u0f39\u0f3e-\u0fbc", 4.5, "།༎༏༐༑", True),
    Script("Myanmar", "\u1000-\u1049\u104c-\u109f\ua9e0-\ua9fe\uaa60-\uaa7f", 6.0, "။", True),
    Script("Khmer", "\u1780-\u17d3\u17d7\u17dc-\u17e9", 5.5, "។៕", True),
    Script("Tai", "\u1950-\u19df\u1a20-\u1aad\uaa80-\uaadf", 4.5, "᪨᪩", True),
    Script("Java and Bali", "\u1b00-\u1b59\ua980-\ua9c0\ua9cf-\ua9d9", 4.5, "᭞᭟᭚᭛꧉꧈", True),
)

LETTERS = "".join(script.letters for script in UNSPACED)
"""The letters of all these scripts, for a character class."""

IDEOGRAPHS = UNSPACED[0].letters
"""Ideographs and kana: each counts, and is compared, as about one word."""

# Ends of all scripts: East Asia, Arabic and Urdu, Devanagari (danda) and its neighbours, Armenian,
# Ethiopic, Syriac, Mongolian, N'Ko, Ol Chiki, Meetei Mayek, Santali, Canadian syllabics.
_SPACED_ENDS = ".!?…؟۔।॥։՞՜።፧፨܀܁܂᠃᠉߹᱾᱿꯫᙮‼⁇⁈⁉"
SENTENCE_ENDS = "".join(dict.fromkeys(_SPACED_ENDS + "".join(s.ends for s in UNSPACED)))
_CLOSERS = "\"'”’»›)]」』）】》〉〕］｣"
_OPENERS = "\"'“‘«‹(["
_END_CHARACTERS = frozenset(SENTENCE_ENDS)

# Full-width marks are as wide as an ideograph.
_WIDE_MARKS = "\u3000-\u3004\u3008-\u3020\u3030\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
_WIDE = "".join(script.letters for script in UNSPACED if not script.spaced_ends)
_NARROW = "".join(script.letters for script in UNSPACED if script.spaced_ends)
# The newline comes first, since a literal is found much faster than a class.
_WIDE_NEIGHBOURS = (
    f"(?=[{_WIDE}{_WIDE_MARKS}])(?<=[{_WIDE}{_WIDE_MARKS}]\n)|(?<=[{_WIDE_MARKS}]\n)"
    f"|(?=[{_WIDE_MARKS}])"
)
_NO_SPACE_HERE = pattern_on_first_use(f"\n(?:{_WIDE_NEIGHBOURS}|(?=[{_NARROW}])(?<=[{_NARROW}]\n))")
_NO_SPACE_BETWEEN_SENTENCES = pattern_on_first_use(f"\n(?:{_WIDE_NEIGHBOURS})")
_UNSPACED_LETTER = pattern_on_first_use(f"[{LETTERS}]")


def ends_sentence(text: str) -> bool:
    """Return whether a text ends like a sentence; quotes and brackets may follow the end."""
    text = text.rstrip(_CLOSERS + " \u3000\xa0")
    if text[-1:] in _END_CHARACTERS:
        return True
    # A Greek question ends with a semicolon. The Armenian full stop is often typed as a colon.
    return text[-1:] in (";", ":") and _asks(text)


def _asks(text: str) -> bool:
    before = text[:-1].rstrip()[-1:]
    return (
        text[-1] == ";"
        and "\u0370" <= before <= "\u1fff"
        and (before <= "\u03ff" or before >= "\u1f00")
    ) or (text[-1] == ":" and "\u0531" <= before <= "\u0587")


def has_unspaced(text: str) -> bool:
    """Return whether a text contains a letter of a script without spaces between words."""
    return not text.isascii() and _UNSPACED_LETTER.search(text) is not None


def mostly_unspaced(text: str) -> bool:
    """Return whether most letters of a text belong to scripts without spaces between words."""
    if text.isascii():
        return False
    letters = len(_UNSPACED_LETTER.findall(text))
    return letters > 0 and 2 * letters >= len(text) - text.count(" ") - text.count("\n")


def word_count(text: str) -> int:
    """Return the number of words: those between spaces, or estimated from the number of letters.

    ``word_count("It is.")`` is 2; ``word_count("北京是中国的首都")`` is 5 (8 letters / 1.6).
    """
    spaced = len(text.split())
    if text.isascii() or _UNSPACED_LETTER.search(text) is None:
        return spaced
    words = sum(len(pattern.findall(text)) / word for pattern, word in _by_script())
    rest = _UNSPACED_LETTER.sub(" ", text).split()
    return round(words) + sum(any(map(str.isalnum, word)) for word in rest)


@lru_cache(maxsize=1)
def _by_script() -> tuple[tuple[re.Pattern[str], float], ...]:
    return tuple((re.compile(f"[{script.letters}]"), script.word) for script in UNSPACED)


def without_marked_ends(text: str) -> bool:
    """Return whether the end of a text is in a script without end marks (Thai, Lao)."""
    return _UNMARKED.search(text[-40:]) is not None


_UNMARKED = pattern_on_first_use("[" + "".join(s.letters for s in UNSPACED if not s.ends) + "]")


def join_lines(lines: Sequence[str]) -> str:
    """Join the lines of a paragraph, without a space in scripts that do not use one."""
    if len(lines) == 1:
        return lines[0]
    text = "\n".join(lines)
    if not text.isascii():
        text = _NO_SPACE_HERE.sub("", text)
    return text.replace("\n", " ")


# The first UTF-8 bytes of U+0800 to U+1FFF, and of all characters from U+3000.
_LEADS = [bytes([lead]) for lead in (0xE0, 0xE1, *range(0xE3, 0xF5))]


def may_join_without_space(text: str) -> bool:
    """Return whether a text can contain lines that :func:`join_lines` joins without a space.

    This is called once per document. For European languages it is False: a space joins the lines.
    """
    if text.isascii():
        return False
    data = text.encode("utf-8", "surrogatepass")
    return any(lead in data for lead in _LEADS)


def gap(before: str, after: str) -> str:
    """Return the text that replaces a line break between two parts of a sentence: "" or a space."""
    return join_lines((before[-1:], after[:1]))[1:-1] if before and after else " "


def sentence_gap(before: str, after: str) -> str:
    """Return the text between two sentences of running text: "" in East Asia, else a space.

    Thai has no spaces between words, but it has one between sentences.
    """
    # Chinese and English use the same quotation marks: “好。”他說 has no gap.
    joint = f"{before.rstrip(_CLOSERS)[-1:]}\n{after.lstrip(_OPENERS)[:1]}"
    return " " if joint.isascii() or not _NO_SPACE_BETWEEN_SENTENCES.search(joint) else ""


def spaced_words(text: str) -> str:
    """Return a text with spaces around each letter of the scripts without spaces."""
    return _UNSPACED_LETTER.sub(r" \g<0> ", text)


# --------------------------------------------------------------------------------------------
# Sentence ends that the splitter does not know
# --------------------------------------------------------------------------------------------

_LEAST_PHRASE = 40
"""In characters. Thai and Lao put a space after a phrase as well as after a sentence."""
_OWN_ENDS = pattern_on_first_use(f"(?<=[།༎༏༐༑។៕᪨᪩᭞᭟᭚᭛꧉])[{re.escape(_CLOSERS)}]*\\s+")
_PHRASE_END = pattern_on_first_use(
    f"(?<=[{UNSPACED[2].letters}{UNSPACED[3].letters}ๆฯ])\\s+(?=\\S)"
)
# Every longer text in one of these scripts contains one; `in` costs nothing on other text.
_SIGNS = ("།", "។", "៕", "᪨", "᪩", "᭞", "᭟", "꧉", "า", "ร", "ກ", "າ")


def needs_own_ends(text: str) -> bool:
    """Return whether sentencex would not split the sentences of a text."""
    return not text.isascii() and any(sign in text for sign in _SIGNS)


def split_further(sentence: str) -> list[str]:
    """Split a sentence at the ends of its script: after ``།`` and ``။``, and at Thai's spaces."""
    pieces = []
    for part in _cut_after(sentence, _OWN_ENDS):
        least = 0
        phrases: list[str] = []
        for phrase in _cut_after(part, _PHRASE_END):
            # Short phrases are joined, since in Thai and Lao a space does not always end a
            # sentence.
            if phrases and least < _LEAST_PHRASE:
                phrases[-1] += phrase
            else:
                phrases.append(phrase)
                least = 0
            least += len(phrase)
        if len(phrases) > 1 and len(phrases[-1]) < _LEAST_PHRASE // 2:
            last = phrases.pop()
            phrases[-1] += last
        pieces += phrases
    return pieces


def _cut_after(text: str, gap: re.Pattern[str]) -> list[str]:
    begin = 0
    pieces = []
    for match in gap.finditer(text):
        pieces.append(text[begin : match.end()])
        begin = match.end()
    if begin < len(text):
        pieces.append(text[begin:])
    return pieces


def last_break(text: str, start: int, end: int) -> int:
    """Return the best place to cut a text without spaces in ``[start, end)``; -1 if none."""
    for marks in (SENTENCE_ENDS, "，、；：､,;:་"):
        found = max(text.rfind(mark, start, end) for mark in marks)
        if found >= 0:
            return found + 1
    return -1
