"""`python -m sooner` is the command `sooner`."""

from sooner.cli import main

main()
