"""Asks a server that follows made-up payments the same question as JSON and as Arrow, and compares what pyarrow makes of it."""
import json
import sys
import time
import urllib.error
import urllib.request
from datetime import datetime
from decimal import Decimal

import pyarrow
import pyarrow.ipc

base = sys.argv[1] + "/v1/aggregates/payments"
ARROW = "application/vnd.apache.arrow.stream"


def ask(url, accept="application/json", body=None, method=None):
    request = urllib.request.Request(url, data=body and json.dumps(body).encode(), method=method)
    request.add_header("content-type", "application/json")
    request.add_header("accept", accept)
    return urllib.request.urlopen(request)


definition = {
    "table": "public.payments",
    "measures": [{"name": "amount", "sum": "amount"}, {"name": "n", "count": "*"}, {"name": "amounts", "count": "amount"}],
    "dimensions": ["currency"],
    "time": {"column": "created_at", "granularity": "day", "time_zone": "Europe/Madrid"},
    "rollups": ["month"],
}
deadline = time.time() + 60
while True:
    try:
        if json.load(ask(base, body=definition, method="PUT"))["state"] == "live":
            break
    except urllib.error.HTTPError as error:
        assert error.code in (422, 503), error.read()
    assert time.time() < deadline, "the aggregate is not filled"
    time.sleep(0.1)


def expected(kind, value):
    """A value of JSON as pyarrow says it."""
    if value is None:
        return None
    if kind == "timestamp":
        return datetime.fromisoformat(value)
    return Decimal(value) if kind == "decimal" else value


compared = 0
for question in (
    "granularity=day",
    "granularity=month&group_by=&measures=n",
    "granularity=month&measures=avg(amount),n",
    "granularity=all&measures=n&order=-n&limit=2&share=true&others=true",
    "granularity=day&from=1990&to=1991",
):
    # The generator goes on: both answers have to be of one position.
    for _ in range(200):
        answer = json.load(ask(f"{base}/data?{question}"))
        table = pyarrow.ipc.open_stream(ask(f"{base}/data?{question}", ARROW).read()).read_all()
        if table.schema.metadata[b"tidemark.lsn"].decode() == answer["as_of"]["lsn"]:
            break
    else:
        sys.exit(f"{question}: no two answers of one position")
    kinds = {column["name"]: column["type"] for column in answer["columns"]}
    assert table.column_names == list(kinds), table.schema
    rows = [{name: expected(kinds[name], value) for name, value in row.items()} for row in answer["data"]]
    assert table.to_pylist() == rows, question
    compared += table.num_rows
    print(question, table.num_rows, "rows;", ", ".join(f"{field.name} {field.type}" for field in table.schema))
assert compared > 10
print(f"pyarrow {pyarrow.__version__} reads what JSON says: {compared} rows")
