"""A stand-in for Ollama: its routes and shapes, no model. A development tool only.

It listens only where it is told, checks nobody's credentials, and keeps the last
requests, with their headers and bodies, for whoever asks. It can be made to
misbehave, which is how the gateway's failures are tested.

    python -m authz.local.standin unix:/path/to.sock | HOST:PORT
    GET, DELETE /_standin/requests     what was received, oldest first
    PUT, DELETE /_standin/behaviour    a Behaviour as JSON (control.py)
"""

from authz.local.standin.server import listening, make_app

__all__ = ["listening", "make_app"]
