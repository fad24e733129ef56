"""The command line from a checkout: `python cli.py` and `accelerate launch cli.py`."""

from vlmfix.cli.app import run

run()
