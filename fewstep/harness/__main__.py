"""``lm_eval`` with the model type ``fewstep``; a person's mistake is one line on stderr and exit code 2."""

import sys
from importlib.util import find_spec

from distill.runtime.exits import MISTAKE
from distill.runtime.messages import say_error
from teachers.errors import UserError


def main() -> None:
    """Run lm-evaluation-harness's own command line.

    Raises:
        SystemExit: with exit code 2 for a mistake in the arguments, or where the harness is not installed.
    """
    try:
        _run()
    except UserError as error:
        say_error(str(error))
        sys.exit(MISTAKE)


def _run() -> None:
    if find_spec("lm_eval") is None:
        raise UserError("lm-eval is not installed; install it with the extra: pip install '.[harness]'")
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
