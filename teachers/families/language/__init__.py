"""Released language models: a table each, computed by stock classes."""

from teachers.families.language.a2d import A2d
from teachers.families.language.diffullama import DiffuGpt, DiffuLlama
from teachers.families.language.dream import Dream, DreamBlock
from teachers.families.language.family import LanguageFamily
from teachers.families.language.fast_dllm import FastDllm
from teachers.families.language.llada import Llada, LladaMoe
from teachers.families.language.llada2 import Llada2
from teachers.families.language.rnd1 import Rnd1
from teachers.families.language.sdar import Sdar, SdarMoe

LANGUAGE: tuple[LanguageFamily, ...] = (
    Llada(), LladaMoe(), Llada2(), Dream(), DreamBlock(), FastDllm(), Sdar(), SdarMoe(), Rnd1(), DiffuLlama(),
    DiffuGpt(), A2d(),
)  # fmt: skip
"""No two recognise the same checkpoint."""
