"""No shell, no evaluation of text, no pickle: what the four packages' own code may not call."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(p for floor in ("distill", "objectives", "students", "teachers") for p in (ROOT / floor).rglob("*.py"))
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "pty", "commands"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.full_load",
}
CALLS |= {"yaml.unsafe_load", "subprocess.getoutput", "subprocess.getstatusoutput", "pandas.read_pickle"}
LOADS = ("torch.load", "torch.hub.load", "np.load", "numpy.load")


def dangers(source):
    """(line, what) of everything in a file that can run what it reads."""
    tree = ast.parse(source)
    names = {}  # local name → what was imported under it
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {
                (a.asname or a.name.partition(".")[0]): (a.name if a.asname else a.name.partition(".")[0])
                for a in node.names
            }
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((node.lineno, m) for m in modules if m.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        head, dot, rest = ast.unparse(node.func).partition(".")
        called = names.get(head, head) + dot + rest
        keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in CALLS or called.startswith(("os.exec", "os.spawn")):
            yield node.lineno, called
        if keywords.get("shell", "False") != "False":
            yield node.lineno, f"{called} with a shell"
        if called in LOADS and (keywords.get("weights_only") != "True" and called.startswith("torch")):
            yield node.lineno, f"{called} without weights_only=True"
        if keywords.get("allow_pickle", "False") != "False" or keywords.get("weights_only", "True") != "True":
            yield node.lineno, f"{called} of pickles"
        if (
            re.search(r"(^|\.)Auto\w+\.from_pretrained$", called)
            and head not in ("self", "super")
            and "trust_remote_code" not in keywords
        ):
            yield node.lineno, f"{called} without trust_remote_code, so that it asks on the terminal"


def test_there_are_files():
    assert len(FILES) > 40


@pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(ROOT)) for p in FILES])
def test_no_code_of_ours_runs_what_it_reads(path):
    assert list(dangers(path.read_text("utf-8"))) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from pickle import load", "import dill as d", "eval(x)", "exec(x)", "import os\nos.system(x)",
        "from os import system\nsystem(x)", "import os as o\no.popen(x)",
        "import subprocess\nsubprocess.run(x, shell=True)",
        "import subprocess\nsubprocess.run(x, shell=flag)", "import torch\ntorch.load(x)",
        "import torch\ntorch.load(x, weights_only=False)", "import torch as t\nt.load(x)",
        "from torch import load\nload(x)",
        "import numpy as np\nnp.load(x, allow_pickle=True)", "import yaml\nyaml.load(x, Loader=L)",
        "from yaml import unsafe_load as safe\nsafe(x)", "import os\nos.execvp(x, y)",
        "from transformers import AutoTokenizer\nAutoTokenizer.from_pretrained(x)",
    ],
)  # fmt: skip
def test_the_check_sees_what_it_is_for(source):
    assert list(dangers(source))


def test_the_check_lets_safe_loads_pass():
    source = "import torch, yaml, subprocess\ntorch.load(x, weights_only=True)\nyaml.safe_load(x)\nsubprocess.run([x])"
    assert list(dangers(source)) == []
