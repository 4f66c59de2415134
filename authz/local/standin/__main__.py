"""Serve a stand-in for Ollama until a signal ends it; nothing else is decided here."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys

from authz.local.standin.server import listening


async def _serve(address: str) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with listening(address) as bound:
        sys.stdout.write(f"listening {bound}\n")
        sys.stdout.flush()
        await stop.wait()


def main() -> None:
    """Serve at the address given on the command line until a signal ends it."""
    parser = argparse.ArgumentParser(prog="python -m authz.local.standin")
    parser.add_argument("address", help="unix:/path/to.sock or HOST:PORT")
    address = parser.parse_args().address
    try:
        asyncio.run(_serve(address))
    except (OSError, ValueError) as error:
        sys.exit(f"cannot listen at {address}: {error}")


if __name__ == "__main__":
    main()
