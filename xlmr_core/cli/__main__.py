"""`python -m xlmr_core.cli`: the command without its script."""

from xlmr_core.cli import main

main()
