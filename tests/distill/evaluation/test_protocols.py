"""Published ways to measure: presets, end-of-text tokens, and rows beside the exact ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from distill.config import EvaluateConfig
from distill.config.overrides import validate
from distill.config.protocols import PROTOCOLS
from distill.evaluation.checks import check
from distill.evaluation.evaluate import evaluate
from distill.evaluation.figures.featuriser import dot, gradient_moment, gradients, states
from distill.evaluation.figures.loading import load_gauges
from distill.evaluation.judge import ExactJudge
from distill.evaluation.reference import HeldOut
from distill.evaluation.texts import Texts
from distill.runtime.world import ALONE
from students.samplers import Joint
from teachers.errors import UserError
from tests.distill.evaluation.test_evaluate import LENGTH, SMALL, judge, made, rows, tiny  # noqa: F401

PUBLISHED: dict[str, Any] = SMALL | {"steps": [4], "judge": "bundled:judge", "length": LENGTH}


def test_a_protocol_sets_what_is_not_set_and_asks_for_its_judge():
    config = validate(EvaluateConfig, {"protocol": "idlm", "judge": "bundled:judge", "featuriser": None})
    assert (config.retokenize, config.length, config.samples, config.featuriser) == (True, 1024, 80, None)
    own = validate(EvaluateConfig, {"protocol": "idlm", "judge": "bundled:judge", "samples": 9, "retokenize": False})
    assert (own.retokenize, own.samples) == (False, 9)
    with pytest.raises(UserError, match=r"judged by gpt2-large, which is not fetched.*set evaluate\.judge"):
        validate(EvaluateConfig, {"protocol": "mdlm"})
    with pytest.raises(UserError, match="'mdlm'"):
        validate(EvaluateConfig, {"protocol": "mdml", "judge": "bundled:judge"})


@pytest.mark.parametrize(
    ("name", "retokenize", "end_of_text", "float32"),
    [
        ("gpt2-large", True, "first", False),
        ("mdlm", True, "first", True),
        ("sdtt", False, "all", True),
        ("didi-instruct", True, "first", True),
        ("idlm", True, "first", True),
        ("duo", True, "first", False),
    ],
)
def test_protocols_are_as_their_code_is(name, retokenize, end_of_text, float32):
    found = PROTOCOLS[name]
    assert (found.judge, found.length) == ("gpt2-large", 1024)
    assert (found.retokenize, found.end_of_text) == (retokenize, end_of_text)
    assert found.sampler == (Joint(draw="float32-gumbel") if float32 else None)


def test_only_the_first_end_of_a_text_is_scored_where_that_is_asked(made, judge):  # noqa: F811
    end = made.tokenizer.eos_token_id
    tokens = rows(2)
    tokens[0, 5], tokens[0, 9:] = end, end
    nats = judge.nll(tokens).double()
    every, counts, _ = judge.score(tokens)
    assert counts.tolist() == [LENGTH - 1] * 2
    torch.testing.assert_close(torch.from_numpy(every), nats.sum(1))
    first, fewer, _ = judge.score(tokens, end_of_text="first")
    assert fewer.tolist() == [LENGTH - 1 - (LENGTH - 9), LENGTH - 1]
    torch.testing.assert_close(torch.from_numpy(first), torch.stack([nats[0, :8].sum(), nats[1].sum()]))
    tokens[0, 0] = end  # it is the first, which is never scored
    assert judge.score(tokens, end_of_text="first")[1][0] == fewer[0] - 1


def test_published_rows_stand_beside_the_exact_ones(made, judge):  # noqa: F811
    config = validate(EvaluateConfig, PUBLISHED | {"protocol": "sdtt", "featuriser": None, "retokenize": False})
    found = evaluate(tiny(made.tokenizer, 1), tiny(made.tokenizer, 2), judge, config, LENGTH)
    plain = evaluate(
        tiny(made.tokenizer, 1), tiny(made.tokenizer, 2), judge, config.model_copy(update={"protocol": None}), LENGTH
    )
    assert [(row.model, row.steps, row.judge_perplexity) for row in found.rows] == [
        (row.model, row.steps, row.judge_perplexity) for row in plain.rows
    ], "exact rows are what they are without"
    assert found.published is not None
    assert [(row.model, row.steps, row.sampler) for row in found.published] == [
        (row.model, row.steps, "joint, float32 draws") for row in found.rows
    ]
    assert found.protocol is not None
    assert (found.protocol.name, found.protocol.end_of_text) == ("sdtt", "all")
    assert plain.published is None
    table = found.markdown()
    assert "As published, and exactly:" in table
    assert "| teacher | 4 | exact draws | ancestral |" in table
    assert "| teacher | 4 | as sdtt | joint, float32 draws |" in table
    assert "published with judge gpt2-large" in table


def test_a_featuriser_may_be_another_model_of_other_tokens(made, judge):  # noqa: F811
    text = HeldOut(rows(12), others=HeldOut(rows(12, seed=1)))
    config = validate(EvaluateConfig, PUBLISHED | {"featuriser": str(made.root / "other-judge")})
    ends = (made.tokenizer.eos_token_id,)
    gauges = load_gauges(config, judge, text, None, LENGTH, made.tokenizer, ends, ALONE)
    assert gauges.featuriser is not None
    assert gauges.featuriser.retokenized
    found = gauges.figures(Texts(rows(12, seed=2)))
    assert 0 < found["mauve"] <= 1
    assert found["length_mean"] == LENGTH
    assert gauges.instruments(12).featuriser == str(made.root / "other-judge")
    none = load_gauges(
        config.model_copy(update={"featuriser": None}), judge, text, None, LENGTH, made.tokenizer, ends, ALONE
    )
    assert "mauve" not in none.figures(Texts(rows(12)))


def test_states_are_those_of_the_measured_tokens_and_gradients_have_no_bias(judge):  # noqa: F811
    tokens, written = rows(8), torch.zeros(8, LENGTH, dtype=torch.bool)
    written[:, 3:9] = True
    found = states(judge, Texts(tokens, written), 8)
    hidden = judge.model.base_model(tokens).last_hidden_state.detach()
    torch.testing.assert_close(torch.from_numpy(found.last), hidden[:, 8])
    torch.testing.assert_close(torch.from_numpy(found.mean), hidden[:, 3:9].mean(1))
    own, other = gradients(judge, Texts(rows(40))), gradients(judge, Texts(rows(40, seed=1)))
    assert own.square < dot(own.mean, own.mean), "the noise of the mean is not in it"
    same = [
        gradient_moment(
            gradients(judge, Texts(rows(40, seed=2 * n))), gradients(judge, Texts(rows(40, seed=2 * n + 1)))
        )
        for n in range(12)
    ]
    spread = float(torch.tensor(same).std()) / 12**0.5
    assert abs(sum(same) / 12) < 4 * spread, "texts of one law are not apart"
    repeated = gradients(judge, Texts(rows(1).repeat(40, 1)))
    assert gradient_moment(repeated, other) > 10 * max(same), "one text over and over is"
    assert not any(p.requires_grad for p in judge.model.parameters())


def test_an_exact_source_scores_whole_rows(made):  # noqa: F811
    exact = ExactJudge.__new__(ExactJudge)
    exact.name = "source"
    config = validate(EvaluateConfig, PUBLISHED | {"end_of_text": "first"})
    with pytest.raises(UserError, match=r"exact source.*set evaluate\.end_of_text=all"):
        check(tiny(made.tokenizer, 1), None, exact, config, LENGTH, None)
