"""The colours of pages and charts, light and dark."""

from __future__ import annotations

from dataclasses import dataclass, fields


@dataclass(frozen=True, kw_only=True, slots=True)
class Theme:
    """Colours of one appearance, as ``#rrggbb``."""

    page: str
    card: str
    ink: str
    muted: str
    line: str
    warn: str
    warn_card: str
    series: tuple[str, ...]
    """One colour for each curve; the first one is also that of links and bars."""

    def colours(self) -> dict[str, str]:
        """Return CSS variable name -> colour."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)[:-1]}
        named = {name.replace("_", "-"): colour for name, colour in plain.items()}
        return named | {f"series-{n}": colour for n, colour in enumerate(self.series)}


LIGHT = Theme(
    page="#f4f6fa",
    card="#ffffff",
    ink="#1d2433",
    muted="#5c677d",
    line="#e1e5ed",
    warn="#9a5b00",
    warn_card="#fff5e0",
    series=("#2563c9", "#d9730d", "#0b8a6a", "#b0307e", "#6d4fc4", "#8a6d00"),
)
DARK = Theme(
    page="#0e121a",
    card="#161b26",
    ink="#e6eaf2",
    muted="#98a3b8",
    line="#2a3244",
    warn="#ffc670",
    warn_card="#2b2413",
    series=("#6ea6ff", "#ffad5c", "#4fcfa6", "#f08cc8", "#b7a1ff", "#dcc75c"),
)
