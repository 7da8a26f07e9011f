"""Fonts for the PNG charts: matplotlib's own, and installed ones for other scripts.

Only PNGs need them. A page shows the text of its charts in the fonts of the reader's system.
"""

from __future__ import annotations

import contextlib
import re
from functools import cache
from itertools import groupby
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.text import Text

OWN = "DejaVu Sans"
# These have a glyph for every character: a box that names its block.
_BOXES = re.compile("last ?resort|fallback|blank", re.IGNORECASE)


class Fonts:
    """The fonts of a set of charts, and what none of them can show."""

    def __init__(self) -> None:
        self.families = [OWN]
        """The first font that has a letter shows it."""
        self.unshown: dict[str, str] = {}
        """Letters that no installed font has -> what is written in their place."""
        self._known: dict[str, bool] = {}

    def apply(self, texts: list[Text]) -> None:
        """Set the fonts of texts, and replace letters that no installed font has."""
        self._find({letter for text in texts for letter in text.get_text()})
        for text in texts:
            text.set_fontfamily(self.families)
            text.set_text(self._shown(text.get_text()))

    def advice(self) -> str:
        """Return one line on what to install; "" if everything was shown."""
        if not self.unshown:
            return ""
        shown = ", ".join(f"{mark} is {letters}" for letters, mark in self.unshown.items())
        return (
            f"no installed font has these letters, so the PNG charts number them: {shown}. Install "
            "a font with them and write the report again, for example with apt-get install "
            "fonts-noto-cjk (Chinese, Japanese, Korean) or fonts-noto-core (other scripts)"
        )

    def _shown(self, text: str) -> str:
        """Return a text with a number in the place of each group of letters without a font."""
        parts = []
        for is_shown, group in groupby(text, lambda letter: self._known.get(letter, True)):
            letters = "".join(group)
            if not is_shown:
                letters = self.unshown.setdefault(letters, f"[{len(self.unshown) + 1}]")
            parts.append(letters)
        return "".join(parts)

    def _find(self, letters: set[str]) -> None:
        """Add fonts until all letters have one, or no font is left."""
        missing = {letter for letter in letters - set(self._known) if not letter.isspace()}
        for family in [OWN, *installed_families()] if missing else ():
            found = {letter for letter in missing if has_glyph(family, letter)}
            if found and family not in self.families:
                self.families.append(family)
            missing -= found
            self._known |= dict.fromkeys(found, True)
            if not missing:
                return
        self._known |= dict.fromkeys(missing, False)


@cache
def installed_families() -> tuple[str, ...]:
    """Return the names of the installed fonts, of regular weight; sans-serif ones first."""
    from matplotlib import font_manager

    manager, paths = font_manager.fontManager, set(font_manager.findSystemFonts())
    # matplotlib remembers the fonts of its first start, and does not see newer ones.
    for path in sorted(paths - {entry.fname for entry in manager.ttflist}):
        with contextlib.suppress(RuntimeError, OSError):  # a bitmap font, or a damaged one
            manager.addfont(path)
    entries = [
        entry
        for entry in manager.ttflist
        if entry.fname in paths and entry.weight == 400 and entry.style == "normal"
    ]
    entries.sort(key=lambda entry: ("sans" not in entry.name.lower(), entry.name))
    names = dict.fromkeys(entry.name for entry in entries)
    return tuple(name for name in names if not _BOXES.search(name))


@cache
def has_glyph(family: str, letter: str) -> bool:
    """Return whether an installed font has a letter."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    try:
        path = findfont(FontProperties(family=[family]), fallback_to_default=False)
        return bool(get_font(path).get_char_index(ord(letter)))
    except (ValueError, RuntimeError, OSError):  # removed since, or a bitmap font
        return False
