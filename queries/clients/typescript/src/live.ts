// A live answer: the rows of a question, kept as the server's events say. A cut connection resumes after the last
// event, so that nothing is missed and nothing is shown twice. A transaction is in one event or in none.
import { EventSourceParserStream } from "eventsource-parser/stream";

import type { Answer, AsOf, Column, Row } from "./answer.js";
import { ForeignAnswer } from "./foreign_answer.js";
import { Refused, refusal } from "./refused.js";

/** The answer as it is at `asOf.lsn`. `rows` is made anew with each change: keep it as long as you like. */
export interface Live {
  columns: Column[];
  rows: Row[];
  asOf: AsOf;
}

/** Sends a request for the events after one, or for all of the answer. */
export type Ask = (lastId: string | undefined, signal: AbortSignal) => Promise<Response>;

const PAUSES_MS = [200, 500, 1000, 2000, 5000] as const;

/** Every state of an answer from now on, until the signal aborts. A refusal that would come again is thrown. */
export async function* follow(ask: Ask, signal: AbortSignal): AsyncGenerator<Live> {
  let kept: Kept | undefined;
  let failures = 0;
  while (!signal.aborted) {
    try {
      for await (const event of events(await ask(kept?.lastId, signal))) {
        failures = 0;
        if (event.name === "error") throw refusal(500, event.body);
        kept = event.name === "resync" ? undefined : taken(kept, event);
        if (kept && event.name !== "progress") yield kept.live();
      }
    } catch (failure) {
      if (signal.aborted) return;
      if (failure instanceof ForeignAnswer || (failure instanceof Refused && !failure.passes)) throw failure;
    }
    await pause(PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)] ?? 5000, signal);
  }
}

interface Event {
  name: string;
  id: string | undefined;
  body: unknown;
}

async function* events(response: Response): AsyncGenerator<Event> {
  if (!response.ok || !response.body) throw refusal(response.status, await response.json().catch(() => undefined));
  const stream = response.body.pipeThrough(new TextDecoderStream()).pipeThrough(new EventSourceParserStream());
  const reader = stream.getReader();
  try {
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      yield { name: part.value.event ?? "", id: part.value.id, body: JSON.parse(part.value.data) as unknown };
    }
  } finally {
    // Whoever stops reading lets go of the connection.
    await reader.cancel().catch(() => undefined);
  }
}

interface Change {
  upsert: Row[];
  delete: Row[];
}

interface Moved {
  as_of: AsOf;
  lag_ms: number;
}

function taken(kept: Kept | undefined, { name, id, body }: Event): Kept | undefined {
  if (name === "snapshot") return Kept.begin(body as Answer, id);
  if (name === "change") kept?.change(body as Change);
  if (name === "change" || name === "progress") kept?.moved(body as Moved, id);
  return kept;
}

class Kept {
  private constructor(
    private readonly columns: Column[],
    private readonly rows: Map<string, Row>,
    private asOf: AsOf,
    /** Of the last event, for resuming only: what it says of the position is the server's affair. */
    public lastId: string | undefined,
  ) {}

  static begin({ columns, data, as_of }: Answer, id: string | undefined): Kept {
    const kept = new Kept(columns, new Map(), as_of, id);
    kept.put(data);
    return kept;
  }

  change(body: Change): void {
    for (const row of body.delete) this.rows.delete(this.key(row));
    this.put(body.upsert);
  }

  moved(body: Moved, id: string | undefined): void {
    this.lastId = id ?? this.lastId;
    this.asOf = { ...this.asOf, ...body.as_of, lag_ms: body.lag_ms };
  }

  live(): Live {
    return { columns: this.columns, rows: [...this.rows.values()], asOf: this.asOf };
  }

  private put(rows: Row[]): void {
    for (const row of rows) this.rows.set(this.key(row), row);
  }

  private key(row: Row): string {
    const parts = this.columns.filter(({ role }) => role === "time" || role === "dimension");
    return JSON.stringify(parts.map(({ name }) => row[name] ?? null));
  }
}

function pause(ms: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const over = () => {
      clearTimeout(timer);
      signal.removeEventListener("abort", over);
      resolve();
    };
    const timer = setTimeout(over, ms);
    signal.addEventListener("abort", over);
  });
}
