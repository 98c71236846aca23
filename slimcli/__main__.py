"""`python -m slimcli`."""

from slimcli.cli.main import main

main()
