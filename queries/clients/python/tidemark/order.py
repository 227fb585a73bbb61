"""The order of a live answer's rows, as the server has it: by what was asked, then by time, then by the dimensions.

Its events are differences and say nothing of places. NULL is the largest of times and dimensions, and last of measures in either
direction; NaN is the largest of numbers; texts are in the order of their code points, which is that of their bytes in UTF-8.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from typing import Any

from .answer import Row

# Where a row stands by each of the terms.
Place = tuple[tuple[Any, ...], ...]


class Order:
    """``asked`` is the parameter of the question; ``columns`` are those of the answer."""

    def __init__(self, asked: str, columns: list[dict[str, Any]]) -> None:
        by_name = {column["name"]: column for column in columns}
        names = [name.strip() for name in asked.split(",") if name.strip()]
        terms = [(by_name[name.removeprefix("-")], name.startswith("-")) for name in names]
        terms += [(column, False) for column in columns if column["role"] in ("time", "dimension")]
        self._terms = terms

    def place(self, row: Row) -> Place:
        return tuple(_place(column, descending, row.get(column["name"])) for column, descending in self._terms)

    def sorted(self, rows: list[tuple[Place, Row]]) -> list[Row]:
        # Sorting keeps the order of equals, also in reverse: the last term goes first.
        for at, (_, descending) in reversed(list(enumerate(self._terms))):
            rows = sorted(rows, key=lambda row: row[0][at], reverse=descending)
        return [row for _, row in rows]


def _place(column: dict[str, Any], descending: bool, value: Any) -> tuple[Any, ...]:
    # What is sorted in reverse has to be the smallest to be last.
    before_null = descending and column["role"] == "measure"
    if value is None:
        return (not before_null,)
    known = _OF_TYPE.get(column["type"])
    return (before_null, known(value) if known else value)


def _number(value: Any) -> tuple[bool, Decimal]:
    nan = value == "NaN"
    return nan, Decimal(0 if nan else value)


_INFINITE = {"-infinity": -1, "infinity": 1}
_CLOCK = re.compile(r"([+-]?\d+)-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?)?(?:Z|([+-])(\d\d):(\d\d))?")


def _moment(value: str) -> tuple[int, int]:
    """Microseconds, of years that Python has no dates of as well: after 400 of them the calendar is the same again."""
    clock = _CLOCK.fullmatch(value)
    if clock is None:
        return _INFINITE[value], 0
    year, month, day, hours, minutes, seconds, fraction, sign, hours_ahead, minutes_ahead = clock.groups(default="0")
    cycles, year_of_cycle = divmod(int(year), 400)
    days = cycles * 146_097 + date(400 + year_of_cycle, int(month), int(day)).toordinal()
    ahead = int(hours_ahead) * 60 + int(minutes_ahead)
    at = (days * 24 + int(hours)) * 60 + int(minutes) - (-ahead if sign == "-" else ahead)
    return 0, (at * 60 + int(seconds)) * 1_000_000 + int(f"{fraction:0<6}")


_OF_TYPE: dict[str, Callable[[Any], Any]] = {
    "decimal": _number,
    "int64": _number,
    "float64": _number,
    "timestamp": _moment,
    "local_timestamp": _moment,
    "date": _moment,
}
