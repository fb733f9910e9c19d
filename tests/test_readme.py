"""The README's commands work as printed, on the smoke config so that they end soon."""

import re
import shlex
import subprocess
from typing import Any

from tests.forks import ROOT, fewstep

FASTER = {  # what is appended to a command so that it takes seconds
    "distill": ["train.updates=4", "evaluate.every=null"],
    "evaluate": ["samples=16", "batch=16"],
}


def commands():
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    return [shlex.split(line, comments=True) for block in blocks for line in block.splitlines() if line.strip()]


def test_make_targets_exist():
    targets = {words[1] for words in commands() if words[0] == "make"}
    assert targets == {"quickstart", "test"}
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_fewstep_commands_run_as_printed(tmp_path):
    ran = []
    for words in commands():
        if words[0] != "fewstep":
            continue
        words = [w.replace("configs/quickstart.yaml", "configs/smoke.yaml") for w in words]
        words = [re.sub(r"^runs/", f"{tmp_path}/", w) for w in words]
        words = [w for w in words if w.split("=")[0] not in ("train.updates", "samples")] + FASTER.get(words[1], [])
        written, _ = fewstep(*words[1:])
        ran.append(words[1])
        if words[1] == "generate":
            assert written.count("It was a dark") == 2
    assert ran == ["distill", "evaluate", "report", "export", "generate"]
    assert (tmp_path / "mine" / "report.html").is_file()
    assert (tmp_path / "mine" / "evaluation.png").stat().st_size > 10_000
    assert (tmp_path / "mine-int8" / "model.safetensors").is_file()


def test_the_python_runs_as_printed_at_smaller_sizes(tmp_path, monkeypatch, capsys):
    block = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text("utf-8"), re.DOTALL)
    assert block is not None
    code = block[1]
    smaller = {
        "updates=40": "updates=2",
        "batch=32": "batch=4",
        "length=128": "length=32",
        "samples=256": "samples=8",
        "teacher_samples=128": "teacher_samples=4",
    }
    for size, small in smaller.items():
        assert size in code
        code = code.replace(size, small)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(code, names)
    written = capsys.readouterr().out
    assert written.startswith("She opened the door and")
    assert all(word in written for word in ("teacher", "student", "bigram"))
    assert names["student"].generate(num=2, steps=4, seed=0).tokens.shape == (2, 32)
