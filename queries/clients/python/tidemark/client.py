"""The client: a method for what applications do most, ``request`` for every other route of ``/openapi.json``."""

from __future__ import annotations

import json
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from http.client import HTTPException, HTTPResponse
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from .answer import Answer, Live, typed
from .foreign_answer import ForeignAnswer
from .live import Kept
from .refused import Refused, refusal

_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
_LINES = "application/x-ndjson"
# Three times the pause after which the server says something in any case. A dead connection looks as a quiet one does.
_SILENCE_S = 45.0


class _NotElsewhere(HTTPRedirectHandler):
    """A token is for the server that was named, not for where it points: a redirect is an error as others are."""

    def redirect_request(self, *_: Any) -> None:
        return None


_OPENER = build_opener(_NotElsewhere)


class Tidemark:
    """A server. ``token`` is needed where it asks for one; ``timeout`` is of one answer, in seconds."""

    def __init__(self, base: str, token: str | None = None, timeout: float = 35.0) -> None:
        self._base = base.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}"} if token else {}
        self._timeout = timeout

    def request(self, method: str, path: str, body: Any = None, **parameters: Any) -> Any:
        """Any route; a body is sent as JSON, a ``str`` as SQL. Raises ``Refused``, or ``ForeignAnswer``."""
        with self._open(method, path, body, parameters, "application/json", self._timeout) as answer:
            text = answer.read()
        try:
            return json.loads(text) if text else None
        except ValueError:
            raise ForeignAnswer(answer.status) from None

    def register(self, name: str, definition: dict[str, Any] | str, on_change: str = "refuse") -> dict[str, Any]:
        """Registers an aggregate, in JSON or in SQL; the same definition again changes nothing."""
        return self.request("PUT", _aggregate(name), definition, on_change=on_change)

    def until_live(self, name: str, timeout: float = 3600.0) -> dict[str, Any]:
        """Waits until an aggregate is filled. A halted one raises ``Refused`` with its code."""
        deadline = time.monotonic() + timeout
        while True:
            aggregate = self.describe(name)
            if aggregate["state"] == "live":
                return aggregate
            if aggregate["state"] == "halted":
                # Why it is halted is told to whoever asks it.
                self.data(name, granularity="all", limit=1)
            if time.monotonic() > deadline:
                raise TimeoutError(f"{name} is not filled after {timeout} s")
            time.sleep(0.2)

    def describe(self, name: str) -> dict[str, Any]:
        return self.request("GET", _aggregate(name))

    def drop(self, name: str) -> None:
        self.request("DELETE", _aggregate(name))

    def data(self, name: str, **question: Any) -> Answer:
        """The first page of an answer. Parameters as in the contract; ``from_`` is ``from``, which Python keeps for itself."""
        body = self.request("GET", f"{_aggregate(name)}/data", **question)
        return Answer(typed(body["columns"], body["data"]), body)

    def pages(self, name: str, **question: Any) -> Iterator[Answer]:
        """All pages of an answer. All of them show the position of the first."""
        page = self.data(name, **question)
        yield page
        while page.next is not None:
            page = self.data(name, **{**question, "cursor": page.next})
            yield page

    def query(self, body: dict[str, Any]) -> dict[str, Any]:
        """``POST /v1/query``: questions to aggregates or tables, all at one position, as they are answered."""
        return self.request("POST", "/v1/query", body)

    def follow(self, name: str, **question: Any) -> Iterator[Live]:
        """Every state of an answer from now on: whole transactions, resumed where a connection is cut.

        While nobody vouches that what was yielded is the newest, it is yielded once more with its ``trouble``. What does not end by
        itself is raised: a refusal such as that of a halted aggregate, an answer that is not Tidemark's, and any failure before
        there is a first answer, but for refusals that pass.
        """
        kept = Kept(_named(question).get("order", ""))
        failures = 0
        while True:
            trouble, told = "the connection was lost", failures > 0
            try:
                # Whoever stops reading lets go of the connection.
                with closing(self._events(name, question, kept.last_id)) as events:
                    for event in events:
                        failures, told = 0, False
                        if kept.take(event):
                            yield kept.live()
                if not kept.begun:
                    raise ConnectionError("the connection ended before there was an answer")
            except Refused as refused:
                if not refused.passes:
                    raise
                trouble, told = str(refused), True
            except ForeignAnswer as foreign:
                if not (kept.begun and foreign.passes):
                    raise
                trouble, told = str(foreign), True
            except (OSError, HTTPException) as failure:
                if not kept.begun:
                    raise
                # One that was cut is often there again at once; silence has lasted already.
                trouble, told = f"{trouble}: {failure}", told or isinstance(failure, TimeoutError)
            if told and kept.doubt(trouble):
                yield kept.live()
            time.sleep(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
            failures += 1

    def _events(self, name: str, question: dict[str, Any], since: str | None) -> Generator[dict[str, Any]]:
        parameters = {**question, "since": since} if since else question
        with self._open("GET", f"{_aggregate(name)}/live", None, parameters, _LINES, _SILENCE_S) as lines:
            if lines.headers.get_content_type() != _LINES:
                raise ForeignAnswer(lines.status)
            for line in lines:
                # Without chunks, where a proxy speaks HTTP/1.0, nothing else tells a cut from an end.
                if not line.endswith(b"\n"):
                    return
                event = json.loads(line)
                if event["event"] == "error":
                    raise refusal(500, event["data"])
                yield event

    def _open(
        self, method: str, path: str, body: Any, parameters: dict[str, Any], accept: str, timeout: float
    ) -> HTTPResponse:
        named = _named(parameters)
        url = f"{self._base}{path}?{urlencode(named)}" if named else f"{self._base}{path}"
        headers = {**self._headers, "Accept": accept}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/sql" if isinstance(body, str) else "application/json"
            data = (body if isinstance(body, str) else json.dumps(body)).encode()
        try:
            return _OPENER.open(Request(url, data, headers, method=method), timeout=timeout)
        except HTTPError as error:
            with error:
                text = error.read()
            raise refusal(error.code, text) from None


def _aggregate(name: str) -> str:
    return f"/v1/aggregates/{quote(name, safe='')}"


def _named(parameters: dict[str, Any]) -> dict[str, str]:
    return {name.rstrip("_"): _parameter(value) for name, value in parameters.items() if value is not None}


def _parameter(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
