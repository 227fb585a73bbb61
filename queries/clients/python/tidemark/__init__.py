"""Exact, live totals of a Postgres table. Needs nothing but the standard library.

    from tidemark import Tidemark

    totals = Tidemark("http://127.0.0.1:7171")
    answer = totals.data("payments_by_month", granularity="year")
    for row in answer.rows:
        print(row["time"], row["amount"])      # datetime, Decimal
    print(answer.lsn)                          # all of it is true there
"""

from .answer import Answer, Live
from .client import Tidemark
from .foreign_answer import ForeignAnswer
from .refused import Refused

__all__ = ["Answer", "ForeignAnswer", "Live", "Refused", "Tidemark"]
