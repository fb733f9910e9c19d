"""How much variety published float32 draws lose, by the number of steps and of tokens: docs/draws.json.

`python -m benchmarks.draws` computes the law that `students.samplers.Joint` draws from in float32, for a Zipf law over
GPT-2's 50,257 tokens and for what the bundled teacher predicts on half-masked novels, and compares its entropy with
that of the law itself. No token is drawn. A minute on one core.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from torch import Tensor

from distill.evaluation.reference import held_out, heldout_text
from distill.models import load_named
from teachers.canvas import Canvas
from teachers.files import publish

GRID = 2.0**-24
"""Of float32 uniforms below 1, and so of the noise where it is small."""
STEPS = (1, 16, 64, 256, 1024)
FILE = Path(__file__).parents[1] / "docs" / "draws.json"


def drawn_law(law: Tensor, steps: int, grid: float = GRID) -> Tensor:
    """What a masked position becomes in ``steps`` transitions of token and mask together, of a law (n, V): (n, V).

    In a transition that writes with probability w, token v has q = w p_v and wins with noise kδ against all others
    with probability e^(−kδ/q), δ being the grid: Σ_k δ e^(−kδ/q) = δ / (e^(δ/q) − 1), which is q where q is large, and
    nothing where it is far below δ.
    """
    law, waiting, drawn = law.double(), torch.ones(len(law), 1, dtype=torch.float64), torch.zeros_like(law).double()
    for number in range(steps):
        chances = grid / torch.expm1(grid / (law / (steps - number)).clamp(min=1e-300))
        if number == steps - 1:  # there is no mask to stay, and some token wins
            chances = chances / chances.sum(1, keepdim=True)
        drawn += waiting * chances
        waiting = waiting * (1 - chances.sum(1, keepdim=True))
    return drawn


def entropy(law: Tensor) -> Tensor:
    """(n,) nats."""
    return torch.special.entr(law).sum(1)


def figures(law: Tensor) -> dict[str, float | dict[str, dict[str, float]]]:
    """Of laws (n, V), the mean over them: the entropy, and for each number of steps what float32 makes of it.

    ``drawn_half_as_often``: the probability of the tokens that are drawn less than half as often as the law says.
    """
    exact, rows = float(entropy(law.double()).mean()), {}
    for steps in STEPS:
        drawn = drawn_law(law, steps)
        rare = (law * (drawn < law / 2)).sum(1)
        rows[str(steps)] = {
            "entropy": float(entropy(drawn).mean()),
            "entropy_lost": exact - float(entropy(drawn).mean()),
            "drawn_half_as_often": float(rare.mean()),
        }
    return {"entropy": exact, "float32": rows}


def zipf(tokens: int) -> Tensor:
    """(1, tokens) p ∝ 1 / rank."""
    law = 1 / torch.arange(1, tokens + 1, dtype=torch.float64)
    return (law / law.sum())[None]


def teacher_laws(rows: int = 32, length: int = 128) -> Tensor:
    """(n, V) what the bundled teacher says of the masked half of held-out novels."""
    models, tokenizer = load_named({"teacher": "bundled:teacher"}, torch.float32)
    teacher = models["teacher"].requires_grad_(False)
    real = held_out(heldout_text("bundled:novels", length, tokenizer), 0, rows, length, tokenizer, teacher.spec.mask_id)
    assert real.rows is not None
    masked = torch.rand(real.rows.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    canvas = Canvas.of(real.rows.masked_fill(masked, teacher.spec.mask_id), teacher.spec.mask_id)
    return teacher.log_probs(canvas)[masked].double().exp()


def main() -> None:
    """Write docs/draws.json."""
    result = {"zipf_50257": figures(zipf(50_257)), "bundled_teacher": figures(teacher_laws())}
    publish(FILE, json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
