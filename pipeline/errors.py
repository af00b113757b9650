"""What goes wrong for a user of the pipeline, as opposed to a bug in it."""

import re
from collections.abc import Iterable


class PipelineError(Exception):
    """A mistake or a circumstance the user can mend.

    The message is one line that names the offending thing and says what to do; the command line
    prints it without a traceback and exits with 2.
    """


def choice(what: str, value: str, known: Iterable[str]) -> PipelineError:
    """The error for a name that is not among the known ones."""
    return PipelineError(f"unknown {what} {value!r}: choose from {', '.join(sorted(known))}")


def reason(error: Exception) -> str:
    """The first line of a foreign error, less the names of TensorFlow's ops and inner functions."""
    text = str(error).removeprefix("Graph execution error:").strip()
    lines = text.splitlines() or [type(error).__name__]
    return re.sub(r"\{\{.*?\}\} *| *\[Op:.*", "", lines[0])
