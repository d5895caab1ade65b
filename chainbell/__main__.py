"""`python -m chainbell` is the command `chainbell`."""

from chainbell.cli.app import main

main()
