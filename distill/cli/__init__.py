"""The command line: a function for each command, which hands its words to `distill.commands`."""

from distill.cli.measuring import compare, evaluate, report, verify
from distill.cli.models import export, generate, teachers, unpickle
from distill.cli.program import app, at_home, main, register
from distill.cli.training import convert, distill, oracle, plan, pretrain

for function in (
    pretrain, convert, distill, plan, oracle, evaluate, verify, compare, report, export, unpickle, generate, teachers,
):  # fmt: skip
    register(function)

__all__ = ["app", "at_home", "main"]
