"""What the server refuses, and why."""

from __future__ import annotations

from typing import Any


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
