"""The outermost level of the command line, where everything that goes wrong becomes one line."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import typer
from rich.markup import escape
from typer.core import TyperGroup

from vlmfix.cli.console import err
from vlmfix.failures import failure_of


class OneLineErrors(TyperGroup):
    """Everything that goes wrong is one line on stderr: exit code 2 for what a user can fix, 1 for a bug."""

    debug = False

    def main(self, args: Any = None, *positional: Any, **options: Any) -> Any:
        """Run a command line, `--debug` at any place of it, and end the process."""
        if sys.stdout is None:  # closed by the shell
            sys.stdout = io.StringIO()
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # what the terminal cannot show, in ASCII
        self.debug = False
        options["standalone_mode"] = False
        given = list(sys.argv[1:] if args is None else args)
        if "--debug" in given[: given.index("--") if "--" in given else None]:
            given.remove("--debug")
            given.insert(0, "--debug")
        code = self._guarded(lambda: super(OneLineErrors, self).main(given, *positional, **options))
        self._guarded(sys.stdout.flush)
        raise SystemExit(code)

    def invoke(self, ctx: Any) -> Any:
        """Run the command, before the parser gives an interruption a meaning of its own."""
        return self._guarded(lambda: super(OneLineErrors, self).invoke(ctx))

    def _guarded(self, work: Callable[[], Any]) -> Any:
        """What `work` gives; raises SystemExit in the place of what it raises."""
        try:
            return work()
        except typer.Exit:
            raise
        except BrokenPipeError:  # whoever read the output has seen enough
            _flush_or_drop()
            raise SystemExit(1) from None
        except typer.Abort:
            raise SystemExit(130) from None
        except (Exception, KeyboardInterrupt) as error:
            if type(error).__name__ == "NoArgsIsHelpError":
                print(str(error), file=sys.stderr)
                raise SystemExit(2) from None
            if self.debug:
                traceback.print_exception(error)
            failure = failure_of(error)
            err.print(f"[bold red]{failure.kind}:[/] {escape(failure.message)}", soft_wrap=True)
            _flush_or_drop()
            raise SystemExit(failure.exit_code) from None


def _flush_or_drop() -> None:
    """Write what stdout still holds, or drop it, so that the end of the process cannot fail over it."""
    with suppress(OSError, ValueError):
        try:
            sys.stdout.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
