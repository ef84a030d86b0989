"""Values as text for people: tables, lists of names, and what an exception says."""

import itertools
import reprlib
import textwrap
from collections.abc import Collection, Iterable, Sequence


def table(header: Sequence[str], rows: Iterable[Sequence[str]], columns: int | None = None) -> str:
    """Format a Markdown table whose columns also line up as plain text.

    Args:
        header: Names of the columns.
        rows: Cells of each row.
        columns: The most characters in a line. Cells that are too long continue in the next line,
            those of the widest columns first. None for any length.
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in (header, *rows)) for i in range(len(header))]
    if columns is not None:
        free = max(columns - 3 * len(widths) - 1, len(widths))
        while sum(widths) > free:
            widths[widths.index(max(widths))] -= 1

    def line(cells: Sequence[str]) -> str:
        folded = [
            [c] if len(c) <= w else textwrap.wrap(c, w) for c, w in zip(cells, widths, strict=True)
        ]
        return '\n'.join(
            '| ' + ' | '.join(c.ljust(w) for c, w in zip(parts, widths, strict=True)) + ' |'
            for parts in itertools.zip_longest(*folded, fillvalue='')
        )

    return '\n'.join([line(header), line(['-' * w for w in widths]), *map(line, rows)])


def list_some(names: Collection[str], limit: int = 10) -> str:
    """Return the number of names and the first `limit` of them in sorted order."""
    some = ', '.join(map(printable, sorted(names)[:limit]))
    return f'{len(names)}: {some}' + (', ...' if len(names) > limit else '')


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = 10


def brief(value: object) -> str:
    """Return the repr of a value of any kind in one line, without most of a long one."""
    text = ' '.join(_SHORT.repr(value).split())
    return text if len(text) <= 200 else f'{text[:200]}...'


def printable(text: str) -> str:
    """Return a text in one line: newlines and what a terminal would obey are escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)


def first_line(error: BaseException) -> str:
    """Return the first non-empty line of an exception's text without its full stop."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip('.') if lines else type(error).__name__


def sentence(text: str) -> str:
    """Return the text with a full stop at its end."""
    return text if text.endswith('.') else f'{text}.'
