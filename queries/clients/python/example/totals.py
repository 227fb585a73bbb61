"""Registers totals of payments by month and currency, prints them, then follows them until they reach a number of payments.

    python example/totals.py http://127.0.0.1:7171 payments_by_currency 5
"""

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tidemark import Refused, Tidemark

base, name, until = (sys.argv[1:] + ["http://127.0.0.1:7171", "payments_by_currency", "0"][len(sys.argv) - 1 :])[:3]
totals = Tidemark(base, token=os.environ.get("TIDEMARK_TOKEN"))

totals.register(
    name,
    """CREATE MATERIALIZED VIEW x AS SELECT date_trunc('month', created_at), currency, sum(amount) AS amount, count(*) AS n
       FROM public.payments GROUP BY 1, 2""".replace("VIEW x", f"VIEW {name}"),
)
totals.until_live(name)

for page in totals.pages(name, limit=2):
    for row in page.rows:
        print(row["time"].isoformat(), row["currency"], row["amount"], row["n"])
    if page.next is None:
        print(f"at {page.lsn}")

try:
    totals.data(name, granularity="fortnight")
except Refused as refused:
    print(f"refused {refused.code}")

for live in totals.follow(name, granularity="all"):
    if live.trouble:
        print(f"not the newest: {live.trouble}", file=sys.stderr)
        continue
    payments = sum(row["n"] for row in live.rows)
    print(f"live {payments} at {live.lsn}", flush=True)
    if payments >= int(until):
        break
