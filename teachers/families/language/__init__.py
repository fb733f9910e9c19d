"""Released language models: a table each, computed by stock classes."""

from teachers.families.language.dream import Dream, DreamBlock
from teachers.families.language.family import LanguageFamily
from teachers.families.language.llada import Llada, LladaMoe

LANGUAGE: tuple[LanguageFamily, ...] = (Llada(), LladaMoe(), Dream(), DreamBlock())
"""No two recognise the same checkpoint."""
