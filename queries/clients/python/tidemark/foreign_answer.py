"""An answer that is not Tidemark's: of a proxy, of a page that asks for a password, of another server at the address."""

from __future__ import annotations


class ForeignAnswer(Exception):
    """``status`` is that of HTTP. Nothing of the answer is believed, whatever it is."""

    def __init__(self, status: int) -> None:
        if 300 <= status < 400:
            said = "the address points elsewhere, and a token is not sent after it; give the address that it points to"
        else:
            said = "the answer is none of Tidemark's; see what stands at the address, and on the way to it"
        super().__init__(f"status {status}: {said}")
        self.status = status

    @property
    def passes(self) -> bool:
        """Whether it is what a proxy says of a server that is not there at the moment."""
        return self.status >= 500
