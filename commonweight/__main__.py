"""`python -m commonweight` is `commonweight`."""

from commonweight.cli.main import main

main()
