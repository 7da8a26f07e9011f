"""What the project's pages are made of: one style, light and dark, tables and large numbers.

A page holds everything inside it and fetches nothing.
"""

from __future__ import annotations

import html
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ground:#f4f6fa; --card:#ffffff; --ink:#1d2433; --muted:#5c677d;
  --line:#e1e5ed; --accent:#2563c9; --warn:#9a5b00; --warnbg:#fff5e0; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) { --ground:#0e121a;
  --card:#161b26; --ink:#e6eaf2; --muted:#98a3b8; --line:#2a3244; --accent:#6ea6ff;
  --warn:#ffc670; --warnbg:#2b2413; } }
:root[data-theme=dark] { --ground:#0e121a; --card:#161b26; --ink:#e6eaf2; --muted:#98a3b8;
  --line:#2a3244; --accent:#6ea6ff; --warn:#ffc670; --warnbg:#2b2413; }
* { box-sizing: border-box; }
body { margin:0; background:var(--ground); color:var(--ink);
  font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif; }
main { max-width:1120px; margin:0 auto; padding:28px 20px 60px; }
header { display:flex; gap:16px; align-items:flex-start; justify-content:space-between; }
h1 { font-size:25px; line-height:1.25; margin:0 0 4px; }
h2 { font-size:17px; margin:34px 0 12px; }
p.sub, .note { color:var(--muted); margin:0; }
.note { font-size:12.5px; padding:0 4px 2px; }
button { font:inherit; font-size:13px; color:var(--muted); background:var(--card);
  border:1px solid var(--line); border-radius:8px; padding:5px 11px; cursor:pointer;
  flex:none; white-space:nowrap; }
.tiles { display:grid; grid-template-columns:repeat(auto-fit,minmax(138px,1fr)); gap:12px;
  margin-top:12px; }
.tile, figure, .card { background:var(--card); border:1px solid var(--line); border-radius:12px; }
.tile { padding:12px 14px; } .tile b { display:block; font-size:21px; font-weight:600;
  letter-spacing:-.01em; } .tile span { color:var(--muted); font-size:12.5px; }
.chain { margin-top:18px; font-weight:600; display:flex; align-items:center; gap:9px; }
.key { width:22px; height:4px; border-radius:2px; flex:none; }
.pictures { display:grid; grid-template-columns:1fr 1fr; gap:14px; }
figure { margin:0; padding:12px 14px 9px; } figure.wide { grid-column:1/-1; }
figcaption { font-weight:600; font-size:14px; padding:0 4px 6px; }
figure img { width:100%; display:block; } img.dark { display:none; }
@media (prefers-color-scheme: dark) { :root:not([data-theme=light]) img.dark { display:block; }
  :root:not([data-theme=light]) img.light { display:none; } }
:root[data-theme=dark] img.dark { display:block; }
:root[data-theme=dark] img.light { display:none; }
.card { padding:4px 16px; overflow-x:auto; margin-bottom:14px; }
table { border-collapse:collapse; width:100%; font-size:13.5px; font-variant-numeric:tabular-nums; }
th, td { text-align:left; padding:7px 14px 7px 0; border-bottom:1px solid var(--line);
  vertical-align:top; } tr:last-child td { border-bottom:0; }
th { color:var(--muted); font-weight:500; white-space:nowrap; } td.n, th.n { text-align:right; }
td.n { white-space:nowrap; }
td:not(.n, :first-child) { min-width:6em; overflow-wrap:anywhere; }
code, pre { font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace; }
pre { margin:12px 0; white-space:pre-wrap; overflow-wrap:anywhere; }
.warn { background:var(--warnbg); color:var(--warn); border-radius:10px; padding:10px 14px;
  margin-top:12px; font-size:14px; }
details { margin:12px 0; } summary { cursor:pointer; color:var(--accent); }
.key.c0 { background:C0L; } .key.c1 { background:C1L; } .key.c2 { background:C2L; }
.key.c3 { background:C3L; } .key.c4 { background:C4L; } .key.c5 { background:C5L; }
@media (max-width:760px) { .pictures { grid-template-columns:minmax(0,1fr); }
  figure.wide { overflow-x:auto; } figure.wide img { min-width:640px; } }
@media print { button { display:none; } figure, .card, .tile { break-inside:avoid; } }
"""

SCRIPT = """
document.querySelector('button').addEventListener('click', function () {
  var root = document.documentElement;
  var dark = root.dataset.theme ? root.dataset.theme === 'dark'
    : matchMedia('(prefers-color-scheme: dark)').matches;
  root.dataset.theme = dark ? 'light' : 'dark';
});
"""


def escape(value: object) -> str:
    """Return text that HTML takes as text."""
    return html.escape(str(value))


def table(head: list[str], rows: list[list[Any]], numbers: tuple[int, ...] = ()) -> str:
    """Return a table in a card; columns in ``numbers`` are set to the right."""

    def cell(tag: str, place: int, value: object) -> str:
        kind = ' class="n"' if place in numbers else ""
        return f"<{tag}{kind}>{escape(value)}</{tag}>"

    top = "".join(cell("th", i, name) for i, name in enumerate(head))
    body = "".join(
        "<tr>" + "".join(cell("td", i, value) for i, value in enumerate(row)) + "</tr>"
        for row in rows
    )
    return f'<div class="card"><table><tr>{top}</tr>{body}</table></div>'


def tiles(values: list[tuple[str, str]]) -> str:
    """Return a row of large numbers with what they are."""
    return (
        '<div class="tiles">'
        + "".join(
            f'<div class="tile"><b>{escape(number)}</b><span>{escape(name)}</span></div>'
            for number, name in values
        )
        + "</div>"
    )


def document(title: str, subtitle: str, style: str, parts: list[str]) -> str:
    """Return a whole page: headline, a switch between light and dark, and the parts."""
    head = (
        f"<header><div><h1>{escape(title)}</h1>"
        f'<p class="sub">{escape(subtitle)}</p></div>'
        '<button type="button">light / dark</button></header>'
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(part for part in [head, *parts] if part)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )
