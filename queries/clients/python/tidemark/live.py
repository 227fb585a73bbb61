"""A live answer: rows, kept as the server's events say.

The surprise: what is kept stays true where it was, at its ``lsn``, while nobody says whether it is the newest. So it is kept and shown
through a cut and through ``resync``, with the trouble beside it; only an event that follows on it, or all of it anew, ends the trouble.
"""

from __future__ import annotations

from typing import Any

from .answer import Live, Row, typed
from .order import Order, Place


class Kept:
    """The answer after the last event. ``last_id`` is for resuming only: the position is what the event's body says."""

    def __init__(self, order: str) -> None:
        self.begun = False
        self.last_id: str | None = None
        self._trouble: str | None = None
        self._lsn = ""
        self._columns: list[dict[str, Any]] = []
        self._key: list[str] = []
        self._asked = order
        self._order = Order("", [])
        self._rows: dict[tuple[Any, ...], tuple[Place, Row]] = {}

    def take(self, event: dict[str, Any]) -> bool:
        """Takes an event. Whether there is something else to show."""
        name, body = event["event"], event["data"]
        if name == "resync":
            # All of it comes again.
            self.last_id = None
            return self.doubt(body["reason"])
        if name == "snapshot":
            self._begin(body["columns"])
            self._put(body["data"])
        elif self.last_id is None or name not in ("change", "progress"):
            return False
        elif name == "change":
            for row in body["delete"]:
                self._rows.pop(self._key_of(row), None)
            self._put(body["upsert"])
        self.last_id, self._lsn = event["id"], body["as_of"]["lsn"]
        doubted, self._trouble = self._trouble, None
        return name != "progress" or doubted is not None

    def doubt(self, trouble: str) -> bool:
        """Nobody vouches for it any more. Whether that is something else to show."""
        doubted, self._trouble = self._trouble, trouble
        return self.begun and trouble != doubted

    def live(self) -> Live:
        rows = self._order.sorted(list(self._rows.values()))
        return Live(typed(self._columns, rows), self._lsn, self._trouble)

    def _begin(self, columns: list[dict[str, Any]]) -> None:
        self.begun = True
        self._columns = columns
        self._key = [column["name"] for column in columns if column["role"] in ("time", "dimension")]
        self._order = Order(self._asked, columns)
        self._rows = {}

    def _put(self, rows: list[Row]) -> None:
        self._rows.update((self._key_of(row), (self._order.place(row), row)) for row in rows)

    def _key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in self._key)
