"""The command `chainbell`, and `python -m chainbell`: the command line, whose modules are loaded only here."""

from __future__ import annotations

import gc
import sys

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it: 128 and the signal's number."""


def main() -> None:
    """Run the command line. Ctrl-C in the second that loading takes ends the process without a traceback, as later on."""
    try:
        # Nothing of what is being loaded is garbage, and to look for it there takes a tenth of the time.
        gc.disable()
        from chainbell.cli.app import main as run_command_line

        gc.enable()
        run_command_line()
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
