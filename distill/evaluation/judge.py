"""The judge: an autoregressive language model that scores text."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedTokenizerBase

from distill.config.values import EndOfText
from distill.data.tokenizers import load_tokenizer
from distill.evaluation.metrics import unigram_entropies
from teachers.denoiser import DenoiserSpec, ExactLaw
from teachers.errors import UserError
from teachers.families import Checkpoint, resolve
from teachers.families.stock.anatomy import first_position, longest
from teachers.families.stock.loading import load_model
from teachers.families.stock.trial import check_autoregressive
from teachers.vocabulary import ids_of, token_id
from teachers.weights import weight_of

LOGITS_AT_ONCE = 2**26  # float32 values of one batch's logits: 256 MiB
ROWS_AT_ONCE = 64

Advance = Callable[[int], Any]


class Score(NamedTuple):
    """What a judge says of N samples.

    Attributes:
        nats: (N,) float64, the summed negative log-likelihood of each.
        tokens: (N,) int64, how many of the judge's tokens that sum is over.
        unigram_entropy: (N,) the entropy of each sample's own counts of the judge's tokens, in nats.
    """

    nats: np.ndarray
    tokens: np.ndarray
    unigram_entropy: np.ndarray


class Judge:
    """A stock causal language model, in float32, read left to right.

    Args:
        checkpoint: a causal language model, with its tokenizer.
        tokenizer: the one that the tokens to be scored come from.
        retokenize: decode with ``tokenizer`` and encode with the judge's own, instead of scoring the ids themselves.
        device: where it runs; a GPU if there is one.

    Attributes:
        parameters: how many it has.

    Raises:
        UserError: it can not be loaded, is not autoregressive, or has another vocabulary and ``retokenize`` is false.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        tokenizer: PreTrainedTokenizerBase,
        retokenize: bool = False,
        device: torch.device | str | None = None,
    ):
        self.name, self.source, self.retokenized = checkpoint.name, tokenizer, retokenize
        self.tokenizer = load_tokenizer(checkpoint.folder)
        if not retokenize:
            check_same_vocabulary(self.tokenizer, tokenizer, self.name)
        self.model = load_model(checkpoint).requires_grad_(False).eval()
        config = self.model.config.to_dict()
        if config.get("is_causal") is False:  # absent from most stock configs, whose models are all causal
            raise UserError(
                f"judge {self.name!r} is not autoregressive (its config says is_causal: false, as diffusion models "
                "do); set evaluate.judge to a causal language model"
            )
        self._check_table()
        check_autoregressive(self.model, self.name)
        movable: Any = self.model  # whose `to` transformers annotates as something else
        movable.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.parameters = sum(p.numel() for p in self.model.parameters())
        # a judge trained here never had its mask entry in the softmax, so that logit was never trained
        self.forbidden = self._forbidden(config.get("fewstep") or {})

    def _check_table(self) -> None:
        """Every token that may be scored has a row; published tables have more."""
        rows = len(weight_of(self.model.get_input_embeddings()))
        last = max(ids_of(self.tokenizer) - {token_id(self.tokenizer, "mask")}, default=0)
        if last >= rows:
            raise UserError(
                f"judge {self.name!r} has {rows} rows of embeddings and its tokenizer ids up to {last}; give a judge "
                "that has a row for each, or the tokenizer it was trained with"
            )

    def _forbidden(self, saved: Mapping[str, Any]) -> Tensor | None:
        """(V,) bool: entries that a judge trained here never had in its softmax; None for other people's."""
        if "mask_id" not in saved:
            return None
        rows = len(weight_of(self.model.get_output_embeddings()))
        return DenoiserSpec(saved["mask_id"], rows, 0, gaps=saved.get("gaps", ())).excluded("cpu")

    @property
    def max_length(self) -> int:
        """The longest text it can read, in its tokens."""
        bound = longest(self.model.config)
        return sys.maxsize if bound is None else bound - first_position(self.model)

    def source_entropy(self, length: int) -> float | None:
        """None: nobody knows the entropy of the text that a network was trained on."""
        return None

    @torch.inference_mode()
    def nll(self, tokens: Tensor, real: Tensor | None = None, advance: Advance | None = None) -> Tensor:
        """Negative log-likelihood of every token after the first.

        Args:
            tokens: (N, L) int64.
            real: (N, L) bool, False for padding on the right, which scores 0.
            advance: told how many rows have been scored, as they are.

        Returns:
            (N, L−1) float32 nats, on the CPU.

        Raises:
            UserError: longer than the judge's context.
        """
        count, length = tokens.shape
        if length > self.max_length:
            raise UserError(
                f"samples have {length} tokens but judge {self.name!r} reads at most {self.max_length}; "
                "set a smaller evaluate.length, or a judge with a longer context"
            )
        vocabulary = len(weight_of(self.model.get_output_embeddings()))
        batch = max(1, min(ROWS_AT_ONCE, LOGITS_AT_ONCE // (length * vocabulary)))
        out = torch.zeros(count, length - 1)
        for start in range(0, count, batch):
            rows = slice(start, min(start + batch, count))
            out[rows] = self.token_nats(tokens[rows], None if real is None else real[rows])
            if advance is not None:
                advance(rows.stop - start)
        return out

    def token_nats(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        """`nll` of rows that pass the network at once: (N, L−1), on its device, and with a gradient of its weights."""
        tokens = tokens.to(self.model.device)
        attention = None if real is None else real.to(tokens)
        logits = self.model(tokens, attention_mask=attention, use_cache=False).logits[:, :-1].float()
        if self.forbidden is not None:
            logits[..., self.forbidden.to(logits.device)] = -torch.inf
        nats = functional.cross_entropy(logits.transpose(1, 2), tokens[:, 1:], reduction="none")
        return nats if attention is None else nats.masked_fill(attention[:, 1:] == 0, 0.0)

    def score(
        self,
        tokens: Tensor,
        advance: Advance | None = None,
        written: Tensor | None = None,
        end_of_text: EndOfText = "all",
    ) -> Score:
        """Judge each sample.

        Args:
            tokens: (N, L) int64, of the source tokenizer; retokenized if the judge was made to.
            advance: see `nll`.
            written: (N, L) bool, the tokens that are scored, given all before them; None: all.
            end_of_text: of a sample's end-of-text tokens, score all of them or only the first.
        """
        tokens, real, measured = self.read(tokens, written)
        entropies = unigram_entropies(tokens.numpy(), measured.numpy())
        if end_of_text == "first":
            measured = measured & ~self._later_ends(tokens, measured)
        scored, nats = measured[:, 1:], self.nll(tokens, real, advance).double()
        return Score(nats.masked_fill(~scored, 0).sum(1).numpy(), scored.sum(1).numpy(), entropies)

    def read(self, tokens: Tensor, written: Tensor | None) -> tuple[Tensor, Tensor | None, Tensor]:
        """Samples (N, L) as the judge reads them, retokenized if it was made to.

        Returns:
            (N, L') tokens; (N, L') where they are real, or None if everywhere; and (N, L') where they were ``written``.
        """
        if self.retokenized:
            return self.retokenize(tokens, written)
        return tokens, None, torch.ones_like(tokens, dtype=torch.bool) if written is None else written

    def _later_ends(self, tokens: Tensor, measured: Tensor) -> Tensor:
        """(N, L) the end-of-text tokens that are measured, but for the first of each row."""
        ends = (tokens == self.tokenizer.eos_token_id) & measured
        return ends & (ends.cumsum(1) > 1)

    def retokenize(self, tokens: Tensor, written: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Decode with the source tokenizer and encode with the judge's own, cut to the judge's context.

        The end-of-text token becomes the judge's own; no other token is added or dropped. A prompt is encoded apart
        from what follows it, and what follows that is left out.

        Returns:
            (N, L') int64 padded on the right; (N, L') bool, True where real; and where that was ``written``.
        """
        written = torch.ones_like(tokens, dtype=torch.bool) if written is None else written
        begun = written.cumsum(1) > 0
        given = self._encoded([row[~after].tolist() for row, after in zip(tokens, begun, strict=True)])
        encoded = self._encoded([row[counts].tolist() for row, counts in zip(tokens, written, strict=True)])
        longest = min(self.max_length, max(2, *(len(a) + len(b) for a, b in zip(given, encoded, strict=True))))
        padded = torch.zeros(len(encoded), longest, dtype=torch.int64)
        real, measured = torch.zeros_like(padded, dtype=torch.bool), torch.zeros_like(padded, dtype=torch.bool)
        for row, (before, ids) in enumerate(zip(given, encoded, strict=True)):
            whole = [*before, *ids][:longest]
            padded[row, : len(whole)] = torch.tensor(whole, dtype=torch.int64)
            real[row, : len(whole)] = True
            measured[row, len(before) : len(whole)] = True
        return padded, real, measured

    def _encoded(self, rows: list[list[int]]) -> list[list[int]]:
        """The judge's tokens for those of the source."""
        source = self.source
        texts = source.batch_decode(rows, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if source.eos_token and self.tokenizer.eos_token:
            texts = [text.replace(str(source.eos_token), str(self.tokenizer.eos_token)) for text in texts]
        return self.tokenizer(
            texts, add_special_tokens=False, truncation=True, max_length=self.max_length, verbose=False
        )["input_ids"]


class ExactJudge:
    """An exact source as a judge: it knows the probability of every token, the first one too, and its own entropy.

    Args:
        checkpoint: what `fewstep oracle` wrote.
        tokenizer, device: as of `Judge`.

    Raises:
        UserError: it can not be loaded, or has another vocabulary.
    """

    retokenized = False
    max_length = sys.maxsize

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: PreTrainedTokenizerBase, device: torch.device | str | None = None
    ):
        self.name = checkpoint.name
        check_same_vocabulary(load_tokenizer(checkpoint.folder), tokenizer, self.name)
        source = checkpoint.load()
        assert isinstance(source, ExactLaw), "whoever declares an exact law has one"
        self.source = source.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.parameters = self.source.size

    def source_entropy(self, length: int) -> float:
        """Nats a token of the source's own rows of ``length`` tokens, exactly."""
        return self.source.entropy(length) / length

    def score(
        self,
        tokens: Tensor,
        advance: Advance | None = None,
        written: Tensor | None = None,
        end_of_text: EndOfText = "all",
    ) -> Score:
        """See `Judge.score`; here all L tokens are scored, and no part of them can be."""
        assert written is None, "checked before anything is sampled"
        assert end_of_text == "all", "checked before anything is sampled"
        nats = -self.source.log_likelihood(tokens.to(self.source.device)).cpu().numpy()
        if advance is not None:
            advance(len(tokens))
        return Score(nats, np.full(len(tokens), tokens.shape[1]), unigram_entropies(tokens.numpy()))


AnyJudge = Judge | ExactJudge


def load_judge(
    name: str, tokenizer: PreTrainedTokenizerBase, retokenize: bool = False, device: torch.device | str | None = None
) -> AnyJudge:
    """The judge of that name, a network or an exact source.

    Args:
        name: a folder, a hub name or ``bundled:NAME``, with its tokenizer.
        tokenizer, retokenize, device: as of `Judge`.

    Raises:
        UserError: see `Judge` and `ExactJudge`; it is neither, or an exact source that would have to retokenize.
    """
    checkpoint = resolve(name)
    if "exact law" not in checkpoint.family.capabilities:
        checkpoint.require({"stock class": "a judge must be one; set evaluate.judge to a causal language model"})
        return Judge(checkpoint, tokenizer, retokenize, device)
    if retokenize:
        raise UserError(
            f"evaluate.retokenize is true, but judge {name!r} is an exact source, which knows only its own tokens; set "
            "it to false"
        )
    return ExactJudge(checkpoint, tokenizer, device)


def check_same_vocabulary(judge: PreTrainedTokenizerBase, model: PreTrainedTokenizerBase, name: str) -> None:
    """Refuse to score token ids that mean something else to the judge.

    Args:
        judge, model: the two tokenizers.
        name: the judge's, for the message.

    Raises:
        UserError: the vocabularies differ.
    """
    theirs, ours = judge.get_vocab(), model.get_vocab()
    if theirs != ours:
        differing = len(dict(theirs.items() ^ ours.items()))
        raise UserError(
            f"judge {name!r} has {len(theirs)} tokens and the model {len(ours)}, {differing} of which differ, but "
            "token ids are scored only over one vocabulary; set evaluate.retokenize=true to decode and retokenize, or "
            "use a judge trained with the same tokenizer"
        )
