"""YAML as people expect it: the core schema of YAML 1.2, where 1e-4 is a number and ``no`` and 1:30 are text.

PyYAML reads YAML 1.1, in which they are text, false and 90. What is written here is read alike by both.
"""

from __future__ import annotations

import re
from typing import Any, ClassVar

import yaml

_TAG = "tag:yaml.org,2002:"
# YAML 1.2.2, section 10.3.2, and PyYAML's merge key; each with the characters it may begin with
CORE_SCHEMA = (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?", list("-+.0123456789")),
    ("float", r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+.")),
    ("merge", r"<<", ["<"]),
)
BASES = {"0o": 8, "0x": 16}


class Loader(yaml.SafeLoader):
    """Reads plain values only; a key that stands twice in a section is an error."""

    yaml_implicit_resolvers: ClassVar[dict[str, Any]] = {}

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which lets the last of several values win."""
        names: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in names:
                raise yaml.constructor.ConstructorError(None, None, f"key {key.value!r} stands twice", key.start_mark)
            names.add(key.value)
        return super().construct_mapping(node, deep)

    def whole_number(self, node: yaml.ScalarNode) -> int:
        """Decimal, also with leading zeros; octal after 0o, hexadecimal after 0x."""
        return int(node.value[2:], BASES[node.value[:2]]) if node.value[:2] in BASES else int(node.value)


class Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text."""


for _name, _pattern, _first in CORE_SCHEMA:
    for _class in (Loader, Dumper):
        _class.add_implicit_resolver(_TAG + _name, re.compile(rf"(?:{_pattern})\Z"), _first)
Loader.add_constructor(_TAG + "int", Loader.whole_number)


def read_yaml(text: str) -> Any:
    """The value of a YAML document.

    Raises:
        ValueError, RecursionError, yaml.YAMLError: it is none.
    """
    loader = Loader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def write_yaml(value: Any) -> str:
    """A YAML document of plain values, sections in their order."""
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True)
