"""Detects the encoding of a book that is not Unicode: by its header or its letters, or undecided.

Western and central European encodings differ only in the accented letters, which a general detector
confuses. Therefore a text in Latin script is compared with the alphabets of the languages that each
encoding was made for. Other scripts are left to ``charset-normalizer``, but its result must be
spelt with the letters of one language. A text whose encoding stays undecided is not decoded: a
wrong guess would silently put garbage into the training data.
"""

from __future__ import annotations

import codecs
import re
from collections import Counter

_SAMPLE_BYTES = 256 << 10
_DECLARED = re.compile(rb"(?:(?m:^)|\r)Character set encoding:\s*([A-Za-z0-9_.:-]+)", re.I)
_HIGH = bytes(range(0x80, 0x100))
_ASCII_LETTERS = re.compile(rb"[A-Za-z]")
_LATIN_SHARE = 0.25
"""Maximum share of accented letters in a text of Latin script (Vietnamese aside)."""
_KNOWN_SHARE = 0.97

# Lower-case letters beyond ASCII of each language, by encoding. The first encoding wins a tie.
_ALPHABETS: dict[str, tuple[str, ...]] = {
    "cp1252": (
        "àâæçèéêëîïôöœùûüÿ",  # French, and words that English borrows
        "äöüßéàè",  # German
        "áéíñóúüºª",  # Spanish
        "ãõáâàçéêíóôúü",  # Portuguese
        # Italian, with letters of foreign names: "à è ì ò ù á ä å ï ô ø" are letters of Czech and
        # Slovak in cp1250, so one "Søren" would make a whole book Czech.
        "àèéìíòóùúîáäåïôø",
        "åäöéæøáàü",  # Danish, Norwegian, Swedish, Finnish
        "áéíóúýðþæö",  # Icelandic
        "àçèéíïòóúü·",  # Catalan
        "éëïöüèêóáíú",  # Dutch
        "äöüõš",  # Estonian; "Ž" is the "é" of old Macs
    ),
    "cp1250": ("ąćęłńóśźż", "áčďéěíňóřšťúůýžäĺľŕô", "áéíóöőúüű", "ăâîşţșț", "čćđšž"),
    "iso8859_2": ("ąćęłńóśźż", "áčďéěíňóřšťúůýžäĺľŕô", "áéíóöőúüű", "ăâîşţșț", "čćđšž"),
    "cp1254": ("çğıöşüâîû",),
    "cp1257": ("āčēģīķļņšūž", "ąčęėįšųūž", "äöüõšž"),
}
_CYRILLIC = (
    "абвгдеёжзийклмнопрстуфхцчшщъыьэюяі",  # Russian, before 1918 too; Bulgarian
    "абвгґдеєжзиіїйклмнопрстуфхцчшщьюя",  # Ukrainian
    "абвгдеёжзійклмнопрстуўфхцчшыьэюя",  # Belarusian
    "абвгдђежзијклљмнњопрстћуфхцчџш",  # Serbian
    "абвгдѓежзѕијклљмнњопрстќуфхцчџш",  # Macedonian
    "аәбвгғдеёжзийкқлмнңоөпрстуұүфхһцчшщъыіьэюя",  # Kazakh
)
_RELATIVES = {"cp1251": "kz1048", "cp866": "cp1125", "cp1253": "mac_greek"}
"""Encodings of the same script that are tried if a detected one gives no language."""
_CYRILLIC_LETTER, _HIGH_LETTER = re.compile("[\u0400-\u04ff]"), re.compile(r"[^\W\d_\x00-\x7f]")
_FINAL_SIGMA_INSIDE = re.compile("ς(?=[ά-ώ])")
_OTHER_SCRIPTS = [
    "cp1251",
    "koi8_r",
    "koi8_u",
    "iso8859_5",
    "cp866",
    "cp855",
    "mac_cyrillic",
    "cp1253",
    "cp737",
    "cp1255",
    "cp862",
    "cp1256",
    "iso8859_6",
    "gb18030",
    "big5hkscs",
    "cp932",
    "euc_jp",
    "cp949",
    "cp874",
]
# A symbol, a superscript or a fraction inside a word: "na¹e" is "naše" in another encoding. Control
# characters and bytes without a character prove the same anywhere.
_NO_LETTER = re.compile(
    r"(?<=[^\W\d_])(?:[^\w\s\x00-\x7f\xad’–—-]|[¹²³¼½¾])(?=[^\W\d_])|[\x80-\x9f\ufffd]"
)
# ISO 2022 switches to another character set and back. All its bytes are also ASCII.
_ESCAPES = re.compile(rb"\x1b\$(?:[@AB]|\([A-DOPQ]|\)[A-C])")
# HZ switches to GB 2312 with "~{" and back with "~}": pairs of printable bytes, without spaces.
_HZ = re.compile(rb"~\{(?:[\x21-\x77][\x21-\x7e]){4,}~\}")
_SWITCHING = ("iso2022_jp", "iso2022_kr", "iso2022_jp_2", "iso2022_jp_3", "iso2022_jp_2004")
_KANA, _KANA_SHARE = re.compile("[\u3041-\u30fc]"), 0.2
_MOST_CHAOS = 0.1
_CHAOS_LEAD, _COHERENCE_LEAD = 0.02, 0.03


def switches_sets(data: bytes) -> bool:
    """Return whether a text is in HZ or an encoding of ISO 2022, which would be taken for ASCII."""
    if b"\x1b$" in data and _ESCAPES.search(data) is not None:
        return True
    return _is_hz(data)


def _is_hz(data: bytes) -> bool:
    return b"~{" in data and _HZ.search(data) is not None


def _fits(data: bytes, encoding: str) -> bool:
    try:
        data.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def detect(data: bytes) -> str:
    """Return the Python name of the encoding of a text that is not UTF-8; "" if undecided."""
    if data.isascii() and switches_sets(data):
        if _is_hz(data) and _fits(data, "hz"):
            return "hz"
        return next((encoding for encoding in _SWITCHING if _fits(data, encoding)), "")
    declared = _declared(data)
    if declared:
        return declared
    sample = data[:_SAMPLE_BYTES]
    if len(data) > len(sample):
        # No byte of a multi-byte character ends a line, so the cut is between characters.
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b"\r")) + 1] or sample
    # Few bytes above ASCII among many ASCII letters: the script is Latin.
    high = len(sample) - len(sample.translate(None, _HIGH))
    if high and high <= _LATIN_SHARE * (high + len(_ASCII_LETTERS.findall(sample))):
        return _latin(sample)
    return _other_script(sample)


def _declared(data: bytes) -> str:
    """Return the encoding that a Project Gutenberg header names, if the text fits it, else ""."""
    found = _DECLARED.search(data[:8192])
    if found is None:
        return ""
    try:
        name = codecs.lookup(found[1].decode("ascii")).name
        # Books labelled Latin-1 use the quotes and dashes of Windows-1252, its superset.
        name = "cp1252" if name in ("iso8859-1", "latin_1") else name
        data.decode(name)
    except (LookupError, UnicodeDecodeError):
        return ""
    return "" if name in ("ascii", "utf-8") else name


def _latin(sample: bytes) -> str:
    best, best_share = "", 0.0
    for encoding, alphabets in _ALPHABETS.items():
        text = sample.decode(encoding, "replace")
        share = max(_share(text, alphabet) for alphabet in alphabets)
        if share > best_share:
            best, best_share = encoding, share
    return best if best_share >= _KNOWN_SHARE else ""


def _share(text: str, alphabet: str) -> float:
    """Return the share of a text's letters beyond ASCII that an alphabet contains.

    What only another encoding explains counts as a miss. Quotes, dashes and symbols prove little.
    """
    counts: Counter[str] = Counter(c for c in text if c > "\x7f" and c.isalpha())
    own = sum(count for letter, count in counts.items() if letter.lower() in alphabet)
    misses = sum(symbol not in alphabet for symbol in _NO_LETTER.findall(text))
    letters = counts.total() + misses
    return own / letters if letters else 1.0


def _other_script(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    found = from_bytes(sample, cp_isolation=_OTHER_SCRIPTS, threshold=_MOST_CHAOS)
    # Nearly all bytes are letters in the encodings of Thai, so they must also be frequent letters.
    matches = [m for m in found if m.encoding != "cp874" or "Thai" in m.languages]
    if not matches:
        return ""
    for match in matches:
        # Many kana mean Japanese: wrongly decoded text of other languages shows none.
        if len(_KANA.findall(str(match))) > _KANA_SHARE * len(str(match)):
            return str(match.encoding)
    # Two encodings that fit nearly equally well but give different texts leave it undecided.
    best = matches[0]
    for other in matches[1:]:
        alike = (
            other.chaos <= best.chaos + _CHAOS_LEAD
            and other.coherence >= best.coherence - _COHERENCE_LEAD
        )
        if alike and str(other) != str(best):
            return ""
    name = str(best.encoding)
    for encoding in (name, _RELATIVES.get(name, name)):
        if _is_language(sample.decode(encoding, "replace")):
            return encoding
    return ""


def _is_language(text: str) -> bool:
    """Return whether a text in Cyrillic or Greek is spelt with the letters of one language.

    ``charset-normalizer`` compares frequent letters only. Texts in other scripts pass.
    """
    if 2 * len(_CYRILLIC_LETTER.findall(text)) > len(_HIGH_LETTER.findall(text)):
        return max(_share(text, alphabet) for alphabet in _CYRILLIC) >= _KNOWN_SHARE
    # In Greek, this form of sigma ends a word.
    return 2 * len(_FINAL_SIGMA_INSIDE.findall(text)) <= text.count("ς")
