"""The few templates whose words stand in the middle of sentences, and how to read them.

All other templates are dropped. Each function takes the template's name and positional arguments
(``{{convert|5|km|mi}}`` is ``["convert", "5", "km", "mi"]``) and returns the words to keep.
"""

from __future__ import annotations

from collections.abc import Callable

TemplateText = Callable[[list[str]], str]

_RANGE_WORDS = {"to": " to ", "and": " and ", "or": " or ", "-": "–", "–": "–", "by": " by ",
                "x": " × ", "×": " × ", "to(-)": " to "}  # fmt: skip


def _first(arguments: list[str]) -> str:
    return _argument(arguments, 1)


def _second(arguments: list[str]) -> str:
    return _argument(arguments, 2)


def _last(arguments: list[str]) -> str:
    return _argument(arguments, len(arguments) - 1) if len(arguments) > 1 else ""


def _argument(arguments: list[str], number: int) -> str:
    if number >= len(arguments):
        return ""
    text = arguments[number]
    for prefix in ("1=", "2=", "text="):
        text = text.removeprefix(prefix)
    return text.strip()


def _convert(arguments: list[str]) -> str:
    """Read ``{{convert|5|km}}`` as "5 km", ``{{convert|5|to|10|km}}`` as "5 to 10 km"."""
    words = ""
    position = 1
    while position + 1 < len(arguments) and arguments[position + 1] in _RANGE_WORDS:
        words += arguments[position] + _RANGE_WORDS[arguments[position + 1]]
        position += 2
    return f"{words}{_argument(arguments, position)} {_argument(arguments, position + 1)}".strip()


def _fraction(arguments: list[str]) -> str:
    numbers = [a for a in arguments[1:] if a]
    if len(numbers) == 3:
        return f"{numbers[0]} {numbers[1]}/{numbers[2]}"
    return "/".join(numbers) if len(numbers) == 2 else "1/" + (numbers[0] if numbers else "")


def _ship(arguments: list[str]) -> str:
    return f"{arguments[0].upper()} {_first(arguments)}".strip()


def _as_of(arguments: list[str]) -> str:
    return f"As of {_first(arguments)}" if len(arguments) > 1 else ""


def _circa(arguments: list[str]) -> str:
    return f"c. {_first(arguments)}".strip()


def _quotation(arguments: list[str]) -> str:
    return f"\n\n{_first(arguments)}\n\n"


def _joined(arguments: list[str]) -> str:
    """Read ``{{chem|H|2|O}}`` as "H2O"."""
    return "".join(arguments[1:])


def _angle_brackets(arguments: list[str]) -> str:
    return f"⟨{_first(arguments)}⟩" if _first(arguments) else ""


def _verse(arguments: list[str]) -> str:
    """Read ``{{bibleref|Mark|3:25|9}}`` and ``{{bibleverse|1|Kings|3:5}}``."""
    return " ".join(a for a in arguments[1:4] if a and not (a.isdigit() and a == arguments[-1]))


def _coordinates(arguments: list[str]) -> str:
    """Read ``{{coord|13|19|N|169|9|W}}`` as "13°19′N 169°9′W"; nothing if it is for the title."""
    if any(argument.startswith("display=") for argument in arguments):
        return ""
    words, units = "", iter("°′″")
    for argument in arguments[1:]:
        if argument in ("N", "S", "E", "W"):
            words += argument
            if argument in ("E", "W"):
                return words
            words, units = words + " ", iter("°′″")
        elif argument.replace(".", "", 1).lstrip("-").isdigit():
            words += argument + next(units, "")
        else:
            return ""
    return ""


def _constant(text: str) -> TemplateText:
    return lambda _: text


TEMPLATE_TEXT: dict[str, TemplateText] = {
    "lang": _second,
    "abbr": _first,
    "tooltip": _first,
    **dict.fromkeys(["transl", "transliteration"], _last),
    "lang-": _first,
    **dict.fromkeys(
        ["nowrap", "nobr", "small", "big", "nihongo", "em", "strong", "notatypo", "sic",
         "not a typo", "smallcaps", "sc", "linktext", "visible anchor", "vanchor", "okina", "ill",
         "interlanguage link", "formatnum", "val", "num", "sup", "sub", "code", "mvar"],
        _first,
    ),
    **dict.fromkeys(["convert", "cvt"], _convert),
    **dict.fromkeys(["frac", "fraction", "sfrac"], _fraction),
    **dict.fromkeys(["uss", "hms", "ss", "rms", "ms", "hmas", "hmcs", "sms"], _ship),
    **dict.fromkeys(["quote", "blockquote", "cquote", "quotation", "bquote"], _quotation),
    **dict.fromkeys(["ndash", "snd", "spaced ndash", "spnd", "spaced en dash"], _constant(" – ")),
    **dict.fromkeys(["mdash", "em dash", "emdash"], _constant("—")),
    **dict.fromkeys(["'", "`"], _constant("'")),
    "'s": _constant("'s"),
    "nbsp": _constant(" "),
    "spaces": _constant(" "),
    "!": _constant("|"),
    "as of": _as_of,
    **dict.fromkeys(
        ["ipa", "vr", "keypress", "key press", "kbd", "math", "railgauge", "rail gauge",
         "track gauge", "chem2", "var", "unicode", "polytonic", "hebrew", "nastaliq", "script",
         "flag", "flagu", "flagcountry", "overline", "underline", "no wrap",
         "smaller", "larger", "bigger", "dfn", "proper name"],
        _first,
    ),
    "chem": _joined,
    **dict.fromkeys(["angbr", "angle bracket", "angbr ipa"], _angle_brackets),
    **dict.fromkeys(["bibleref", "bibleverse", "bibleref2"], _verse),
    **dict.fromkeys(["rtl-lang", "script/arabic"], _second),
    **dict.fromkeys(["mdashb", "mdash-b"], _constant("—")),
    **dict.fromkeys(["coord", "coords"], _coordinates),
    "mv": _ship,
    # {{Carbon}}<sub>n</sub>{{Hydrogen}}...
    **{name: _constant(symbol) for name, symbol in [
        ("hydrogen", "H"), ("carbon", "C"), ("nitrogen", "N"), ("oxygen", "O"), ("sulfur", "S"),
        ("chlorine", "Cl"), ("sodium", "Na"), ("potassium", "K"), ("calcium", "Ca"), ("iron", "Fe"),
    ]},
    "eqm": _constant(" ⇌ "),
    "=": _constant("="),
    "-\"": _constant('"'),
    "circa": _circa,
    "c.": _circa,
}  # fmt: skip
