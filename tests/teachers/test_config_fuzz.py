"""Whatever a config.json says, a checkpoint is loaded or refused in one line, and no number takes up memory."""

import itertools
import json
import random
import resource
import shutil
import time
from pathlib import Path

import pytest

from teachers.errors import UserError
from teachers.families import FAMILIES, resolve
from teachers.source import BUNDLED
from teachers.vocabulary import read_tokenizer
from tests.golden.places import COPIES, checkpoint_of

SEED, MUTATIONS, SECONDS = 0, 200, 20
NAMES = [family.name for family in FAMILIES if checkpoint_of(COPIES, family.name).is_dir()]
WORDS = ["", "x", "nan", "full", "block", "sliding_attention"]
NUMBERS = [
    0,
    -1,
    1,
    2,
    3,
    5,
    7,
    10**6,
    10**9,
    10**12,
    2**63,
    10**30,
    0.5,
    -0.5,
    1e30,
    1e-30,
    float("nan"),
    float("inf"),
]
TABLES = [
    {},
    {"a": 1},
    {"rope_type": "yarn"},
    {"rope_type": "dynamic", "factor": 2.0},
    {"type": "linear", "factor": -1},
]
VALUES = [None, True, False, [], [1], ["a"], [[]], *WORDS, *NUMBERS, *TABLES]
ADDED = [
    "fewstep", "fewstep.mask_id", "fewstep.block_size", "fewstep.attention", "fewstep.shift", "fewstep.family",
    "quantization_config", "rope_scaling", "rope_parameters", "head_dim", "layer_types", "dtype", "mask_token_id",
    "block_size", "transformers_weights", "sliding_window", "auto_map", "model_type", "architectures", "is_causal",
]  # fmt: skip
MEGABYTES = 400  # that loading tiny networks may add to this process, whatever their config.json says


def places(value, above=()):
    """Every key of a config, with those that it stands under."""
    for key, below in value.items() if isinstance(value, dict) else ():
        yield (*above, key)
        yield from places(below, (*above, key))


def mutate(config, draw):
    """One to three keys removed, changed or added; what was done."""
    changed, done = json.loads(json.dumps(config)), []
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        place = tuple(draw.choice(ADDED).split(".")) if draw.random() < 0.25 else draw.choice(list(places(changed)))
        section = changed
        for key in place[:-1]:
            if not isinstance(section.get(key), dict):
                section[key] = {}
            section = section[key]
        old, value = section.get(place[-1]), draw.choice(VALUES)
        if type(old) is int and draw.random() < 0.3:
            value = draw.choice([old + 1, old * 2, old - 1, -old, float(old), str(old), old // 2])
        if draw.random() < 0.15 and place[-1] in section:
            value = section.pop(place[-1])
        else:
            section[place[-1]] = value
        done.append((".".join(place), value))
    return changed, done


@pytest.fixture
def cases(tmp_path):
    """Name → a copy of its checkpoint, its config and its tokenizer."""
    sources = {name: checkpoint_of(COPIES, name) for name in NAMES} | {"stock": BUNDLED / "teacher"}
    found = {}
    for name, source in sources.items():
        folder = Path(shutil.copytree(source, tmp_path / name))
        words = read_tokenizer(folder) if any(folder.glob("tokenizer*")) else None
        found[name] = folder, json.loads((folder / "config.json").read_text("utf-8")), words
    return found


def outcome(name, folder, words):
    """What comes of a checkpoint; "loaded", or the line by which it is refused."""
    try:
        resolve(str(folder), family="diffullama" if name == "diffullama" else None).load(words)
    except UserError as error:
        return str(error)
    return "loaded"


def test_a_config_is_loaded_or_refused_whatever_it_says(cases):
    draw, start, outcomes = random.Random(SEED), time.monotonic(), []
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in itertools.islice(itertools.cycle(cases), MUTATIONS):
        folder, config, words = cases[name]
        changed, done = mutate(config, draw)
        (folder / "config.json").write_text(json.dumps(changed), "utf-8")
        try:
            outcomes.append(outcome(name, folder, words))
        except Exception as error:
            raise AssertionError(f"{name} with {done}: {type(error).__name__}") from error
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEGABYTES * 1_000, (name, done)
        if time.monotonic() - start > SECONDS:
            break
    lines = [line for line in outcomes if line != "loaded"]
    assert 20 < len(lines) < len(outcomes) - 20
    assert all(line.isprintable() and len(line) < 1_200 for line in lines)
