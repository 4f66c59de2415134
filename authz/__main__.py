"""The program `authz`, also as `python -m authz`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; an early Ctrl-C ends it quietly."""
    try:
        from authz.cli import run  # noqa: PLC0415 - imports take a while, too
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
