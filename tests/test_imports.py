from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

# From left to right: a module may import only what stands to its left (or in its own room).
LAYERS = [
    {"__init__", "errors"},
    {"system"},
    {"display"},
    {"config", "recipes"},
    {"model", "data", "optim"},
    {"device_clock", "cost_model"},
    {"distributed"},
    {"engine"},
    {"checkpoint"},
    {"monitor"},
    {"pretrained"},
    {"training"},
    {"train"},
    {"finetune", "plan", "report", "doctor", "pipeline", "commands"},
    {"cli", "__main__"},
]
ROOMS_APART = ({"model", "data", "optim"},)
HEAVY = {"torch", "deepspeed", "transformers", "datasets", "wandb", "matplotlib", "pandas"}


def rank(room: str) -> int:
    for number, rooms in enumerate(LAYERS):
        if room in rooms:
            return number
    return len(LAYERS)  # everything else comes after train and is free among itself


def imports(path: Path) -> list[tuple[str, bool]]:
    """Every imported module, and whether the import stands at the top level of the file."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    top = set(map(id, tree.body))
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, id(node) in top) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found.append((node.module, id(node) in top))
            found += [(f"{node.module}.{alias.name}", id(node) in top) for alias in node.names]
    return found


def files(package: str, repository: Path) -> list[Path]:
    return sorted((repository / package).rglob("*.py"))


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else "__init__"


def test_imports_run_one_way(repository: Path) -> None:
    backward = []
    for path in files("bertds", repository):
        relative = path.relative_to(repository / "bertds")
        own = relative.parts[0].removesuffix(".py")
        for module, _ in imports(path):
            if not module.startswith("bertds."):
                continue
            target = room_of(module)
            if (
                not (repository / "bertds" / target).is_dir()
                and not (repository / "bertds" / f"{target}.py").is_file()
            ):
                continue  # `from bertds import __version__`
            apart = any(own in rooms and target in rooms for rooms in ROOMS_APART)
            if own != target and (rank(target) > rank(own) or apart):
                backward.append(f"{relative} imports {module}")
    assert backward == []


def test_a_backward_import_is_noticed() -> None:
    assert rank("data") > rank("config") and rank("engine") > rank("optim")
    assert rank("commands") > rank("train") > rank("training") > rank("checkpoint")


def test_only_the_engine_imports_deepspeed(repository: Path) -> None:
    guilty = [
        str(path.relative_to(repository))
        for package in ("bertds", "data_prep")
        for path in files(package, repository)
        for module, _ in imports(path)
        if module.split(".")[0] == "deepspeed"
        and path.relative_to(repository).parts[:2] != ("bertds", "engine")
    ]
    assert guilty == []


def test_data_prep_uses_little_of_bertds_and_no_torch(repository: Path) -> None:
    allowed = {"errors", "system", "data", "__init__", "display"}
    guilty = []
    for path in files("data_prep", repository):
        for module, _ in imports(path):
            if module.split(".")[0] in HEAVY - {"datasets", "matplotlib"}:
                guilty.append(f"{path.name} imports {module}")
            room = room_of(module)
            exists = (repository / "bertds" / f"{room}.py").is_file() or (
                repository / "bertds" / room
            ).is_dir()
            if module.startswith("bertds.") and exists and room not in allowed:
                guilty.append(f"{path.name} imports {module}")
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
def test_a_python_without_the_packages_is_told_where_they_are(
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


def test_json_of_others_is_read_in_one_way(repository: Path) -> None:
    """``json.loads`` raises RecursionError for deep nesting, which no reader expects."""
    own = {"bertds/system/json_fields.py", "bertds/engine/ds_config.py",
           "bertds/distributed/heartbeat.py"}  # fmt: skip
    found = {
        str(path.relative_to(repository))
        for package in ("bertds", "data_prep")
        for path in files(package, repository)
        if re.search(r"\bjson\.loads?\(|\byaml\.(safe_)?load\(", path.read_text(encoding="utf-8"))
    }
    assert found == {*own, "bertds/system/yaml_text.py"}
