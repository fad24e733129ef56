"""The command line from a checkout: `python cli.py` and `accelerate launch cli.py`."""

from vlmfix.cli import main

main()
