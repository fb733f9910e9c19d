"""Who may import whom, and what a verb wakes: imports lead downward, and a dependency comes with its verb."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.distill.test_generate import write_student

ROOT = Path(__file__).parents[1]
FLOORS = ["teachers", "students", "objectives", "distill", "fewstep"]
ROOMS = [
    "runtime", "pages", "config", "data", "models", "finished", "generation", "completions", "export", "evaluation",
    "training", "comparison", "report", "planning", "commands", "cli", "__main__",
]  # fmt: skip
HEAVY = {
    "accelerate",
    "datasets",
    "deepspeed",
    "lm_eval",
    "matplotlib",
    "pandas",
    "peft",
    "pyarrow",
    "torch",
    "transformers",
    "wandb",
}


def modules():
    """Every module of the house, and what it imports of it, wherever in the file the import stands."""
    for floor in FLOORS:
        for path in sorted((ROOT / floor).rglob("*.py")):
            name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            yield name, set(imports(ast.parse(path.read_text("utf-8"))))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            # "from distill import models" imports a module, "from distill.models import load" one's name
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.partition(".")[0] in FLOORS)


def rank(name, order, part):
    parts = name.split(".")
    return order.index(parts[part]) if len(parts) > part else -1


def test_floors_import_downward():
    upward = [
        f"{module} imports {name}"
        for module, names in modules()
        for name in names
        if rank(name, FLOORS, 0) > rank(module, FLOORS, 0)
    ]
    assert not upward


def test_rooms_import_downward():
    upward = [
        f"{module} imports {name}"
        for module, names in modules()
        for name in names
        if module.startswith("distill.")
        and name.startswith("distill.")
        and rank(name, ROOMS, 1) > rank(module, ROOMS, 1)
    ]
    assert not upward


def test_commands_are_imported_by_the_command_line_alone():
    """Not by another room, nor by another command, nor by the facade."""
    used = [
        f"{module} imports {name}"
        for module, names in modules()
        for name in names
        if name.startswith("distill.commands.") and not module.startswith("distill.cli.")
    ]
    assert not used


def test_the_lists_above_name_every_floor_and_room():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")} - {"tests"}
    assert packages == set(FLOORS)
    assert {path.stem for path in (ROOT / "distill").iterdir() if path.name[0] not in "._"} - {"__init__"} <= set(ROOMS)


def woken(*arguments: str, code: int = 0) -> set[str]:
    """The heavy modules that a command, or Python's ``-c``, has imported when it is done."""
    words = ["-X", "importtime", *arguments]
    process = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == code, process.stderr[-2000:]
    lines = [line.rpartition("|")[2].strip() for line in process.stderr.splitlines() if line.startswith("import time:")]
    return HEAVY & {name for line in lines for name in (line, line.partition(".")[0])}


@pytest.mark.parametrize(
    "words",
    [
        ["-c", "import fewstep; assert 'IntegralKL' in dir(fewstep)"],
        ["-c", "import teachers, students, objectives, distill, fewstep"],
        ["-m", "distill", "--help"],
        ["-m", "distill", "teachers"],
        *(
            ["-m", "distill", verb, "--help"]
            for verb in ("distill", "generate", "evaluate", "export", "compare", "report")
        ),
    ],
)
def test_a_glance_wakes_nothing(words):
    assert woken(*words) == set()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_student(tmp_path_factory.mktemp("imports") / "export", only="x")


def test_writing_with_an_export_wakes_torch_and_transformers_alone(export):
    assert woken("-m", "distill", "generate", export, "--seed", "0") <= {"torch", "transformers", "accelerate"}


def test_a_verb_wakes_what_it_needs(tmp_path):
    """One process needs no DeepSpeed, a student without an adapter no PEFT, rows of the teacher no datasets."""
    writing = {"torch", "transformers", "accelerate"}
    run, small = tmp_path / "run", ["train.updates=1", "train.batch=4", "length=8", "evaluate.every=null"]
    assert woken("-m", "distill", "distill", "bundled:smoke", *small, "--run", str(run)) <= writing | {"matplotlib"}
    few = ["samples=4", "steps=[2]", "teacher_steps=2", "bootstrap=5"]
    assert woken("-m", "distill", "evaluate", str(run), *few) <= writing | {"matplotlib"}
    assert woken("-m", "distill", "export", str(run), "--out", str(tmp_path / "out")) <= writing


LOADED = """
import sys
from distill.cli import app
try:
    app(sys.argv[1:])
except SystemExit as end:
    assert not end.code
print(*sorted(name for name in sys.modules if name.startswith(("distill", "objectives"))), file=sys.stderr)
"""


def test_writing_with_an_export_loads_no_loop_and_no_config(export):
    process = subprocess.run(
        [sys.executable, "-c", LOADED, "generate", export, "--seed", "0"], cwd=ROOT, capture_output=True, text=True,
        timeout=120, check=True,
    )  # fmt: skip
    names = process.stderr.splitlines()[-1].split()
    assert "distill.generation" in names
    assert not [name for name in names if name.startswith(("distill.training.", "distill.config.", "objectives."))]
    assert not [name for name in names if name.startswith(("distill.evaluation.", "distill.comparison."))]


def test_help_is_told_at_once():
    """Beside what Python and torch take here and now: other work on the machine slows all three."""

    def seconds(*words):
        best = min(_seconds(*words) for _ in range(3))
        return best

    assert seconds("-m", "distill", "--help") < 0.3 * seconds("-c", "import torch")
    assert seconds("-c", "import fewstep") < 0.3 * seconds("-c", "import torch")


def _seconds(*words):
    start = time.perf_counter()
    subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True)
    return time.perf_counter() - start
