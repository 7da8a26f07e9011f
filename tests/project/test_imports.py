"""The order of the packages: imports run one way, also those hidden in functions."""

from __future__ import annotations

import ast
import re
import resource
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.support.made_runs import make_run, train_line

# From left to right, one line a floor: a module may import what is above its line, and its own
# package. Packages on one line do not know each other.
ORDER = """
bertds.__init__ bertds.errors
bertds.system
bertds.display
bertds.config bertds.recipes
bertds.model bertds.data bertds.optim
bertds.cost_model
bertds.distributed
bertds.engine
bertds.checkpoint
bertds.monitor
bertds.pretrained
bertds.training
bertds.train
data_prep.__init__ data_prep.document data_prep.clean data_prep.progress
data_prep.workers data_prep.tokens
data_prep.wiki
data_prep.sources
data_prep.selection
data_prep.settings
data_prep.stages
data_prep.earlier_run
data_prep.report
data_prep.request data_prep.store_output
data_prep.resolve data_prep.dry_run
data_prep.run_stages
data_prep.prepare data_prep.option_parser
data_prep.options
data_prep.launch
data_prep.build_wiki_books
bertds.finetune bertds.plan bertds.report bertds.doctor
bertds.pipeline
bertds.api
bertds.commands
bertds.cli
bertds.__main__
"""
FLOORS = {room: n for n, line in enumerate(ORDER.split("\n")) for room in line.split()}
# Preparation runs on machines without torch: of bertds it may import these.
FOR_PREPARATION = {"errors", "system", "display", "config", "data", "__init__"}
HEAVY = {"torch", "deepspeed", "transformers", "datasets", "wandb", "matplotlib", "pandas"}


def read_sources(repository: Path) -> dict[str, str]:
    """Every module of both packages by its dotted name, with its text."""
    return {
        ".".join(path.relative_to(repository).with_suffix("").parts): path.read_text("utf-8")
        for package in ("bertds", "data_prep")
        for path in sorted((repository / package).rglob("*.py"))
    }


@cache
def imported_names(source: str, *, of_types: bool = True) -> set[str]:
    """Every imported module, and every name imported from one, wherever the import is."""
    tree = ast.parse(source)
    skipped = set()
    if not of_types:
        for node in ast.walk(tree):
            if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
                skipped |= set(map(id, ast.walk(node)))
    found = set()
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "relative imports hide where a module stands"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def module_of(name: str, modules: dict[str, str]) -> str | None:
    """Return the module of ours that an imported name is, or is in; None for others' code."""
    while name:
        if name in modules:
            return name
        if f"{name}.__init__" in modules:
            return f"{name}.__init__"
        name = name.rpartition(".")[0]
    return None


def room_of(module: str) -> str:
    return ".".join(module.split(".")[:2])


def arrows(modules: dict[str, str], *, of_types: bool = True) -> list[tuple[str, str]]:
    """Which module imports which, among ours."""
    return [
        (module, target)
        for module, source in modules.items()
        for name in sorted(imported_names(source, of_types=of_types))
        if (target := module_of(name, modules)) and target != module
    ]


def backward(modules: dict[str, str]) -> list[str]:
    """Imports of a package on the same floor or on one further down."""
    return [
        f"{module} imports {target}"
        for module, target in arrows(modules)
        if room_of(module) != room_of(target)
        and FLOORS[room_of(target)] >= FLOORS[room_of(module)]
        and not target.endswith("__init__")
    ]


def circles(modules: dict[str, str]) -> list[set[str]]:
    """Groups of modules that import each other, directly or around corners."""
    targets: dict[str, set[str]] = {module: set() for module in modules}
    for module, target in arrows(modules, of_types=False):
        targets[module].add(target)

    def reached(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            for target in targets[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        return seen

    all_reached = {module: reached(module) for module in modules}
    return [
        {other for other in seen if module in all_reached[other]}
        for module, seen in all_reached.items()
        if module in seen
    ]


def test_every_module_has_its_place_and_imports_run_one_way(repository: Path) -> None:
    modules = read_sources(repository)
    assert {room_of(module) for module in modules} == set(FLOORS)
    assert backward(modules) == []


def test_no_modules_import_each_other(repository: Path) -> None:
    assert circles(read_sources(repository)) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("bertds.system.logs", "from bertds.config.recipe import Config"),
        ("bertds.model.bert", "import bertds.data.loader"),  # strangers on one floor
        ("bertds.optim.lamb", "def later():\n    from bertds import train"),
        ("data_prep.sources.books", "def later():\n    from data_prep.prepare import prepare"),
    ],
)
def test_a_planted_backward_import_is_noticed(repository: Path, module: str, line: str) -> None:
    modules = read_sources(repository)
    modules[module] += f"\n{line}\n"
    assert len(backward(modules)) == 1 and backward(modules)[0].startswith(module)


def test_a_planted_circle_is_noticed(repository: Path) -> None:
    modules = read_sources(repository)
    modules["bertds.config.recipe"] += "\ndef later():\n    from bertds.config import load\n"
    assert {"bertds.config.recipe", "bertds.config.load"} <= circles(modules)[0]


def test_few_files_lie_at_the_top_and_no_folder_is_crowded(repository: Path) -> None:
    top = {path.name for path in (repository / "bertds").glob("*.py")}
    assert top == {"__init__.py", "__main__.py", "cli.py", "train.py", "errors.py"}
    for package in ("bertds", "data_prep"):
        for folder in (repository / package).rglob("__init__.py"):
            assert len(list(folder.parent.glob("*.py"))) <= 22, folder.parent


def test_only_the_engine_imports_deepspeed(repository: Path) -> None:
    guilty = [
        module
        for module, source in read_sources(repository).items()
        if any(name.split(".")[0] == "deepspeed" for name in imported_names(source))
        and room_of(module) != "bertds.engine"
    ]
    assert guilty == []


def test_data_prep_uses_little_of_bertds_and_no_torch(repository: Path) -> None:
    modules = read_sources(repository)
    guilty = []
    for module in (name for name in modules if name.startswith("data_prep.")):
        for name in imported_names(modules[module]):
            if name.split(".")[0] in HEAVY - {"datasets", "matplotlib"}:
                guilty.append(f"{module} imports {name}")
            target = module_of(name, modules) or "data_prep"
            if target.startswith("bertds.") and target.split(".")[1] not in FOR_PREPARATION:
                guilty.append(f"{module} imports {name}")
    assert guilty == []


def output_of(code: str) -> str:
    """Run code in a Python of its own, which must end well; return what it printed."""
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout


@pytest.mark.parametrize("module", ["bertds", "bertds.cli", "bertds.train", "bertds.config.load"])
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = (
        f"import sys, {module}\n"
        f"print(sorted(set(m.split('.')[0] for m in sys.modules) & {HEAVY!r}))"
    )
    assert output_of(code).strip() == "[]"


def test_commands_that_only_read_need_no_torch(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", [train_line(step) for step in range(1, 20)])
    code = (
        "import sys\n"
        "sys.modules['torch'] = sys.modules['deepspeed'] = None\n"
        "from bertds.cli import main\n"
        "assert main(['config', 'show', 'large_phase1']) == 0\n"
        "assert main(['plan', '--config', 'large_phase1', '--gpu', 'h100']) == 0\n"
        f"assert main(['status', {str(run)!r}]) == 0\n"
        f"assert main(['report', {str(run)!r}, '--out', {str(tmp_path / 'page')!r}]) == 0\n"
    )
    assert "phase1" in output_of(code)
    assert (tmp_path / "page" / "index.html").is_file()


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--config", "large_phase1", "--gpu", "h100"],
        ["config", "show", "large_phase1"],
        ["status", "RUN"],
        ["report", "--help"],
    ],
)
def test_commands_that_only_read_start_at_once(arguments: list[str], tmp_path: Path) -> None:
    """Under half a second of CPU time, the best of five: other work on the machine adds to it."""
    run = make_run(tmp_path / "run", [train_line(step) for step in range(1, 20)])
    command = [sys.executable, "-m", "bertds", *arguments]
    command = [str(run) if word == "RUN" else word for word in command]

    def seconds() -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    assert any(seconds() < 0.5 for _ in range(5))


def test_preparation_needs_no_torch() -> None:
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"
        "import data_prep.launch, data_prep.prepare, data_prep.report.show_rows\n"
        "import benchmarks.filters, benchmarks.prep, benchmarks.prep_rows\n"
        "import benchmarks.prep_scaling, benchmarks.wikitext\n"
        "from benchmarks.common import PREPARATION_PACKAGES, footer, host_facts\n"
        "print(footer(host_facts('prep.py', [], packages=PREPARATION_PACKAGES)))\n"
    )
    output = output_of(code)
    assert "numba" in output and "torch" not in output


@pytest.mark.parametrize(
    "command",
    [
        ["data_prep/build_wiki_books.py", "--text", "a", "--vocab", "b", "--out", "c"],
        ["data_prep/build_wiki_books.py", "show", "a"],
        ["bertds/train.py", "--config", "a.yaml", "--deepspeed_config", "b.json"],
    ],
)
def test_a_python_without_the_packages_reports_how_to_install_them(
    repository: Path, command: list[str]
) -> None:
    """As when the environment was not activated."""
    done = subprocess.run(
        [sys.executable, "-S", *command], cwd=repository, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "is not installed for" in done.stderr and "make install" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_compiled_loops_need_no_blas() -> None:
    """The first loop does not load scipy.linalg, and whoever needs that later still gets it."""
    code = (
        "import sys, numpy\n"
        "from bertds.system.numba_jit import compiled\n"
        "@compiled\n"
        "def total(values):\n"
        "    return values.sum()\n"
        "assert total(numpy.arange(4.0)) == 6.0\n"
        "assert 'scipy.linalg' not in sys.modules\n"
        "import scipy.linalg\n"
        "assert scipy.linalg.norm([3.0, 4.0]) == 5.0\n"
    )
    output_of(code)


def test_foreign_json_is_read_only_by_checked_readers(repository: Path) -> None:
    """``json.loads`` raises RecursionError for deep nesting, which no reader expects."""
    own = {"bertds.system.json_fields", "bertds.engine.ds_config"}
    own |= {f"bertds.distributed.{name}" for name in ("heartbeat", "last_words", "progress")}
    found = {
        module
        for module, source in read_sources(repository).items()
        if re.search(r"\bjson\.loads?\(|\byaml\.(safe_)?load\(", source)
    }
    assert found == {*own, "bertds.system.yaml_text"}
