"""Templates that a text in braces cannot express: units, ranges, dates, coordinates.

``templates.yaml`` refers to them with ``=``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from data_prep.wiki.conventions import Conventions


class Arguments(NamedTuple):
    """The arguments of one template."""

    name: str
    """As written on the page."""
    positional: Sequence[str]
    """The first is ``positional[0]``; ``2=`` sets the second."""
    named: Mapping[str, str]

    def get(self, key: str) -> str:
        """Return an argument by number or name; "" if it is missing."""
        if key.isdigit():
            number = int(key) - 1
            return self.positional[number] if number < len(self.positional) else ""
        if key == "name":
            return self.name
        if key == "last":
            return self.positional[-1] if self.positional else ""
        return self.named.get(key, "")


_RANGE_MARKS = {
    **dict.fromkeys(("-", "–", "—", "-(to)"), "–"),
    **dict.fromkeys(("x", "×", "xx", "*"), " × "),
    **dict.fromkeys(("+/-", "±", "+-"), " ± "),
    ",": ", ",
    "+": " + ",
}
# What editors type, and the word that it means; each also with a sign for its abbreviation.
_RANGE_WORDS = {
    **{word: word for word in ("to", "and", "or", "by", "through", "to about", ", and")},
    "to(-)": "to",
    "and(-)": "and",
    "or(-)": "or",
    "by(x)": "by",
}
_WIDER = {"through": "to", "to about": "to", ", and": "and"}
_WITHOUT_WORDS = {"to": "–", "and": ", ", "or": "/", "by": " × "}


def _range(typed: str, ways: Conventions) -> str:
    """Return the words between two numbers in a language; "" if ``typed`` is not a range."""
    if typed in ways.ranges.values() and typed.isalpha():
        return f" {typed} "
    if typed not in _RANGE_WORDS:
        return _RANGE_MARKS.get(typed, "")
    word = _RANGE_WORDS[typed]
    wider = _WIDER.get(word, word)
    found = ways.ranges.get(word) or ways.ranges.get(wider)
    if found is None:
        return _WITHOUT_WORDS[wider]
    return f"{found} " if found[0] == "," else f" {found} "


_SMALLER_UNITS = {
    "ft": ("in",),
    "foot": ("in",),
    "yd": ("ft", "in"),
    "mi": ("yd", "ft", "furlong", "ch"),
    "st": ("lb",),
    "lb": ("oz",),
    "m": ("cm",),
    "km": ("m",),
    "LT": ("cwt",),
    "long ton": ("cwt",),
    "furlong": ("yd",),
    "h": ("min",),
    "nmi": ("ft",),
    "chain": ("ft",),
}
_UNITS = {
    "C": "°C",
    "F": "°F",
    "sqmi": "sq mi",
    "sqft": "sq ft",
    "cuft": "cu ft",
    "sqin": "sq in",
    "sqyd": "sq yd",
    "cumi": "cu mi",
    "cuyd": "cu yd",
    "degree": "°",
    "C-change": "°C",
    "F-change": "°F",
    "USgal": "US gal",
    "impgal": "imp gal",
    "oilbbl": "bbl",
    "oilbbl/d": "bbl/d",
    "PD/km2": "/km2",
    "PD/sqmi": "/sq mi",
}
# Codes of {{convert}} that are words; the others are symbols.
_WORDS = """acre,carat,chain,fathom,furlong,gallon,hectare,kilometer,kilometre,knot,league,liter
litre,long ton,meter,metre,mile,ounce,pound,short ton,tonne,yard""".replace("\n", ",").split(",")
_PLURALS = _UNITS | {word: f"{word}s" for word in _WORDS} | {"foot": "feet", "inch": "inches"}
_MULTIPLES = {"3": "thousand", "6": "million", "9": "billion", "12": "trillion"}
_MULTIPLE = re.compile(r"e(3|6|9|12)(?=[a-zA-Z])")
# "1//2" is a half, and "3+1/2" three and a half.
_FRACTION = re.compile(r"(?:(\d+)[+-])?(\d+)(?:/{1,2}|⁄)(\d+)")
_NUMBER = re.compile(r"[-+−]?[\d.,]*\d(?:[\d.,/+⁄½¼¾]|e[-+]?\d)*|[½¼¾⅓⅔]")


def _is_number(text: str) -> bool:
    return _NUMBER.fullmatch(text) is not None


def _measured(text: str, ways: Conventions) -> str:
    if match := _FRACTION.fullmatch(text):
        return f"{match[1]} {match[2]}/{match[3]}" if match[1] else f"{match[2]}/{match[3]}"
    return ways.number(text)


def _unit(unit: str, several: bool = False) -> str:
    """Read ``e6km`` as "million km", and ``acre`` after "2" as "acres"."""
    if match := _MULTIPLE.match(unit):
        return f"{_MULTIPLES[match[1]]} {_unit(unit[match.end() :], several)}"
    return _PLURALS.get(unit, unit) if several else _UNITS.get(unit, unit)


def _several(number: str, arguments: Arguments, ways: Conventions) -> bool:
    """Return whether a unit that is an English word is plural after this number."""
    english = ways.months[:1] == ("January",)
    return english and not arguments.get("adj") and number not in ("1", "-1", "−1", "1/2", "½")


def _convert(arguments: Arguments, ways: Conventions) -> str:
    """Return the measure as given, without the converted one.

    ``5|km`` is "5 km", ``5|to|10|km`` "5 to 10 km", ``5|ft|6|in|cm`` "5 ft 6 in".
    """
    given = arguments.positional
    words, position = "", 0
    while position < len(given):
        words += _measured(given[position], ways)
        after = given[position + 1] if position + 1 < len(given) else ""
        # "5|a|ha" is an area in Portuguese, but "5|a|10|ha" is a range.
        number_follows = position + 2 < len(given) and (
            after in _RANGE_WORDS or after in _RANGE_MARKS or _is_number(given[position + 2])
        )
        if number_follows and (between := _range(after, ways)):
            words += between
            position += 2
            continue
        unit = after
        words += f" {_unit(unit, _several(given[position], arguments, ways))}" if unit else ""
        position += 2
        # "5 ft 6 in": a number with a smaller unit belongs to the same measure.
        while position + 1 < len(given) and _is_number(given[position]):
            if given[position + 1] not in _SMALLER_UNITS.get(unit, ()):
                break
            unit = given[position + 1]
            words += f" {given[position]} {unit}"
            position += 2
        if position + 1 < len(given) and (between := _range(given[position], ways)):
            if not _is_number(given[position + 1]):
                break
            words += between
            position += 1
            continue
        break
    return words.strip()


def _value(arguments: Arguments, ways: Conventions) -> str:
    """Read ``5.3|0.2|u=km`` as "5.3±0.2 km", ``300|km`` as "300 km", ``5|e=3`` as "5×10^3"."""
    given = [argument for argument in arguments.positional if argument]
    if not given:
        return ""
    # {{val}} groups its digits by style only.
    text = given[0] if arguments.name.lower() == "val" else ways.number(given[0])
    rest = given[1:]
    if rest and _is_number(rest[0]):
        text += f"±{rest.pop(0)}"
    if exponent := arguments.get("e"):
        text += f"×10^{exponent}"
    unit = arguments.get("u") or arguments.get("ul") or (rest[0] if rest else "")
    power = rest[1] if len(rest) > 1 and _is_number(rest[1]) and not arguments.get("u") else ""
    per = arguments.get("up") or arguments.get("upl")
    unit = f"{_UNITS.get(unit, unit)}{power if power != '1' else ''}" + (f"/{per}" if per else "")
    before = arguments.get("p")
    if unit in ("%", "°", "′", "″"):
        return f"{before}{text}{unit}"
    return f"{before}{text} {unit}".strip()


def _measure(arguments: Arguments, ways: Conventions) -> str:
    """Read ``5|k|m``, ``5|u=km`` and ``5|e=3|ul=km`` as "5 km" and "5×10^3 km"."""
    given = arguments.positional
    text = ways.number(arguments.get("1"))
    if exponent := arguments.get("e"):
        text += f"×10^{exponent}"
    unit = next(filter(None, map(arguments.get, ("ul", "u", "um"))), "".join(given[1:3]))
    return f"{text} {unit}".strip()


def _number(arguments: Arguments, ways: Conventions) -> str:
    """Read ``1234567`` as "1,234,567"."""
    return ways.number(arguments.get("1"))


def _parenthetic(arguments: Arguments, _: Conventions) -> str:
    """Read ``a`` as " – a –", and ``a|stop``, at the end of a sentence, as " – a"."""
    words = arguments.get("1")
    return f" – {words}" if arguments.get("2") == "stop" else f" – {words} –"


def _height(arguments: Arguments, _: Conventions) -> str:
    """Read ``ft=6|in=2`` as "6 ft 2 in", ``m=1.85`` as "1.85 m"."""
    words = [
        f"{value} {unit}" for unit in ("m", "cm", "ft", "in") if (value := arguments.get(unit))
    ]
    return " ".join(words)


def _fraction(arguments: Arguments, _: Conventions) -> str:
    numbers = [a for a in arguments.positional if a]
    if len(numbers) == 3:
        return f"{numbers[0]} {numbers[1]}/{numbers[2]}"
    return "/".join(numbers) if len(numbers) == 2 else "1/" + (numbers[0] if numbers else "")


def _ship(arguments: Arguments, _: Conventions) -> str:
    return f"{arguments.name.upper()} {arguments.get('1')}".strip()


def _joined(arguments: Arguments, _: Conventions) -> str:
    """Read ``{{chem|H|2|O}}`` as "H2O"."""
    return "".join(arguments.positional)


def _verse(arguments: Arguments, _: Conventions) -> str:
    """Read ``{{bibleref|Mark|3:25|9}}`` and ``{{bibleverse|1|Kings|3:5}}``."""
    given = arguments.positional
    return " ".join(a for a in given[:3] if a and not (a.isdigit() and a == given[-1]))


def _coordinates(arguments: Arguments, _: Conventions) -> str:
    """Read ``{{coord|13|19|N|169|9|W}}`` as "13°19′N 169°9′W"; "" if it is for the title only."""
    if arguments.get("display").startswith("t"):
        return ""
    words, units = "", iter("°′″")
    for argument in arguments.positional:
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


def _ordinal(arguments: Arguments, _: Conventions) -> str:
    """Read ``21`` as "21st"."""
    number = arguments.get("1")
    last = number[-1:] if number[-2:-1] != "1" else "0"
    return number + {"1": "st", "2": "nd", "3": "rd"}.get(last, "th") if number else ""


_ROMAN = re.compile("[IVXLC]+")


def _centuries(arguments: Arguments, _: Conventions) -> str:
    """Read French ``{{s2|XVIII|XIX}}``, ``{{s2-|I|er|II|e}}``, ``{{-sp-|V|e|au|III|e}}``.

    That is "XVIIIe et XIXe siècles", "Ier et IIe", "Ve au IIIe av. J.-C.".
    """
    name = arguments.name.lower()
    between = "au" if "sp" in name else "et"
    centuries: list[str] = []
    for argument in filter(None, arguments.positional):
        if _ROMAN.fullmatch(argument):
            centuries.append(argument)
        elif centuries and argument in ("e", "er", "re", "ème", "ère"):
            centuries[-1] += argument
        elif len(centuries) == 1:
            between = argument
    if len(centuries) != 2:
        return ""
    first, second = (f"{c}e" if _ROMAN.fullmatch(c) else c for c in centuries)
    noun = "" if name.endswith("-") else " siècle" if "sp" in name else " siècles"
    return f"{first} {between} {second}{noun}{' av. J.-C.' if name.startswith('-') else ''}"


_ISO = re.compile(r"(\d{4})-(\d{1,2})(?:-(\d{1,2}))?")


def _year_month_day(given: Sequence[str]) -> tuple[str, str, str]:
    """Return year, month and day; each is "" if it is missing."""
    values = [argument for argument in given[:3] if argument]
    iso = _ISO.fullmatch(values[0]) if values else None
    if iso is not None:
        return iso[1], iso[2], iso[3] or ""
    if not values or not all(map(str.isdigit, values)):
        return "", "", ""
    if len(values) == 3 and len(values[2]) >= 3:
        values.reverse()
    return values[0], values[1] if len(values) > 1 else "", values[2] if len(values) > 2 else ""


def _date(arguments: Arguments, ways: Conventions) -> str:
    """Read ``2001-02-03``, ``2001|2|3`` and ``3|2|2001`` as the language writes the day."""
    return _written(arguments.positional, ways, ways.form)


def _date_us(arguments: Arguments, ways: Conventions) -> str:
    """Read ``1999|5|1`` as "May 1, 1999"; with ``df=y``, or on other wikis, like ``_date``."""
    day_first = arguments.get("df")[:1] in ("y", "d") or ways.months[:1] != ("January",)
    return _written(arguments.positional, ways, ways.form if day_first else "{m} {d}, {y}")


def _written(given: Sequence[str], ways: Conventions, form: str) -> str:
    year, month, day = _year_month_day(given)
    if not year:
        # "2001|June|8" and "3|February|2001" name the month; other words are kept as they are.
        words = [argument for argument in given[:3] if argument]
        if len(words) == 3 and words[0].isdigit() and len(words[0]) == 4:
            words.reverse()
        if len(words) == 3 and words[0].rstrip(".").isdigit() and words[2].isdigit():
            year, day = words[2], words[0].rstrip(".").lstrip("0")
            return _in_form(day, words[1], year, ways, form)
        text = " ".join(words)
        return _FIRST_DAY.sub(ways.first, text) if ways.first else text
    if not month or not month.isdigit() or not 0 < int(month) <= len(ways.months):
        return year
    name = ways.months[int(month) - 1]
    if not day:
        if form.startswith("{y}"):  # "1999年5月", "1999. május"
            form = form.partition("{d}")[0].strip()
        elif form.startswith("{d}"):  # "mayo de 1999"
            form = "{m}" + form.partition("{m}")[2]
        else:
            form = "{m} {y}"
    return _in_form(day.lstrip("0"), name, year, ways, form)


def _in_form(day: str, month: str, year: str, ways: Conventions, form: str) -> str:
    day = ways.first if ways.first and day == "1" else day
    return form.replace("{d}", day).replace("{m}", month).replace("{y}", year)


_FIRST_DAY = re.compile(r"^0?1(?=\s)")


def _as_of(arguments: Arguments, ways: Conventions) -> str:
    """Read ``2010|5`` as "As of May 2010"; ``lc=y``, ``since=y`` and ``alt=`` as Wikipedia does."""
    if alternative := arguments.get("alt"):
        return alternative
    words = "Since" if arguments.get("since") else "As of"
    if arguments.get("lc"):
        words = words[0].lower() + words[1:]
    form = "{m} {d}, {y}" if arguments.get("df").lower() == "us" else ways.form
    date = _written(arguments.positional, ways, form)
    return f"{words} {date}" if date else ""


Function = Callable[[Arguments, Conventions], str]

FUNCTIONS: dict[str, Function] = {
    "as_of": _as_of,
    "centuries": _centuries,
    "convert": _convert,
    "coordinates": _coordinates,
    "date": _date,
    "date_us": _date_us,
    "fraction": _fraction,
    "height": _height,
    "joined": _joined,
    "measure": _measure,
    "number": _number,
    "ordinal": _ordinal,
    "parenthetic": _parenthetic,
    "ship": _ship,
    "value": _value,
    "verse": _verse,
}
