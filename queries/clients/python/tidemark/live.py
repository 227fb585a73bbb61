"""A live answer: rows, kept as the server's events say."""

from __future__ import annotations

from typing import Any

from .answer import Live, Row, typed


class Kept:
    """The answer after the last event. ``last_id`` is for resuming only: the position is what the event's body says."""

    def __init__(self, columns: list[dict[str, Any]]) -> None:
        self.last_id = ""
        self._lsn = ""
        self._columns = columns
        self._key = [column["name"] for column in columns if column["role"] in ("time", "dimension")]
        self._rows: dict[tuple[Any, ...], Row] = {}

    @staticmethod
    def after(kept: Kept | None, event: dict[str, Any]) -> Kept | None:
        """What is kept after an event: ``None`` where everything comes again."""
        name, body = event["event"], event["data"]
        if name == "snapshot":
            kept = Kept(body["columns"])
            kept._put(body["data"])
        elif name == "change" and kept is not None:
            for row in body["delete"]:
                kept._rows.pop(kept._key_of(row), None)
            kept._put(body["upsert"])
        elif name == "resync":
            return None
        if kept is not None and "as_of" in body:
            kept.last_id, kept._lsn = event["id"], body["as_of"]["lsn"]
        return kept

    def live(self) -> Live:
        return Live(typed(self._columns, list(self._rows.values())), self._lsn)

    def _put(self, rows: list[Row]) -> None:
        self._rows.update((self._key_of(row), row) for row in rows)

    def _key_of(self, row: Row) -> tuple[Any, ...]:
        return tuple(row.get(name) for name in self._key)
