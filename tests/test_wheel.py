"""What people install: the wheel, in an environment of its own, outside the checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OURS = ("distill", "fewstep", "objectives", "students", "teachers")


def test_every_package_is_in_the_wheel():
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]["packages"]
    there = {
        ".".join(path.parent.relative_to(ROOT).parts) for name in OURS for path in ROOT.glob(f"{name}/**/__init__.py")
    }
    assert set(listed) == there | {"distill.configs"}


def run(*words, cwd, **environment):
    plain = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    process = subprocess.run(
        [str(word) for word in words], cwd=cwd, capture_output=True, text=True, timeout=200, env=plain | environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return process.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an environment that has the wheel, and our dependencies by a path to where they are."""
    folder = tmp_path_factory.mktemp("wheel")
    (folder / "source").mkdir()
    for name in (*OURS, "configs"):
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    # the environment's own setuptools builds it: no registry is asked
    run(*pip, "wheel", folder / "source", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, cwd=folder)
    [wheel] = folder.glob("*.whl")
    venv.create(folder / "venv")
    run(*pip, "--python", folder / "venv" / "bin" / "python", "install", "--no-deps", wheel, cwd=folder)
    [packages] = (folder / "venv" / "lib").glob("python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib"))  # without what it links to in turn
    return folder / "venv" / "bin"


def test_it_writes_distils_and_is_imported_from_nowhere_else(installed, tmp_path):
    where = run(
        installed / "python", "-c", "import distill, fewstep; print(fewstep.__file__, distill.__file__)", cwd=tmp_path
    )
    assert all(str(installed.parent) in place for place in where.split())
    shutil.copy(ROOT / "docs" / "novels-seeds.json", tmp_path / "comparison.json")
    run(installed / "fewstep", "report", tmp_path, cwd=tmp_path)  # of templates, which are no Python
    assert "<svg" in (tmp_path / "report.html").read_text("utf-8")
    text = run(
        installed / "fewstep", "generate", "bundled:teacher", "--steps", 2, "--length", 16, "--seed", 0, cwd=tmp_path
    )
    assert len(text) > 1
    small = ["train.updates=1", "train.batch=4", "length=16", "evaluate.every=null"]
    run(installed / "fewstep", "distill", "bundled:quickstart", *small, cwd=tmp_path)
    assert (tmp_path / "runs" / "quickstart" / "checkpoints" / "update-00000001").is_dir()
