"""Answers: rows of Python's own types. Money is ``Decimal``, never a float.

What Python cannot hold stays text: times before year 1 or after 9999, and ``infinity``.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from typing import Any

Row = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """Rows that are all true at ``lsn``. ``body`` is everything as it came."""

    rows: list[Row]
    body: dict[str, Any]

    @property
    def lsn(self) -> str:
        return self.body["as_of"]["lsn"]

    @property
    def next(self) -> str | None:
        """The cursor of the next page."""
        return self.body["page"]["next"]


@dataclass(frozen=True)
class Live:
    """A live answer as it is at ``lsn``. ``trouble`` says why nobody vouches that it still is the newest: ``None`` while it is."""

    rows: list[Row]
    lsn: str
    trouble: str | None = None


def _or_text(convert: Callable[[str], Any]) -> Callable[[Any], Any]:
    def converted(value: Any) -> Any:
        try:
            return convert(value)
        except ValueError:
            return value

    return converted


def _moment(text: str) -> datetime:
    """A time as the server writes it. Python 3.10 reads no ``Z``, and no fraction but of 3 or 6 digits."""
    whole = re.sub(r"\.\d+", lambda fraction: f"{fraction[0]:0<7}", text)
    return datetime.fromisoformat(re.sub("Z$", "+00:00", whole))


_OF_TYPE: dict[str, Callable[[Any], Any]] = {
    "decimal": Decimal,
    "int64": int,
    "float64": float,
    "timestamp": _or_text(_moment),
    "local_timestamp": _or_text(_moment),
    "date": _or_text(date.fromisoformat),
}


def typed(columns: list[dict[str, Any]], rows: list[Row]) -> list[Row]:
    """Rows of JSON as rows of Python's types; what a column says nothing about is left as it is."""
    of_column = {column["name"]: _OF_TYPE[column["type"]] for column in columns if column["type"] in _OF_TYPE}

    def value(name: str, value: Any) -> Any:
        convert = of_column.get(name)
        return value if convert is None or value is None else convert(value)

    return [{name: value(name, of_row) for name, of_row in row.items()} for row in rows]
