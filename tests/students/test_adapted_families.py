"""Adapters on every family that can carry them: merged as they were, read back as they were written."""

import pytest
import torch

from students.adapters import AdaptedDenoiser, AdapterConfig, merge_adapter, merged
from teachers.canvas import Canvas
from teachers.families import resolve
from teachers.families.language import LANGUAGE
from tests.golden.places import COPIES, checkpoint_of
from tests.teachers.test_golden_language import NAMED

NAMES = [family.name for family in LANGUAGE if (COPIES / family.name).is_dir()]


@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_is_merged_and_read_back(name, tmp_path):
    checkpoint = resolve(str(checkpoint_of(COPIES, name)), **NAMED.get(name, {}))
    torch.manual_seed(0)
    adapted = AdaptedDenoiser(checkpoint.load(), AdapterConfig(rank=2))
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.normal_(std=0.1)
    canvas = Canvas.of(
        torch.randint(200, (2, 8)).index_fill(1, torch.arange(3, 7), adapted.spec.mask_id), adapted.spec.mask_id
    )
    adapted.save(tmp_path)
    with torch.no_grad():
        law = adapted.log_probs(canvas)
        assert (law - adapted.base.log_probs(canvas)).nan_to_num().abs().max() > 0.1
        for denoiser in (merged(adapted), merge_adapter(checkpoint.load(), tmp_path)):
            torch.testing.assert_close(denoiser.log_probs(canvas), law, atol=1e-4, rtol=1e-5)
