"""The Python client in every scene of ``fake.py``: what it yields, and what it raises.

    python3 scenes.py http://127.0.0.1:PORT     an address that ``fake.py`` printed
"""

import json
import signal
import sys
from itertools import islice
from pathlib import Path
from urllib.request import urlopen

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from tidemark import ForeignAnswer, Tidemark, client

fake = sys.argv[1]
# Nobody waits here for three quarters of a minute.
client._SILENCE_S = 0.5
client._PAUSES_S = (0.05,)
failed = []


def follow(scene, most, **question):
    """Amounts, and whether there was trouble: so many, or until it raises."""
    base = "http://127.0.0.1:2" if scene == "nobody" else f"{fake}/{scene}"
    seen = []
    try:
        for live in islice(Tidemark(base, token="secret").follow("x", **question), most):
            seen.append((live.lsn, " ".join(str(row["amount"]) for row in live.rows), bool(getattr(live, "trouble", None))))
    except Exception as failure:
        seen.append(getattr(failure, "code", None) or getattr(failure, "status", None) or type(failure).__name__)
    return seen


def scene(name, expected, most=9, **question):
    def late(*_):
        raise AssertionError("nothing comes any more")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(5)
    seen = follow(name, most, **question)
    signal.alarm(0)
    if seen != expected:
        failed.append(f"{name}: {seen}, not {expected}")


first, second = ("0/1", "1.00", False), ("0/2", "2.00", False)
troubled = ("0/1", "1.00", True)

scene("elsewhere", [302])
asked = json.load(urlopen(f"{fake}/asked"))
if any(one["path"].startswith("/caught") for one in asked):
    failed.append(f"the address points elsewhere, and that was asked: {asked[-1]}")
scene("nobody", ["URLError"])
scene("forbidden", [403])
scene("not_found", [404])
scene("bad_gateway", [502])
scene("login", [200])
scene("empty", ["ConnectionError"])
scene("login_later", [first, 200])
scene("gateway_later", [first, troubled, first, second], most=4)
scene("halted", [first, "row_image_missing"])
scene("ended", [first, "slot_lost"])
scene("restarted", [first, troubled, second], most=3)
scene("building", [first], most=1)
scene("resumed", [first, second], most=2)
scene("resync", [first, troubled, second], most=3)
scene("half", [first, ("0/3", "3.00", False)], most=2)
scene("silent", [first, troubled, second], most=3)
largest = "90071992547409931.02 90071992547409931.01 10.00 -2.00 -10.00 None"
scene("ordered", [
    ("0/1", "10.00 9.00", False), ("0/2", "90071992547409931.01 10.00", False), ("0/3", largest, False),
], most=3, order="-amount")

for path in ("elsewhere", "forbidden", "login"):
    try:
        Tidemark(f"{fake}/{path}").data("x")
        failed.append(f"data of {path} is an answer")
    except ForeignAnswer:
        pass

sys.exit("\n".join(failed) or 0)
