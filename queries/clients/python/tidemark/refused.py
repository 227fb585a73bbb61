"""What the server refuses, and why."""

from __future__ import annotations

import json
from typing import Any

from .foreign_answer import ForeignAnswer

# What ends by itself, of all that a server refuses with 503 (and 409): docs/problems.md. What is halted has the status too, and stays.
_PASSING = frozenset(
    """starting connecting snapshotting checking_store catching_up building not_covered table_joining source_busy stopping
    overloaded timeout not_yet_visible cannot_connect transactions_open position_missed""".split()
)


class Refused(Exception):
    """A refusal: ``code`` is stable, ``problem`` is all that was said (RFC 9457)."""

    def __init__(self, problem: dict[str, Any]) -> None:
        hint = problem.get("hint")
        super().__init__(f"{problem['detail']} ({hint})" if hint else problem["detail"])
        self.problem = problem
        self.code: str = problem["code"]
        self.status: int = problem["status"]

    @property
    def passes(self) -> bool:
        """Whether the same question is answered later without anybody's doing."""
        return self.status == 429 or self.code in _PASSING


def refusal(status: int, body: Any) -> Refused | ForeignAnswer:
    """What is raised of a body, read or not. A proxy refuses as well, and in JSON too."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except ValueError:
            return ForeignAnswer(status)
    told = isinstance(body, dict) and all(name in body for name in ("code", "detail", "status"))
    return Refused(body) if told else ForeignAnswer(status)
