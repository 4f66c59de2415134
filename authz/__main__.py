"""`python -m authz` is `authz`."""

from authz.cli import main

main()
