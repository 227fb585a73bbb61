"""A server that answers as Tidemark does, or as what may stand in its place: what the clients are tried against.

The first part of a path names the scene, so that one server plays all of them: a client's base is ``http://host:port/scene``.
Each request for a live answer gets the next of the scene's answers, the last one again and again. It prints its address.
``GET /asked`` has every request so far, and the token that came with it.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

COLUMNS = [
    {"name": "account", "type": "text", "role": "dimension"},
    {"name": "amount", "type": "decimal", "role": "measure", "scale": 2},
]


def row(account, amount):
    return {"account": account, "amount": amount}


def snapshot(lsn, *rows):
    return "snapshot", lsn, {"columns": COLUMNS, "as_of": {"lsn": lsn}, "data": list(rows)}


def change(lsn, *rows, delete=()):
    return "change", lsn, {"as_of": {"lsn": lsn}, "lag_ms": 1, "upsert": list(rows), "delete": list(delete)}


def progress(lsn):
    return "progress", lsn, {"as_of": {"lsn": lsn}, "lag_ms": 1}


def problem(status, code):
    return {"status": status, "code": code, "detail": f"it is {code}", "title": "", "type": "", "request_id": ""}


RESYNC = ("resync", None, {"reason": "the aggregate was built anew", "since": None})
# The last of an answer: half of the event before it, as where a proxy was cut; or nothing, with the connection left open.
HALF, SILENCE = "half", "silence"
FIRST = snapshot("0/1", row("a", "1.00"))
HTML = "<html>Please log in.</html>"
# A status with what comes with it, or the events of a live answer.
SCENES = {
    "elsewhere": [(302, "")],
    "caught": [[FIRST]],
    "forbidden": [(403, {"message": "forbidden by the proxy"})],
    "not_found": [(404, HTML)],
    "bad_gateway": [(502, HTML)],
    "login": [(200, HTML)],
    "login_later": [[FIRST], (200, HTML)],
    "gateway_later": [[FIRST], (502, HTML), [FIRST, change("0/2", row("a", "2.00"))]],
    "empty": [[HALF]],
    "halted": [[FIRST], (503, problem(503, "row_image_missing"))],
    "ended": [[FIRST, ("error", None, problem(503, "slot_lost"))]],
    "restarted": [[FIRST], (503, problem(503, "starting")), [snapshot("0/2", row("a", "2.00"))]],
    "building": [(503, problem(503, "building")), [FIRST]],
    "resumed": [[FIRST], [progress("0/1"), change("0/2", row("a", "2.00"))]],
    "resync": [[FIRST, RESYNC, RESYNC, snapshot("0/2", row("a", "2.00"))]],
    "half": [[FIRST, change("0/2", row("a", "2.00")), HALF], [change("0/3", row("a", "3.00"))]],
    "silent": [[FIRST, SILENCE], [change("0/2", row("a", "2.00"))]],
    "ordered": [
        [
            snapshot("0/1", row("b", "10.00"), row("a", "9.00")),
            change("0/2", row("c", "90071992547409931.01"), delete=[row("a", None)]),
            change("0/3", row("d", "90071992547409931.02"), row("e", None), row("f", "-2.00"), row("g", "-10.00")),
        ]
    ],
}


class Fake(BaseHTTPRequestHandler):
    # Without a length or chunks an answer ends with its connection, wherever that is.
    protocol_version = "HTTP/1.0"
    asked = []

    def do_GET(self):
        scene, _, path = self.path[1:].partition("/")
        if scene == "asked":
            return self.say(200, Fake.asked)
        token = self.headers.get("Authorization")
        Fake.asked.append({"path": self.path, "last": self.headers.get("Last-Event-ID"), "token": token})
        answers = SCENES[scene]
        before = sum(other["path"].startswith(f"/{scene}/") for other in Fake.asked[:-1])
        answer = answers[min(before, len(answers) - 1)]
        if isinstance(answer, tuple):
            return self.say(*answer)
        self.live(answer, "ndjson" in self.headers.get("Accept", ""))

    def say(self, status, body):
        self.send_response(status)
        if status == 302:
            # Another host, as far as a client can tell.
            self.send_header("Location", f"http://localhost:{self.server.server_address[1]}/caught/v1")
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.end_headers()
        self.wfile.write((body if isinstance(body, str) else json.dumps(body)).encode())

    do_DELETE = do_GET

    def live(self, events, lines):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson" if lines else "text/event-stream")
        self.end_headers()
        for event, after in zip(events, [*events[1:], None]):
            if event in (HALF, SILENCE):
                time.sleep(30 if event == SILENCE else 0)
                return
            name, id, body = event
            text = json.dumps({"event": name, "id": id, "data": body}) + "\n"
            if not lines:
                text = f"event: {name}\ndata: {json.dumps(body)}\n" + (f"id: {id}\n" if id else "") + "\n"
            self.wfile.write(text[: len(text) // 2 if after == HALF else None].encode())
            self.wfile.flush()

    def log_message(self, *_):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Fake)
    server.daemon_threads = True
    print(f"http://127.0.0.1:{server.server_address[1]}", flush=True)
    server.serve_forever()
