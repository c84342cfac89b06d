"""How the scripts tell a user what to change: one sentence, exit code 2, no traceback."""

import sys
from collections.abc import Callable


class UserError(ValueError):
    """A request that cannot be carried out as asked.

    The message is one sentence with the name, the value received, the rule and the remedy.
    """


def first_line(error: BaseException) -> str:
    """What an error says in its first line, or its class where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main` and turn a `UserError` into its sentence on stderr and exit code 2."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
