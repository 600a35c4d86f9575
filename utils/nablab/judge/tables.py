"""Tables of numbers, as plain text and as HTML."""

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a title, with notes below.

    Attributes:
        title: what the numbers are.
        columns: the header; none if empty.
        rows: cells of text, the name of the row first.
        notes: sentences to read with the numbers.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()

    def __str__(self) -> str:
        lines = [self.columns, *self.rows] if self.columns else list(self.rows)
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        aligned = [
            "  ".join(
                cell.rjust(width) if place else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            )
            for line in lines
        ]
        return "\n".join([self.title, *(f"  {line}".rstrip() for line in aligned), *self.notes])

    def _repr_html_(self) -> str:
        def line(cells, tag):
            inside = "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells)
            return f"<tr>{inside}</tr>"

        header = line(self.columns, "th") if self.columns else ""
        body = "".join(line(row, "td") for row in self.rows)
        notes = "".join(f"<p>{html.escape(note)}</p>" for note in self.notes)
        return f"<table><caption>{html.escape(self.title)}</caption>{header}{body}</table>{notes}"


class Shown:
    """Something that is shown as its ``table``."""

    def __str__(self) -> str:
        return str(self.table)

    def _repr_html_(self) -> str:
        return self.table._repr_html_()


def two_digits(value: float) -> str:
    """A number with two significant digits; the word "failed" instead of NaN."""
    return significant(value, 2)


def significant(value: float, digits: int) -> str:
    """A number with that many significant digits; the word "failed" instead of NaN."""
    if math.isnan(value):
        return "failed"
    if value == 0 or math.isinf(value):
        return f"{value:g}"
    return f"{value:#.{digits}g}".removesuffix(".")


def digits_that_show(verdict: Callable[..., bool], *values: float) -> int:
    """How many significant digits it takes, at least two, to see the verdict in rounded numbers."""
    for digits in range(2, 17):
        if verdict(*(float(f"{value:.{digits}g}") for value in values)) == verdict(*values):
            return digits
    return 17  # tells any two numbers apart


def with_error(value: float, error: float) -> str:
    """A number and its error: two significant digits of the error, as many decimals for both."""
    if not (math.isfinite(value) and math.isfinite(error) and error > 0):
        return f"{two_digits(value)} ± {two_digits(error)}"
    decimals = max(0, 1 - math.floor(math.log10(error)))
    return f"{value:.{decimals}f} ± {error:.{decimals}f}"
