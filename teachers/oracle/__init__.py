"""Exact teachers: laws of rows whose masked posteriors, likelihood and entropy can be computed.

What a trained teacher only approximates is exact here, so errors of objectives and samplers are seen without the error
of a network, and perplexity, KL and entropy without a judge. A `Source` is the law (source.py): a Markov source, whose
tokens depend on their neighbours (markov.py), or one with dependence at a distance, where few passes must fail:
copied halves (copies.py), brackets (brackets.py) and a mixture of templates (templates.py). `SourceDenoiser` makes a
denoiser of one (denoiser.py), files.py reads and writes it. How far any student that draws the positions of a pass
independently stays from a source is in bounds.py.
"""

from __future__ import annotations

from teachers.oracle.brackets import Brackets
from teachers.oracle.copies import Copies
from teachers.oracle.markov import Markov
from teachers.oracle.source import Source
from teachers.oracle.templates import Templates

SOURCES: dict[str, type[Source]] = {source.kind: source for source in (Markov, Copies, Brackets, Templates)}
"""By what config.json calls them."""
