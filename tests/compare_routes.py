"""Compare the table of routes with those that a source tree of Ollama registers.

Reads text only: nothing of the tree is run or imported. Exit status 1 tells that
somebody should look at the table.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING

from authz.core.endpoints import CLOSED, ENDPOINTS

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Routes = dict[str, frozenset[str]]

_ROUTES_FILE = Path("server", "routes.go")
_METHODS = "GET|HEAD|POST|PUT|PATCH|DELETE|OPTIONS|Any"
_REGISTRATION = re.compile(rf'\br\.({_METHODS})\(\s*"([^"]*)"')
# What may register a route in a way that is not read.
_OTHERWISE = re.compile(
    r'(?!http\.Handle\("/", h\))'  # the router as a whole
    rf'(?!\br\.(?:{_METHODS})\(\s*")\b\w+\.'
    rf"(?:{_METHODS}|Handle|Match|Group|Static\w*)\(.*"
)


def table() -> Routes:
    """Return the methods of every path that the table knows, open or closed."""
    known = {path: endpoint.methods for path, endpoint in ENDPOINTS.items()}
    known |= {path: methods for path, (methods, _why) in CLOSED.items()}
    return {path: frozenset(methods) for path, methods in known.items()}


def registered(source: str) -> Routes:
    """Return the methods of every path that the text of routes.go registers."""
    routes = defaultdict(set)
    source = re.sub(r"//.*", "", source)
    for method, path in _REGISTRATION.findall(source):
        routes[path].add(method)
    for line in _OTHERWISE.findall(source):
        routes[line.strip()].add("?")
    return {path: frozenset(methods) for path, methods in routes.items()}


def differences(ours: Mapping[str, frozenset[str]], theirs: Routes) -> Iterator[str]:
    """Say in lines what is new, gone or changed from ours to theirs."""
    for path in sorted(ours.keys() | theirs.keys()):
        old, new = ours.get(path), theirs.get(path)
        if old is None and new is not None:
            yield f"new      {_methods(new)} {path}"
        elif new is None and old is not None:
            yield f"gone     {_methods(old)} {path}"
        elif old is not None and new is not None and old != new:
            yield f"changed  {_methods(old)} -> {_methods(new)} {path}"


def main() -> int:
    """Compare with the tree that the one argument names."""
    tree, *more = sys.argv[1:] or [""]
    source = Path(tree, _ROUTES_FILE)
    if more or not tree or not source.is_file():
        sys.stderr.write(f"usage: compare_routes TREE, with a {_ROUTES_FILE}\n")
        return 2
    theirs = registered(source.read_text(encoding="utf-8"))
    lines = list(differences(table(), theirs))
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    sys.stdout.write(f"{len(theirs)} paths registered, {len(lines)} differences\n")
    return 1 if lines or not theirs else 0


def _methods(methods: frozenset[str]) -> str:
    return ",".join(sorted(methods))


if __name__ == "__main__":
    sys.exit(main())
