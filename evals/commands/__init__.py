"""Groups of commands of the command line: they parse arguments and print, and hold no logic."""
