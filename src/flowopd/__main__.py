"""``python -m flowopd``: the command line."""

from flowopd.cli import main

main()
