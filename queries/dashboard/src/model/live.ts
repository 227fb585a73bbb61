// A live answer: the rows of a question, kept as the server's events say. A cut connection resumes after the last
// event, so that nothing is missed and nothing is shown twice; so does one that says nothing any more, which a browser alone would
// not notice. `fetch` instead of EventSource: a refusal has a body.
// While nobody looks the connection is let go: browsers have six per host, over all windows.
import { signal } from "@preact/signals";
import { createParser } from "eventsource-parser";

import { type Answer, type AsOf, type Column, type Problem, type Row, Refusal, authorized, problem, refusalOf } from "./api";

export interface Live {
  columns: Column[];
  rows: Map<string, Row>;
  asOf: AsOf;
  stats: Answer["stats"];
  warnings: Answer["warnings"];
}

const RETRY_MS = [200, 500, 1000, 2000, 5000];
/** The server speaks every 15 s. */
const SILENCE_MS = 45_000;

/** Follows a question until `stop`. What it shows is a signal: null until the first answer came. */
export function follow(path: string) {
  const answer = signal<Live | null>(null);
  const refused = signal<Problem | null>(null);
  const connected = signal(false);
  let reading = new AbortController();
  let stopped = false;
  const hide = () => document.hidden && reading.abort();
  document.addEventListener("visibilitychange", hide);
  let lastId: string | undefined;
  let failures = 0;

  const take = (name: string, id: string | undefined, data: string): void => {
    const body = JSON.parse(data);
    failures = 0;
    if (id) lastId = id;
    const live = answer.peek();
    if (name === "snapshot") {
      answer.value = begun(body as Answer);
      refused.value = null;
    } else if ((name === "change" || name === "progress") && live) {
      // The position is what the body says: the id is for resuming only.
      const asOf = { ...live.asOf, ...body.as_of, lag_ms: body.lag_ms };
      answer.value = name === "change" ? changed(live, body, asOf) : { ...live, asOf };
      refused.value = null;
    } else if (name === "resync") {
      lastId = undefined;
      // What is shown stays true of its position; that it stands still has to be said.
      refused.value = { status: 503, code: "building", detail: body.reason };
    } else if (name === "error") {
      throw new Refusal(body as Problem);
    }
  };

  const read = async (): Promise<void> => {
    let silence = 0;
    const heard = () => {
      clearTimeout(silence);
      silence = window.setTimeout(() => reading.abort(), SILENCE_MS);
    };
    reading.signal.addEventListener("abort", () => clearTimeout(silence));
    heard();
    const headers: Record<string, string> = { Accept: "text/event-stream" };
    if (lastId) headers["Last-Event-ID"] = lastId;
    const response = await authorized(path, { headers, signal: reading.signal });
    if (!response.ok || !response.body) throw new Refusal(await problem(response));
    connected.value = true;
    const parser = createParser({ onEvent: (event) => take(event.event ?? "", event.id, event.data) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      heard();
      parser.feed(part.value);
    }
  };

  const run = async (): Promise<void> => {
    for (await seen(); !stopped; await seen()) {
      reading = new AbortController();
      try {
        await read();
      } catch (error) {
        if (reading.signal.aborted) continue;
        if (error instanceof Refusal) refused.value = refusalOf(error);
        // What was refused for what it says will be refused again.
        if (error instanceof Refusal && error.problem.status >= 400 && error.problem.status < 500 && ![409, 429].includes(error.problem.status)) return;
      } finally {
        reading.abort();
        connected.value = false;
      }
      const pause = RETRY_MS[Math.min(failures, RETRY_MS.length - 1)] ?? 5000;
      failures += 1;
      await new Promise((resume) => setTimeout(resume, pause));
    }
  };
  void run();
  const stop = () => {
    stopped = true;
    document.removeEventListener("visibilitychange", hide);
    reading.abort();
  };
  return { answer, refused, connected, stop };
}

/** Until somebody looks at the page. */
async function seen(): Promise<void> {
  while (document.hidden) await new Promise((resume) => document.addEventListener("visibilitychange", resume, { once: true }));
}

function key(columns: Column[], row: Row): string {
  return JSON.stringify(columns.filter(({ role }) => role === "time" || role === "dimension").map(({ name }) => row[name] ?? null));
}

function begun({ columns, data, as_of, stats, warnings }: Answer): Live {
  return { columns, rows: new Map(data.map((row) => [key(columns, row), row])), asOf: as_of, stats, warnings };
}

function changed(live: Live, { upsert, delete: gone }: { upsert: Row[]; delete: Row[] }, asOf: AsOf): Live {
  const rows = new Map(live.rows);
  for (const row of gone) rows.delete(key(live.columns, row));
  for (const row of upsert) rows.set(key(live.columns, row), row);
  return { ...live, rows, asOf };
}
