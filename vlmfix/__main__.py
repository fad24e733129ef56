"""The command line as `python -m vlmfix`."""

from vlmfix.cli import main

main()
