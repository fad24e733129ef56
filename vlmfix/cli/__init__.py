"""The command line, one file a command; a command imports what takes seconds when it runs."""

import os
import sys


def main() -> None:
    """Run the command line on the arguments of the process."""
    try:
        from vlmfix.cli.app import app
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except (ImportError, OSError) as error:  # of a broken installation; OSError: of a shared library
        if os.environ.get("VLMFIX_DEBUG") or "--debug" in sys.argv:
            raise
        raise SystemExit(f"error: a package cannot be imported ({error}); install vlmfix again") from None
    app(prog_name="vlmfix")
