"""Published ways to measure a language model's samples, by name: what a paper's code does, and where it says so.

All of them judge with GPT-2-large, whose context is 1,024 tokens, and score no text's first token. The values are
those of the code as it is stored at the commit that is named, which is not always what its config or its paper says.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from distill.config.samplers import AnySampler
from distill.config.values import EndOfText
from students.samplers import Joint
from teachers.section import Section


class ProtocolConfig(Section):
    """How samples are drawn and judged.

    Attributes:
        judge: whose perplexity was published. It is not fetched: ``evaluate.judge`` names it.
        retokenize, length, samples: the values of these keys of ``evaluate`` unless they are set; None for no value.
        end_of_text: see `EndOfText`.
        sampler: None for the evaluation's own.
        source: where that was read.
    """

    judge: str = "gpt2-large"
    retokenize: bool = True
    length: int = 1024
    samples: int | None = Field(default=None, ge=2)
    end_of_text: EndOfText = "first"
    sampler: AnySampler | None = None
    source: str

    def defaults(self) -> dict[str, Any]:
        """Of keys of ``evaluate``."""
        values = {"retokenize": self.retokenize, "length": self.length, "samples": self.samples}
        return {key: value for key, value in values.items() if value is not None}


ProtocolName = Literal["gpt2-large", "mdlm", "sdtt", "didi-instruct", "idlm", "duo"]
_FLOAT32 = Joint(draw="float32-gumbel")
PROTOCOLS: dict[ProtocolName, ProtocolConfig] = {
    "gpt2-large": ProtocolConfig(
        source="how MDLM and what follows it judge, with the evaluation's own sampler and draws",
    ),
    # `_sample_categorical` divides float32 probabilities by float32 noise, the mask's included;
    # `compute_generative_perplexity` scores the tokens that are no end, and the first end
    "mdlm": ProtocolConfig(sampler=_FLOAT32, source="2406.07524; kuleshov-group/mdlm, diffusion.py at 06dd29f"),
    # `sample_uncond` and `uncond_eval`: GPT-2's ids go into the judge as they are, and every token but the first counts
    "sdtt": ProtocolConfig(
        sampler=_FLOAT32, retokenize=False, end_of_text="all", source="2410.21035; jdeschena/sdtt, sdtt/run_eval.py"
    ),
    # use_float64 is true in the config, and read by the analytic sampler only: `_ancestral_update` draws in float32.
    # The paper's headline asks a discriminator as well: our sampler rgas
    "didi-instruct": ProtocolConfig(
        sampler=_FLOAT32, source="2509.25035; haoyangzheng-ai/didi-instruct, trainer_base.py at 1b43c35"
    ),
    # the same lines; 10 batches of 8 in its README
    "idlm": ProtocolConfig(
        sampler=_FLOAT32, samples=80, source="2602.19066; David-cripto/IDLM, trainer_base.py at 819c5be"
    ),
    # `_posterior_from_x0` asserts float64
    "duo": ProtocolConfig(source="2506.10892; s-sahoo/duo, trainer_base.py at 1ca6f65, metrics.py at 547fb15"),
}
"""By the paper's name."""


def with_protocol(values: dict[str, Any]) -> dict[str, Any]:
    """Keys of ``evaluate`` with those of their protocol that are not set.

    Raises:
        ValueError: the judge is not set.
    """
    name = values.get("protocol")
    if not isinstance(name, str) or name not in PROTOCOLS:
        return values
    protocol = PROTOCOLS[name]
    if values.get("judge") is None:
        raise ValueError(
            f"protocol {name!r} is judged by {protocol.judge}, which is not fetched unasked; set "
            "evaluate.judge to a folder of it or to its hub name"
        )
    return values | {key: value for key, value in protocol.defaults().items() if values.get(key) is None}
