"""The report's page: one HTML file with everything inside it."""

from __future__ import annotations

import html
from typing import Any

from bertds.report_data import Chain, RunView
from bertds.report_pictures import DARK, LIGHT, Picture
from bertds.tracking import in_words

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
  border:1px solid var(--line); border-radius:8px; padding:5px 11px; cursor:pointer; }
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
code, pre { font:12.5px/1.55 ui-monospace,SFMono-Regular,Menlo,"DejaVu Sans Mono",monospace; }
pre { margin:12px 0; white-space:pre-wrap; overflow-wrap:anywhere; }
.warn { background:var(--warnbg); color:var(--warn); border-radius:10px; padding:10px 14px;
  margin-top:12px; font-size:14px; }
details { margin:12px 0; } summary { cursor:pointer; color:var(--accent); }
.key.c0 { background:C0L; } .key.c1 { background:C1L; } .key.c2 { background:C2L; }
.key.c3 { background:C3L; } .key.c4 { background:C4L; } .key.c5 { background:C5L; }
@media (max-width:760px) { .pictures { grid-template-columns:1fr; } }
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


def escape(value: Any) -> str:
    """Return text that HTML takes as text."""
    return html.escape(str(value))


def table(head: list[str], rows: list[list[Any]], numbers: tuple[int, ...] = ()) -> str:
    """Return a table in a card; columns in ``numbers`` are set to the right."""

    def cell(tag: str, place: int, value: Any) -> str:
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
    return '<div class="tiles">' + "".join(
        f'<div class="tile"><b>{escape(number)}</b><span>{escape(name)}</span></div>'
        for number, name in values
    ) + "</div>"  # fmt: skip


def short(value: float) -> str:
    """Return a large number as a person reads it: 1.3 M."""
    for size, word in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if value >= size:
            return f"{value / size:.3g} {word}"
    return f"{value:,.0f}"


def page(title: str, chains: list[Chain], pictures: list[Picture]) -> str:
    """Return the whole page."""
    style = STYLE
    for number, colour in enumerate(LIGHT.lines):
        style = style.replace(f"C{number}L", colour)
    dark = "".join(f" .key.c{i} {{ background:{c}; }}" for i, c in enumerate(DARK.lines))
    style += "@media (prefers-color-scheme: dark) {" + dark + " }"
    runs = [run for chain in chains for run in chain.runs]
    parts = [
        "<header><div>",
        f"<h1>{escape(title)}</h1>",
        f'<p class="sub">{escape(_subtitle(runs))}</p></div>',
        '<button type="button">light / dark</button></header>',
    ]
    for number, chain in enumerate(chains):
        parts.append(
            f'<div class="chain"><span class="key c{number % 6}"></span>{escape(chain.title)}</div>'
        )
        parts.append(tiles(_headline(chain)))
        parts += [
            f'<div class="warn">{escape(run.path.name)}: {escape(found)}</div>'
            for run in chain.runs for found in run.found
        ]  # fmt: skip
    parts.append('<h2>Curves</h2><div class="pictures">')
    for picture in pictures:
        kind = ' class="wide"' if picture.wide else ""
        note = f'<p class="note">{escape(picture.note)}</p>' if picture.note else ""
        parts.append(
            f"<figure{kind}><figcaption>{escape(picture.title)}</figcaption>"
            f'<img class="light" alt="{escape(picture.title)}" src="{picture.uri("light")}">'
            f'<img class="dark" alt="" src="{picture.uri("dark")}">{note}</figure>'
        )
    parts.append("</div>")
    parts.append("<h2>Runs</h2>" + _run_table(runs))
    parts.append(_score_table(runs))
    parts.append(_data_section(runs))
    parts.append(_repeat_section(runs))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body><main>"
        + "\n".join(part for part in parts if part)
        + f"</main><script>{SCRIPT}</script></body></html>\n"
    )


def _subtitle(runs: list[RunView]) -> str:
    sizes = []
    for run in runs:
        model = run.config.get("model", {})
        size = f"{model.get('num_hidden_layers')} layers of {model.get('hidden_size')}"
        if size not in sizes:
            sizes.append(size)
    return f"BERT, {' and '.join(sizes)}; {len(runs)} run{'s' if len(runs) > 1 else ''}"


def _headline(chain: Chain) -> list[tuple[str, str]]:
    values: list[tuple[str, str]] = []
    last = chain.runs[-1]
    if last.validation:
        line = last.validation[-1]
        values.append((f"{line['mlm_loss']:.3f}", "masked-LM loss, held out"))
        values.append((f"{line['mlm_accuracy']:.1%}", "masked-LM accuracy, held out"))
        if "nsp_accuracy" in line:
            values.append((f"{line['nsp_accuracy']:.1%}", "next-sentence accuracy, held out"))
    tokens = sum(run.train[-1]["tokens"] for run in chain.runs if run.train)
    values.append((short(tokens), "real tokens seen"))
    values.append((in_words(sum(run.hours for run in chain.runs) * 3600), "training time"))
    speed, mfu = last.typical("tokens_per_second"), last.typical("mfu")
    if mfu is not None:
        values.append((f"{mfu:.1%}", "MFU, median"))
    elif speed is not None:
        values.append((short(speed), "tokens per second, median"))
    stalled = sum(run.stalled_seconds for run in chain.runs)
    hours = sum(run.hours for run in chain.runs)
    values.append((f"{stalled / max(1e-9, hours * 3600):.1%}", "of the time in loader stalls"))
    return values


def _run_table(runs: list[RunView]) -> str:
    rows = []
    for run in runs:
        line = run.train[-1] if run.train else {}
        speed, memory = run.typical("tokens_per_second"), line.get("memory_gib")
        rows.append(
            [
                run.title,
                "done" if run.done else "not finished",
                f"{run.last_step:,} / {run.total_steps:,}",
                run.config.get("data", {}).get("sequence_length", ""),
                f"{run.deepspeed.get('train_batch_size', 0):,}",
                _optimizer(run),
                f"{speed:,.0f}" if speed else "",
                in_words(run.hours * 3600),
                f"{run.stalled_seconds:.1f} s",
                len(run.restarts),
                line.get("skipped_steps", ""),
                f"{memory:.2f}" if memory else "",
            ]
        )
    head = ["run", "state", "steps", "length", "batch", "optimizer", "tokens/s", "time", "stalls",
            "restarts", "skipped", "GiB"]  # fmt: skip
    return table(head, rows, numbers=(2, 3, 4, 6, 7, 8, 9, 10, 11))


def _optimizer(run: RunView) -> str:
    section = run.deepspeed.get("optimizer", {})
    numbers = section.get("params", {})
    variant = f" ({numbers['variant']})" if "variant" in numbers else ""
    stage = run.deepspeed.get("zero_optimization", {}).get("stage", 0)
    return f"{section.get('type', '')}{variant}, lr {numbers.get('lr', 0):g}, ZeRO {stage}"


def _score_table(runs: list[RunView]) -> str:
    scored = [run for run in runs if run.scores]
    if not scored:
        return ""
    keys = list(dict.fromkeys(key for run in scored for key in run.scores))
    rows = [
        [run.title, *(f"{run.scores[k]:.4g}" if k in run.scores else "" for k in keys)]
        for run in scored
    ]
    head = ["run", *(key.replace("_", " ") for key in keys)]
    return "<h2>Scores on held-out documents</h2>" + table(
        head, rows, numbers=tuple(range(1, len(head)))
    )


def _data_section(runs: list[RunView]) -> str:
    seen: dict[str, RunView] = {}
    for run in runs:
        if run.manifest:
            seen.setdefault(run.config["data"]["path"], run)
    parts = []
    for path, run in seen.items():
        data = run.manifest
        documents = data.get("documents", {})
        dropped = documents.get("dropped", {})
        words = ", ".join(f"{count:,} {reason.replace('_', ' ')}" for reason, count in
                          sorted(dropped.items(), key=lambda item: -item[1]))  # fmt: skip
        rows = [
            ["folder", path],
            ["documents", f"{documents.get('written', 0):,} of {documents.get('read', 0):,} read"
             + (f"; dropped: {words}" if words else "")],
        ]  # fmt: skip
        rows += [
            [name, f"{split.get('documents', 0):,} documents, {split.get('sentences', 0):,} "
             f"sentences, {split.get('tokens', 0):,} tokens"]
            for name, split in data.get("splits", {}).items()
        ]  # fmt: skip
        rows += [
            [f"source: {source.get('name', '')}", f"{source.get('kind', '')}, "
             f"{source.get('licence', '')}: "
             + ", ".join(file["name"] for file in source.get("files", [])[:4])
             + (" ..." if len(source.get("files", [])) > 4 else "")]
            for source in data.get("sources", [])
        ]  # fmt: skip
        tokenizer = data.get("tokenizer", {})
        rows.append(["tokenizer", f"{tokenizer.get('vocab_size', 0):,} words, "
                     f"{'lower case' if tokenizer.get('lower_case') else 'cased'}, fingerprint "
                     f"{str(tokenizer.get('fingerprint', ''))[:16]}"])  # fmt: skip
        parts.append(table(["data", ""], rows))
    return "<h2>Data</h2>" + "".join(parts) if parts else ""


def _repeat_section(runs: list[RunView]) -> str:
    parts = ["<h2>To repeat it</h2>"]
    for run in runs:
        commands: list[str] = []
        for start in run.environment.get("starts", []):
            if not commands or commands[-1] != start["command"]:
                commands.append(start["command"])
        versions = run.environment.get("packages", {})
        words = ", ".join(f"{name} {number}" for name, number in versions.items())
        parts.append(
            f'<div class="card"><pre>{escape(chr(10).join(commands) or run.path)}</pre>'
            f'<p class="note">bertds {escape(run.environment.get("bertds", ""))}, commit '
            f"{escape(run.environment.get('commit') or 'unknown')}, Python "
            f"{escape(run.environment.get('python', ''))}, {escape(words)}</p>"
            f"{_details(run)}</div>"
        )
    if len(runs) > 1:
        parts.append(_differences(runs))
    return "".join(parts)


def _details(run: RunView) -> str:
    lines = "\n".join(f"{key}: {value}" for key, value in run.settings().items())
    return (
        f"<details><summary>every setting of {escape(run.title)}</summary>"
        f"<pre>{escape(lines)}</pre></details>"
    )


def _differences(runs: list[RunView]) -> str:
    settings = [run.settings() for run in runs]
    keys = list(dict.fromkeys(key for values in settings for key in values))
    rows = []
    for key in keys:
        values = [str(found.get(key, "")) for found in settings]
        if len(set(values)) > 1 and key != "run.dir":
            rows.append([key, *values])
    head = ["setting", *(run.title for run in runs)]
    return "<h2>Settings in which the runs differ</h2>" + table(head, rows) if rows else ""
