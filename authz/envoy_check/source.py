"""A YAML file as nodes that know their lines; bounded, for it may be hostile.

Scalars are read as Envoy's parser reads them, which differs from PyYAML's: no dates,
no numbers to the base of 60, `y` and `n` are booleans.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import yaml

from authz.envoy_check.findings import Place, found_in_reading

if TYPE_CHECKING:
    from collections.abc import Iterator

    from authz.envoy_check.findings import Finding

_MAX_BYTES = 4 * 1024 * 1024
_MAX_DEPTH = 100
# With every alias written out.
_MAX_NODES = 50_000

_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

# Lines end here for one reader of YAML and not for another.
_OTHER_BREAKS = re.compile("[\x85\u2028\u2029\ufeff]|\r(?!\n)")

_TRUE = frozenset({"true", "yes", "on", "y"})
_FALSE = frozenset({"false", "no", "off", "n"})
_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_INTEGER = re.compile(r"[-+]?(?:0x[0-9a-fA-F]{1,16}|[0-9]{1,20})")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]{1,40}\.?[0-9]{0,40}|\.[0-9]{1,40})(?:[eE][-+]?[0-9]{1,3})?"
)

YAML = found_in_reading(
    "yaml",
    why="What cannot be read cannot be checked.",
    mend="Write the file as one document of plain YAML.",
)
DUPLICATE_KEY = found_in_reading(
    "duplicate-key",
    why="Readers differ in which of the two counts.",
    mend="Keep one of them.",
)


class _Unreadable(Exception):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line = line


def parsed(name: str, content: bytes) -> tuple[yaml.Node | None, list[Finding]]:
    """Return the root of a file, if it can be used at all, and what is wrong."""
    try:
        root = _composed(content)
    except _Unreadable as problem:
        return None, [YAML.at(Place(name, problem.line), str(problem))]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        what = "This is no YAML" + (
            f", near column {mark.column + 1}." if mark else "."
        )
        return None, [YAML.at(Place(name, mark.line + 1 if mark else 1), what)]
    return root, [
        DUPLICATE_KEY.at(Place(name, key.start_mark.line + 1), f"{key.value!r} again.")
        for key in _duplicate_keys(root)
    ]


def line_of(node: yaml.Node) -> int:
    """Return the line on which a node begins."""
    return _line(node)


def _line(part: yaml.Node | yaml.Event) -> int:
    return part.start_mark.line + 1 if part.start_mark else 1


def plain(node: yaml.Node) -> object:
    """Return a node's value as Envoy takes it. For nodes of `parsed` alone."""
    match node:
        case yaml.MappingNode():
            return {str(key.value): plain(value) for key, value in node.value}
        case yaml.SequenceNode():
            return [plain(item) for item in node.value]
        case _:
            return _scalar(node)


def texts(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Return the scalars below a node, keys left out."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    for child in _children(node):
        yield from texts(child)


def words(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    """Return the scalars below a node, keys, too."""
    if isinstance(node, yaml.ScalarNode):
        yield node
    for child in _children(node):
        yield from words(child)
    if isinstance(node, yaml.MappingNode):
        yield from (key for key, _ in node.value)


def _scalar(node: yaml.Node) -> object:
    quoted = bool(getattr(node, "style", None))
    return node.value if quoted else _resolved(node.value)


def is_null(node: yaml.Node) -> bool:
    """Whether nothing is said here, which is as if the key were not there."""
    return isinstance(node, yaml.ScalarNode) and plain(node) is None


def _resolved(text: str) -> object:
    """Read an unquoted scalar."""
    if text in _NULL:
        return None
    if text.lower() in _TRUE | _FALSE:
        return text.lower() in _TRUE
    if _INTEGER.fullmatch(text):
        return int(text, 16 if "x" in text else 8 if _octal(text) else 10)
    return float(text) if _FLOAT.fullmatch(text) else text


def _octal(text: str) -> bool:
    digits = text.lstrip("+-")
    return digits.startswith("0") and set(digits) <= set("01234567")


def _composed(content: bytes) -> yaml.Node:
    if len(content) > _MAX_BYTES:
        raise _Unreadable(1, f"The file has more than {_MAX_BYTES} bytes.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _Unreadable(line, "This is not UTF-8.") from None
    if odd := _OTHER_BREAKS.search(text):
        line = text.count("\n", 0, odd.start()) + 1
        raise _Unreadable(line, "A break between lines that Envoy does not see.")
    _bound_depth(text)
    root = yaml.compose(text, Loader=_Loader)
    if not isinstance(root, yaml.MappingNode):
        raise _Unreadable(1, "The file holds no mapping.")
    _expanded(root, {})
    return root


def _bound_depth(text: str) -> None:
    """Go through the file without recursion, before anything recurses."""
    depth = documents = 0
    for event in yaml.parse(text, Loader=_Loader):
        line = _line(event)
        documents += isinstance(event, yaml.DocumentStartEvent)
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise _Unreadable(line, f"More than {_MAX_DEPTH} levels.")
        if documents > 1:
            raise _Unreadable(line, "A second document, which Envoy does not read.")


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Return how many nodes and levels this has with aliases written out."""
    if id(node) in known:
        size, depth = known[id(node)]
        if not size:
            raise _Unreadable(line_of(node), "An alias within what it stands for.")
        return size, depth
    known[id(node)] = (0, 0)
    size = depth = 1
    for child in _children(node):
        child_size, child_depth = _expanded(child, known)
        size += child_size
        depth = max(depth, child_depth + 1)
    if size > _MAX_NODES or depth > _MAX_DEPTH:
        raise _Unreadable(line_of(node), "With its aliases written out, far too much.")
    known[id(node)] = (size, depth)
    return size, depth


def _children(node: yaml.Node) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _Unreadable(line_of(key), "A key that is no plain text.")
            yield value
    elif isinstance(node, yaml.SequenceNode):
        yield from node.value


def _duplicate_keys(root: yaml.Node) -> Iterator[yaml.Node]:
    todo, done = [root], set()
    while todo:
        node = todo.pop()
        if id(node) in done:
            continue
        done.add(id(node))
        todo += _children(node)
        if isinstance(node, yaml.MappingNode):
            names = set()
            for key, _ in node.value:
                if key.value in names:
                    yield key
                names.add(key.value)
