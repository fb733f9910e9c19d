"""Every family of released language models against what its own published network computes."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import fewstep
from teachers.canvas import Canvas
from teachers.families import resolve
from teachers.families.language import LANGUAGE
from tests.golden.places import COPIES, SHARED

FAMILIES = [family.name for family in LANGUAGE if (COPIES / family.name).is_dir()]
NAMED = {"diffullama": {"family": "diffullama"}}
"""Families whose files say nothing of them."""


def references(folder):
    """(case, block size or None, input_ids, attention_mask or None, aligned logits) of all canvases of a folder."""
    tensors, shift = load_file(folder / "reference.safetensors"), metadata(folder)["shift"] == "True"
    for key in sorted(tensors):
        case, *block, what = key.split(".")
        if what not in ("raw", "aligned") or (shift and what == "raw"):
            continue
        size = int(block[0].removeprefix("block")) if block else None
        yield f"{case} {size}", size, tensors[f"{case}.input_ids"], tensors.get(f"{case}.attention_mask"), tensors[key]


def metadata(folder):
    with safe_open(folder / "reference.safetensors", "pt") as file:
        return file.metadata()


def check(folder, aligned, found, real, mask_id, absent):
    """The law is the network's own, without the mask and what has no entry, where a column and the one before are."""
    law = aligned.clone()
    law[..., [mask_id, *absent]] = -torch.inf
    law = law.log_softmax(-1)
    compared = torch.ones_like(found[..., 0], dtype=torch.bool) if real is None else real.bool()
    if metadata(folder)["shift"] == "True":
        compared[:, 1:] &= compared[:, :-1].clone()
    assert torch.equal(found.isinf(), law.isinf())
    torch.testing.assert_close(found[compared], law[compared], atol=1e-4, rtol=0)


def check_all(folder, family):
    """Through the door, with the tokenizer; and as the family loads it, without."""
    told, doors, families = metadata(folder), {}, {}
    for _, size, tokens, real, aligned in references(folder):
        options = {"block_size": size, **NAMED.get(family, {})}
        if size not in doors:
            checkpoint = resolve(str(folder / "checkpoint"), **NAMED.get(family, {}))
            doors[size] = fewstep.load_teacher(folder / "checkpoint", **options)
            families[size] = checkpoint.load(block_size=size)
            assert checkpoint.family.name == family
        door, denoiser = doors[size], families[size]
        assert door.spec.mask_id == denoiser.spec.mask_id == int(told["mask_token_id"])
        assert str(door.spec.shift) == told["shift"]
        absent = [entry for first, end in door.spec.gaps for entry in range(first, end)]
        check(folder, aligned, door.log_probs(tokens, real), real, door.spec.mask_id, absent)
        canvas = Canvas.of(tokens, denoiser.spec.mask_id, None if real is None else real.bool())
        with torch.no_grad():
            check(folder, aligned, denoiser.log_probs(canvas), real, denoiser.spec.mask_id, ())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_is_the_one_of_the_release(family):
    check_all(COPIES / family, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_law_on_all_canvases(family):
    if not SHARED.is_dir():
        pytest.skip(f"the whole cases are not in {SHARED}")
    check_all(SHARED / family, family)
