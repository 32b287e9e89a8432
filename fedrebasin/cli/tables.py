"""Tables that fit the terminal: nothing is cut, and names are broken at their joints only."""

import re
from collections.abc import Sequence

from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

#: How a table is drawn, the roomiest first: its lines, whether it has a frame, and the spaces on both sides of a cell.
LAYOUTS = ((box.HEAVY_HEAD, True, 1), (box.HEAVY_HEAD, True, 0), (box.SIMPLE_HEAD, False, 0))
NO_BREAK = "\N{NO-BREAK SPACE}"
JOINT = re.compile(r"(?<=[/._=,:-])(?=\w)|(?=\+)")


def fit(table: Table, width: int) -> Table:
    """The table in the roomiest layout whose words fit, as ``rebasin+seqreg`` above ``+head+temperature``.

    Args:
        table: of texts, which are no markup. Columns on the left hold names and sentences; the others numbers, which
            are not broken but at spaces, and at no ``NO_BREAK``, nor are names in a column of ``no_wrap``.
        width: columns of the terminal.
    """
    texts = [[str(column.header), *map(str, column.cells)] for column in table.columns]
    names = [column.justify == "left" and not column.no_wrap for column in table.columns]
    least = [max(_longest_piece(text, name) for text in column) for column, name in zip(texts, names, strict=True)]
    wanted = [max(map(_longest_line, column)) for column in texts]
    headers_broken = [
        max(_longest_piece(header, name), *map(_longest_line, cells), 0)
        for (header, *cells), name in zip(texts, names, strict=True)
    ]
    rooms = [width - len(texts) * (1 + 2 * padding) + (-1 if framed else 1) for _, framed, padding in LAYOUTS]
    layout = next((place for place, room in enumerate(rooms) if sum(least) <= room), -1)
    (lines, framed, padding), room = LAYOUTS[layout], rooms[layout]
    widths = _narrowed(_narrowed(wanted, headers_broken, room), least, room)
    title, caption = (escape(str(text)) if text else None for text in (table.title, table.caption))
    fitted = Table(title=title, caption=caption, box=lines, show_edge=framed, padding=(0, padding))
    cells = [
        [_broken(text, size, name) for text in column] for column, size, name in zip(texts, widths, names, strict=True)
    ]
    for column, (header, *_), size in zip(table.columns, cells, widths, strict=True):
        fitted.add_column(Text(header), justify=column.justify, width=size, overflow="fold")
    styles = [[getattr(cell, "style", "") for cell in column.cells] for column in table.columns]
    for place, row in enumerate(table.rows):
        shown = [Text(column[place + 1], style[place]) for column, style in zip(cells, styles, strict=True)]
        fitted.add_row(*shown, style=row.style, end_section=row.end_section)
    return fitted


def _longest_line(text: str) -> int:
    return max(map(len, text.split("\n")))


def _longest_piece(text: str, name: bool) -> int:
    return max(len(piece) for word in re.split("[ \n]", text) for piece in _pieces(word, name))


def _pieces(word: str, name: bool) -> list[str]:
    return JOINT.split(word) if name else [word]


def _narrowed(widths: Sequence[int], least: Sequence[int], room: int) -> list[int]:
    """The widths with the widest made narrower, one by one, until they fit or none can be."""
    found = list(widths)
    while sum(found) > room and (wide := [place for place, size in enumerate(found) if size > least[place]]):
        found[max(wide, key=lambda place: found[place])] -= 1
    return found


def _broken(text: str, width: int, name: bool) -> str:
    """The text in lines of this width: between words, and in words that are too long at their joints."""
    lines = []
    for line in text.split("\n"):
        lines.append("")
        for word in line.split(" "):
            if len(lines[-1]) + 1 + len(word) <= width and lines[-1]:
                lines[-1] += f" {word}"
                continue
            if lines[-1]:
                lines.append("")
            for piece in _pieces(word, name) if len(word) > width else [word]:
                if lines[-1] and len(lines[-1]) + len(piece) > width:
                    lines.append("")
                lines[-1] += piece
    return "\n".join(lines).replace(NO_BREAK, " ")
