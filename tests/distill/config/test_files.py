"""The configs that come with the project: they load, say nothing twice, and their headers say what is so.

A header is some sentences without figures, then lines of these kinds, in this order, of which only the third must be:

    # Before it, After it: a command
    # Paper: the arXiv number of the method
    # Distils: TEACHER by OBJECTIVE, N updates of N rows of N tokens     (Pretrains: ARCHITECTURE by OBJECTIVE, …)
    # Samples: SAMPLER, N to N steps, N rows                             (of the evaluation)
    # Processes: N                                                       (where the Makefile starts several)
    # Time: "what a document says", the document
    # Measured: documents
"""

import inspect
import re
from pathlib import Path

import pytest
import yaml

from distill.cli import app
from distill.config import DistillConfig, PretrainConfig, dump_config, load_config, validate
from distill.config.overrides import merge, read_mapping

ROOT = Path(__file__).parents[3]
CONFIGS = ROOT / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
KINDS = ["Before it", "After it", "Paper", "Distils", "Pretrains", "Samples", "Processes", "Time", "Measured"]
FIELD = re.compile(rf"({'|'.join(KINDS)}): (.+)")
each = pytest.mark.parametrize("path", FILES, ids=[str(p.relative_to(CONFIGS)) for p in FILES])


def kind(path):
    return PretrainConfig if trains_from_text(path) else DistillConfig


def trains_from_text(path):
    in_tasks = CONFIGS / "tasks" in path.parents and path.stem == "teacher"
    return in_tasks or path.parent.name in ("pretrain", "convert") or path == CONFIGS / "convert.yaml"


def header(path):
    """The sentences of a header, and its (kind, text) lines."""
    lines = path.read_text("utf-8").splitlines()
    top = [line.removeprefix("#").strip() for line in lines[: [line.startswith("#") for line in lines].index(False)]]
    matches = [FIELD.fullmatch(line) for line in top]
    fields = [(match[1], match[2]) for match in matches if match]
    return " ".join(line for line, match in zip(top, matches, strict=True) if not match), fields


def texts(path, name):
    return [text for field, text in header(path)[1] if field == name]


def document(name):
    return " ".join((ROOT / name).read_text("utf-8").split())


def test_there_are_configs():
    assert len(FILES) > 20


@each
def test_every_config_loads(path):
    config = load_config(kind(path), path)
    # what a run writes down is read back as the same config
    assert validate(kind(path), yaml.safe_load(dump_config(config))) == config


@each
def test_a_file_says_only_what_its_base_does_not(path):
    values = merge({}, read_mapping(path), [kind(path)])
    base = values.pop("base", None)
    assert list(repeated(values, load_values(path.parent / base) if base else {})) == []


def repeated(values, below, section=""):
    """The keys that change nothing: the value is the base's, or null where the base says nothing."""
    for key, value in values.items():
        under = below.get(key)
        if isinstance(value, dict) and isinstance(under, dict):
            if value.get("name", under.get("name")) == under.get("name"):  # else it is another section altogether
                yield from repeated(value, under, f"{section}{key}.")
        elif value == under:
            yield section + key


def test_a_key_that_changes_nothing_is_seen():
    below = {"a": 1, "b": {"name": "x", "c": 2}}
    assert list(repeated({"a": 1, "z": None, "b": {"c": 2, "d": 3}}, below)) == ["a", "z", "b.c"]
    assert list(repeated({"a": 2, "b": {"name": "y", "c": 2}}, below)) == []


def load_values(path):
    """What a file and its bases say, as plain values."""
    values = merge({}, read_mapping(path), [kind(path)])
    base = values.pop("base", None)
    return merge(load_values(path.parent / base), values, [kind(path)]) if base else values


# --- headers -------------------------------------------------------------------------------------------------------


@each
def test_a_header_has_its_lines_in_order_and_figures_in_them_alone(path):
    sentences, fields = header(path)
    assert [name for name, _ in fields] == sorted((name for name, _ in fields), key=KINDS.index)
    assert len(sentences) > 20
    commands = re.sub(r"fewstep .*? --seeds \d+", "", sentences)
    assert not re.search(r"(?<![\w./])\d", commands), "a figure that nothing checks"


@each
def test_what_is_distilled_in_how_many_updates_of_what(path):
    config = load_config(kind(path), path)
    if isinstance(config, DistillConfig):
        name, what, objective, length = "Distils", config.teacher.path, config.objective.name, config.sequence_length
    else:
        name, what, objective, length = "Pretrains", config.model.type, config.objective, config.data.length
    train = config.train
    says = f"{what} by {objective}, {train.updates} updates of {train.batch} rows of {length} tokens"
    assert texts(path, name) == [says]


@each
def test_how_it_is_sampled(path):
    for text in texts(path, "Samples"):
        config = load_config(DistillConfig, path)
        low, high = min(config.evaluate.steps), max(config.evaluate.steps)
        steps = f"{low} to {high} steps" if low < high else f"{high} steps"
        assert text == f"{config.evaluate.sampler.name}, {steps}, {config.evaluate.samples} rows"
    assert texts(path, "Samples") or path.parent.name == "plan" or trains_from_text(path)


@each
def test_the_paper_is_that_of_the_method(path):
    """Its number stands where the objective, or a part that is chosen, is defined."""
    config = load_config(kind(path), path)
    sections = (
        [config.edit, config.masks]
        if isinstance(config, PretrainConfig)
        else [config.objective, *dict(config.objective).values()]
    )
    sources = "".join(inspect.getsource(inspect.getmodule(type(s))) for s in sections if hasattr(s, "model_fields"))
    for number in texts(path, "Paper"):
        assert re.fullmatch(r"\d{4}\.\d{5}", number)
        assert number in sources


@each
def test_the_processes_are_those_that_make_starts(path):
    makefile = document("Makefile")
    processes = re.search(r"LAUNCH := .*?--nproc_per_node (\d+)", makefile)[1]
    launched = f"$(LAUNCH) distill {path.relative_to(ROOT)} " in makefile
    assert texts(path, "Processes") == [processes] * launched


@each
def test_times_and_measurements_stand_in_a_document(path):
    for text in texts(path, "Time"):
        said, name = re.fullmatch(r'"(.+)", (\S+)', text).groups()
        assert said in document(name).replace("**", "")
    for name in (name for text in texts(path, "Measured") for name in text.split(", ")):
        assert name.startswith("docs/")
        assert Path(name).stem == path.stem.replace("_", "-") or f'"{path.stem}"' in document(name)


@each
def test_commands_and_files_that_a_header_names_are_there(path):
    said = " ".join([header(path)[0], *(text for _, text in header(path)[1])])
    for name in re.findall(r"(?:configs|docs|objectives|teachers|tests)/[\w./-]*\w", said):
        assert (ROOT / name).exists(), name
    verbs = [command.name or command.callback.__name__ for command in app.registered_commands]
    for verb, rest in re.findall(r"fewstep (\w+)([^`]*)", said):
        assert verb in verbs
        assert re.search(r"configs/|runs/", rest) or verb == "plan"


def test_the_example_in_the_documentation_resolves(tmp_path):
    example = re.search(r"```yaml\n(.*?)```", (ROOT / "docs/configs.md").read_text("utf-8"), re.S)[1]
    folder = tmp_path / "own"
    folder.mkdir()
    (tmp_path / "compare").symlink_to(CONFIGS / "compare")
    (folder / "example.yaml").write_text(example, "utf-8")
    config = load_config(DistillConfig, folder / "example.yaml")
    assert (config.objective.gradient.name, config.objective.name) == ("logit", "integral_kl")
    assert (config.train.student.lr, config.train.student.decay) == (4e-4, 0.5)
