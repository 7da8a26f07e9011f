"""The output of ``gpu_check.py``: one table per stage, the promises, and a picture.

Figures are numbers with a name, such as ``passes large 128: rows/s``. ``TARGETS`` has the promise
for each. Figures of the H100's speed are judged on an H100 only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from benchmarks.step_report import rows_per_step

Lines = list[list[str]]


class Target(NamedTuple):
    """What one figure was promised to be."""

    figure: str
    wanted: float
    aim: float | None = None
    at_most: bool = False
    """A limit from above instead of from below."""
    only: str = ""
    """The GPU that it was promised for; "" = any."""
    form: str = "{:.2f}"

    def holds(self, found: float) -> bool:
        """Return whether a figure keeps the promise."""
        return found <= self.wanted if self.at_most else found >= self.wanted


TARGETS = [
    Target("tests: failed", 0, at_most=True, form="{:.0f}"),
    Target("passes large 128: rows/s", 2100, 2400, only="h100", form="{:,.0f}"),
    Target("step large 128: times transformers", 1.8),
    Target("step large 512: times transformers", 3.0),
    Target("step base 128: times transformers", 1.8),
    Target("step base 512: times transformers", 3.0),
    Target("optimizer: LAMB / fused AdamW", 1.7, at_most=True),
    Target("run large 128: MFU", 0.40, 0.45, only="h100", form="{:.1%}"),
    Target("run large 512: MFU", 0.38, 0.45, only="h100", form="{:.1%}"),
    Target("run base 128: MFU", 0.35, only="h100", form="{:.1%}"),
    Target("run large 128: stalls", 0.01, at_most=True, form="{:.2%}"),
    Target("run large 512: stalls", 0.01, at_most=True, form="{:.2%}"),
    Target("run base 128: stalls", 0.01, at_most=True, form="{:.2%}"),
]


def judge(figures: dict[str, float], gpu: str | None) -> list[dict[str, Any]]:
    """Return PASS or FAIL for each promised figure; "-" where it is not there or not judged.

    Args:
        figures: what was measured.
        gpu: name in the table of GPUs, "" for a GPU that is not in it, None for a CPU.
    """
    verdicts = []
    for target in TARGETS:
        found = figures.get(target.figure)
        judged = found is not None and gpu is not None and target.only in ("", gpu)
        verdict = "-"
        if found is not None and (judged or target.figure.startswith("tests")):
            verdict = "PASS" if target.holds(found) else "FAIL"
        verdicts.append(
            {
                "figure": target.figure,
                "found": found,
                "wanted": target.wanted,
                "aim": target.aim,
                "at_most": target.at_most,
                "only": target.only,
                "verdict": verdict,
            }
        )
    return verdicts


def verdict_lines(verdicts: list[dict[str, Any]]) -> list[str]:
    """Return one printed line per promised figure."""
    lines = []
    for target, row in zip(TARGETS, verdicts, strict=True):
        found = "not measured" if row["found"] is None else target.form.format(row["found"])
        sign = "at most" if target.at_most else "at least"
        text = f"{sign} {target.form.format(target.wanted)}"
        if target.aim is not None:
            text += f" (aim {target.form.format(target.aim)})"
        if target.only:
            text += f", {target.only.upper()}"
        lines.append(f"{row['verdict']:<5}{target.figure:<38}{found:>13}   {text}")
    return lines


def table(lines: Lines) -> str:
    """Return rows of cells as text in columns; the first column is left-aligned."""
    widths = [max(len(row[column]) for row in lines) for column in range(len(lines[0]))]
    return "\n".join(
        "  "
        + row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))
        for row in lines
    )


# -- one function per kind of stage: the result of its process becomes a table and figures --------


def machine(result: dict[str, Any]) -> Lines:
    """Show what is measured on."""
    return (
        [["", result["machine"]]]
        + [
            [key, str(result[key])]
            for key in ("memory_gib", "capability", "driver")
            if result.get(key)
        ]
        + [[name, number] for name, number in result["versions"].items()]
    )


def ceilings(result: dict[str, Any]) -> Lines:
    """Show the products' and the copy's rates."""
    size = result["matmul_size"]
    lines = [["", "rate"], [f"product {size} cubed", f"{result['matmul_tflops']:,.3g} TFLOP/s"]]
    for name, rate in result.get("products_tflops", {}).items():
        lines.append([f"product {name}", f"{rate:,.3g} TFLOP/s"])
    if "copy_tb_s" in result:
        lines.append(["copy", f"{result['copy_tb_s']:.3g} TB/s"])
    return lines


def tests(result: dict[str, Any]) -> Lines:
    """Show each check of the GPU suite."""
    lines = [["check", "seconds", "", ""]]
    for check in result["checks"]:
        lines.append(
            [check["name"], f"{check['seconds']:.1f}", check["verdict"], check["why"][:90]]
        )
    return lines


def attention(result: dict[str, Any]) -> Lines:
    """Show attention's time by kernel."""
    lines = [[f"{result['tokens']:,} tokens, {result['rows']} rows", "ms", "host ms"]]
    for name, row in result["kernels"].items():
        lines.append([name, f"{row['ms']:.2f}", f"{row['host_ms']:.2f}"])
    return lines


def passes(result: dict[str, Any]) -> Lines:
    """Show forward and backward of the model alone."""
    lines = [
        [
            f"{result['rows']} rows, {result['tokens']:,} tokens",
            "ms",
            "rows/s",
            "tokens/s",
            "MFU",
            "host ms",
            "GiB",
            "first s",
        ]
    ]
    for name, row in result["variants"].items():
        lines.append(
            [
                name,
                f"{row['ms']:.1f}",
                f"{row['rows_per_second']:,.0f}",
                f"{row['tokens_per_second']:,.0f}",
                percent(row.get("mfu")),
                f"{row['host_ms']:.1f}",
                f"{row['memory_gib']:.1f}" if "memory_gib" in row else "-",
                f"{row['first_seconds']:.1f}",
            ]
        )
    return lines


def step(result: dict[str, Any]) -> Lines:
    """Show a whole step of ours and of transformers'."""
    [line] = result["lines"]
    rows = rows_per_step(line)
    head = f"{rows}, {line['padding']:.1%} padding: {line['speedup']:.2f} times"
    lines = [[head, "s/step", "tokens/s", "MFU"]]
    for name in ("bertds", "transformers"):
        row = line[name]
        lines.append(
            [
                name,
                f"{row['median_seconds']:.3f}",
                f"{row['real_tokens_per_second']:,.0f}",
                percent(row.get("mfu")),
            ]
        )
    return lines


def optimizer(result: dict[str, Any]) -> Lines:
    """Show the optimizers' times."""
    [(size, rows)] = result["sizes"].items()
    lines = [[f"BERT-{size}", "ms", "times AdamW"]]
    for name, row in rows.items():
        lines.append([name, f"{row['median_ms']:.2f}", f"{row['ratio']:.2f}"])
    return lines


def run(result: dict[str, Any]) -> Lines:
    """Show what a training run measured."""
    lines = [["", f"{result['steps']} steps of {result['rows']} rows"]]
    lines += [
        ["rows/s", f"{result['rows_per_second']:,.0f}"],
        ["tokens/s", f"{result['tokens_per_second']:,.0f}"],
        ["MFU", percent(result.get("mfu"))],
        ["stalls", f"{result['stalls']:.2%}"],
        ["optimizer", f"{result['optimizer_share']:.1%} of the time"],
        ["memory", f"{result['memory_gib']:.1f} GiB"],
        ["loss", f"{result['first_loss']:.3f} to {result['last_loss']:.3f}"],
    ]
    return lines


def percent(share: float | None) -> str:
    """Return a share in words; "-" where it is not known."""
    return "-" if share is None else f"{share:.1%}"


TABLES: dict[str, Callable[[dict[str, Any]], Lines]] = {
    "machine": machine,
    "ceilings": ceilings,
    "tests": tests,
    "attention": attention,
    "passes": passes,
    "step": step,
    "optimizer": optimizer,
    "run": run,
}


def figures_of(name: str, result: dict[str, Any]) -> dict[str, float]:
    """Return the numbers of a stage that are promised or drawn, by name."""
    kind = name.split()[0]
    if kind == "tests":
        failed = sum(check["verdict"] == "FAIL" for check in result["checks"])
        return {"tests: failed": failed}
    if kind == "passes":
        best = max(result["variants"].values(), key=lambda row: row["rows_per_second"])
        found = {f"{name}: rows/s": best["rows_per_second"], f"{name}: MFU": best.get("mfu")}
    elif kind == "step":
        [line] = result["lines"]
        found = {f"{name}: times transformers": line["speedup"]}
    elif kind == "optimizer":
        [rows] = result["sizes"].values()
        found = {"optimizer: LAMB / fused AdamW": rows["bertds Lamb nvidia"]["ratio"]}
    elif kind == "run":
        found = {f"{name}: MFU": result.get("mfu"), f"{name}: stalls": result["stalls"]}
    else:
        found = {}
    return {key: value for key, value in found.items() if value is not None}


def paint(result: dict[str, Any]) -> Callable[[Any], None]:
    """Return a function that draws MFU, speed compared with transformers', and attention."""
    figures = result["figures"]
    shares = {n: v for n, v in figures.items() if n.endswith("MFU")}
    ratios = {n: v for n, v in figures.items() if n.endswith("times transformers")}
    kernels = {
        f"{name.removeprefix('attention ')}: {kernel}": row["ms"]
        for name, stage in result["stages"].items()
        if name.startswith("attention")
        for kernel, row in stage.get("result", {}).get("kernels", {}).items()
    }
    wanted = {target.figure: target.wanted for target in TARGETS}

    def fill(figure: Any) -> None:
        panels = (
            ("share of the peak (MFU)", shares),
            ("times as fast as transformers", ratios),
            ("attention, forward and backward, ms", kernels),
        )
        for axes, (title, values) in zip(figure.subplots(1, 3), panels, strict=True):
            names = [name.rsplit(":", 1)[0] if values is not kernels else name for name in values]
            axes.barh(names, list(values.values()), color="C0")
            for number, name in enumerate(values):
                if name in wanted:
                    axes.plot([wanted[name]] * 2, [number - 0.4, number + 0.4], color="C3")
            axes.invert_yaxis()
            axes.set_title(title, fontsize=9)
            axes.tick_params(labelsize=7)
        figure.suptitle(f"{result['machine']}, {result['date']}; red: minimum", fontsize=10)

    return fill
