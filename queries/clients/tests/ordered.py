"""Shuffled rows of an aggregate are in the server's order again, by every column of the answer and its reverse.

    python3 ordered.py http://127.0.0.1:7171 AGGREGATE
"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "python"))

from tidemark import Tidemark
from tidemark.order import Order

base, name = sys.argv[1:]
totals = Tidemark(base)
columns = totals.data(name).body["columns"]
names = [column["name"] for column in columns if column["role"] != "flag"]
failed = []
for asked in ["", *names, *(f"-{name}" for name in names), f"{names[-1]}, -{names[1]}"]:
    expected = totals.data(name, order=asked or None).body["data"]
    order = Order(asked, columns)
    rows = [(order.place(row), row) for row in expected]
    random.Random(7).shuffle(rows)
    if order.sorted(rows) != expected:
        failed.append(f"{asked}: {order.sorted(rows)}, not {expected}")
sys.exit("\n".join(failed) or 0)
