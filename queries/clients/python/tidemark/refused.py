"""What the server refuses, and why."""

from __future__ import annotations

import json
from typing import Any

from .foreign_answer import ForeignAnswer


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
        """Whether the same question may be answered later."""
        return self.status in (429, 503) or self.code == "not_covered"


def refusal(status: int, body: Any) -> Refused | ForeignAnswer:
    """What is raised of a body, read or not. A proxy refuses as well, and in JSON too."""
    if isinstance(body, bytes):
        try:
            body = json.loads(body)
        except ValueError:
            return ForeignAnswer(status)
    told = isinstance(body, dict) and all(name in body for name in ("code", "detail", "status"))
    return Refused(body) if told else ForeignAnswer(status)
