"""How tables and arrays are written, page by page, however long they are."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    Row = Sequence[str]

T = TypeVar("T")
_PAGE = 500


def table(heading: Row, rows: Sequence[Row]) -> str:
    """Align columns by their widest cell, two spaces apart."""
    return _align([heading, *rows], [0] * len(heading))


async def print_table(heading: Row, rows: AsyncIterator[Row]) -> None:
    """Print a table; its columns become wider from page to page, never narrower."""
    widths = [0] * len(heading)
    head = [heading]
    async for page in _pages(rows):
        click.echo(_align([*head, *page], widths))
        head = []
    if head:
        click.echo(_align(head, widths))


async def print_array(items: AsyncIterator[Mapping[str, object]]) -> None:
    """Print a JSON array, one object a line."""
    before = "["
    async for page in _pages(items):
        click.echo(before + ",\n".join(map(json.dumps, page)), nl=False)
        before = ",\n"
    click.echo("[]" if before == "[" else "]")


async def _pages(items: AsyncIterator[T]) -> AsyncIterator[list[T]]:
    page: list[T] = []
    async for item in items:
        page.append(item)
        if len(page) == _PAGE:
            yield page
            page = []
    if page:
        yield page


def _align(lines: Sequence[Row], widths: list[int]) -> str:
    """Align lines, and raise the widths to what they need."""
    for column, cells in enumerate(zip(*lines, strict=True)):
        widths[column] = max(widths[column], *map(len, cells))
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
