"""What is measured of texts that continue prompts: what was written, up to its end, given the prompt."""

import math

import numpy as np
import pytest
import torch

from distill.config import DataConfig, EvaluateConfig, TokenizerConfig
from distill.data.tokenizers import train_tokenizer
from distill.evaluation.checks import check
from distill.evaluation.evaluate import evaluate, quick_figures
from distill.evaluation.judge import ExactJudge, load_judge
from distill.evaluation.metrics import bigram_entropy, distinct_2, unigram_entropy
from distill.evaluation.texts import Texts
from teachers.canvas import Canvas
from teachers.errors import UserError
from teachers.process import MaskedProcess
from tests.networks import shape, stock

LENGTH = 12
SMALL = {"temperatures": None, "steps": [4], "teacher_steps": 12, "samples": 6, "batch": 4, "bootstrap": 20}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TokenizerConfig(vocabulary=259), DataConfig(path="unused", length=LENGTH))


@pytest.fixture(scope="module")
def judges(tokenizer, tmp_path_factory):
    """A judge as it is, and as one that has to retokenize."""
    folder = tmp_path_factory.mktemp("judge")
    network(tokenizer, 3, shift=True, attention="causal").save(folder)
    tokenizer.save_pretrained(folder)
    return [load_judge(str(folder), tokenizer, retokenize) for retokenize in (False, True)]


def network(tokenizer, seed, **spec):
    ends = {"eos_id": tokenizer.eos_token_id, "pad_id": tokenizer.pad_token_id}
    sizes = shape(initializer_range=0.3)
    return stock(len(tokenizer), LENGTH, tokenizer.mask_token_id, sizes=sizes, seed=seed, **ends, **spec)


def prompts(tokenizer):
    ids = [tokenizer(f"{'a' * count}=", add_special_tokens=False)["input_ids"] for count in range(6)]
    return Canvas.prompted(ids, LENGTH, tokenizer.mask_token_id)


def test_what_was_written_ends_with_its_first_end_token():
    canvas = Canvas.prompted([[0, 5], [], [5]], 5, 9)
    tokens = torch.tensor([[0, 5, 6, 0, 7], [1, 2, 3, 4, 5], [5, 8, 8, 0, 0]])
    written = Texts.on(canvas, tokens, [0, 8]).written
    assert written.int().tolist() == [[0, 0, 1, 1, 0], [1, 1, 1, 1, 1], [0, 1, 0, 0, 0]]
    assert Texts.on(canvas, tokens, [0, 8]).size == 8
    assert Texts.on(None, tokens, [0]).written is None


def test_entropies_are_of_what_was_written():
    rows = np.array([[7, 1, 2, 1, 9], [7, 7, 7, 3, 9]])
    written = np.array([[0, 1, 1, 1, 0], [0, 0, 0, 1, 1]], dtype=bool)
    texts = [np.array([[1, 2, 1]]), np.array([[3, 9]])]
    assert unigram_entropy(rows, written) == pytest.approx(np.mean([unigram_entropy(text) for text in texts]))
    assert bigram_entropy(rows, written) == pytest.approx(math.log(3))  # 1 2, 2 1 and 3 9
    assert distinct_2(rows, written) == 1
    one = np.eye(5, dtype=bool)[:2]
    assert (bigram_entropy(rows, one), distinct_2(rows, one)) == (0, 0)


@pytest.mark.parametrize("which", [0, 1])
def test_the_judge_reads_prompts_and_does_not_score_them(which, judges, tokenizer):
    ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("ab=cd", "a=bc")]
    end = [tokenizer.eos_token_id]
    tokens = torch.tensor([ids[0] + end * 7, ids[1] + end + [50] * 7])
    written = torch.zeros_like(tokens, dtype=torch.bool)
    written[0, 3:6] = written[1, 2:5] = True
    nats, counts, _ = judges[which].score(tokens, written=written)
    each = judges[0].nll(tokens)
    assert counts.tolist() == [3, 3]
    assert nats == pytest.approx([float(each[0, 2:5].sum()), float(each[1, 1:4].sum())], rel=1e-5)


def test_an_evaluation_after_prompts(judges, tokenizer):
    canvas, student = prompts(tokenizer), network(tokenizer, 1)
    config = EvaluateConfig(**SMALL)
    labels = torch.where(canvas.open, tokenizer.eos_token_id, canvas.tokens)[:4]
    result = evaluate(None, student, judges[0], config, LENGTH, labels, prompts=canvas)
    [row] = result.rows
    # real text: of each row the end-of-text token behind its prompt
    each = judges[0].nll(labels)
    at_ends = [each[i, i] for i in range(4)]  # the prompt of row i has i + 1 tokens
    assert result.reference.samples == 4
    assert result.reference.judge_perplexity == pytest.approx(math.exp(sum(at_ends) / 4), rel=1e-5)
    assert row.samples == 6
    assert result.sampling.size == "6 samples of 12 tokens, prompt included"
    [quick] = quick_figures(student, judges[0], 4, 6, LENGTH, 0, MaskedProcess(), config, canvas)
    assert quick == {key: getattr(row, key) for key in quick}
    [other] = quick_figures(student, judges[0], 4, 6, LENGTH, 0, MaskedProcess(), config)
    assert other["judge_perplexity"] != quick["judge_perplexity"]


def test_a_markov_source_does_not_judge_what_follows_a_prompt(tokenizer):
    judge = ExactJudge.__new__(ExactJudge)
    judge.name = "source"
    student, config = network(tokenizer, 1), EvaluateConfig(**SMALL)
    with pytest.raises(UserError, match="'source' is an exact source"):
        check(None, student, judge, config, LENGTH, None, None, prompts(tokenizer))
