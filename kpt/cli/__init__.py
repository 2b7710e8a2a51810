"""The command ``kpt-tune``. Thin: it reads arguments, calls ``autotune_db`` and ``kpt.ops``, and prints.

Exit codes: 0 done; 1 something did not work out (no config runs, nothing could be saved, doctor found a fault); 2 bad input;
130 ended by Ctrl-C, with what was found stored (143 by SIGTERM, 129 by SIGHUP, likewise).
"""

import os
import sys
from pathlib import Path

BAD_INPUT = 2


def main() -> None:
    """Entry point of the command. What is wrong with the input is one message and exit code 2, never a traceback."""
    from kpt.cli.app import app
    from kpt_dsl.errors import KptError

    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by whoever started the command
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115, as long as the process lives
    try:
        app(prog_name="kpt-tune")
    except KptError as error:
        print(f"kpt-tune: {error}", file=sys.stderr)
        sys.exit(BAD_INPUT)
    except BrokenPipeError:  # the reader of our output has seen enough
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:  # a full disk under our output, a terminal that is gone
        print(f"kpt-tune: {error}", file=sys.stderr)
        sys.exit(1)
