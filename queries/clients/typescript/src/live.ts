// A live answer: the rows of a question, kept as the server's events say. A cut connection resumes after the last
// event, so that nothing is missed and nothing is shown twice. A transaction is in one event or in none.
//
// The surprise: what is kept stays true where it was, at its `lsn`, while nobody says whether it is the newest. So it is kept and
// shown through a cut and through `resync`, with the trouble beside it; only an event that follows on it, or all of it anew, ends that.
import { createParser } from "eventsource-parser";

import type { Answer, AsOf, Column, Row } from "./answer.js";
import { ForeignAnswer, ours } from "./foreign_answer.js";
import { Lost } from "./lost.js";
import { Order } from "./order.js";
import { Refused, refusal } from "./refused.js";

/** The answer as it is at `asOf.lsn`. `rows` is made anew with each change: keep it as long as you like. */
export interface Live {
  columns: Column[];
  rows: Row[];
  asOf: AsOf;
  /** Why nobody vouches that it still is the newest; null while it is. */
  trouble: string | null;
}

/** Sends a request for the events after one, or for all of the answer. */
export type Ask = (lastId: string | undefined, signal: AbortSignal) => Promise<Response>;

const PAUSES_MS = [200, 500, 1000, 2000, 5000] as const;
/** Three times the pause after which the server says something in any case. A dead connection looks as a quiet one does. */
const SILENCE_MS = 45_000;

/** Every state of an answer from now on, until the signal aborts; see `Tidemark.follow`. */
export async function* follow(ask: Ask, order: string, signal: AbortSignal): AsyncGenerator<Live> {
  const kept = new Kept(order);
  let failures = 0;
  while (!signal.aborted) {
    let trouble = "the connection was lost";
    let told = failures > 0;
    try {
      for await (const event of events(ask, kept.lastId, signal)) {
        failures = 0;
        told = false;
        if (kept.take(event)) yield kept.live();
      }
      if (!kept.begun) throw new Lost("it ended before there was an answer", false);
    } catch (failure) {
      if (signal.aborted) return;
      if (!passes(failure, kept.begun)) throw failure;
      trouble = (failure as Error).message;
      // A connection that was cut is often there again at once; silence has lasted already.
      told ||= !(failure instanceof Lost) || failure.silent;
    }
    if (told && kept.doubt(trouble)) yield kept.live();
    await pause(PAUSES_MS[Math.min(failures++, PAUSES_MS.length - 1)] ?? 5000, signal);
  }
}

function passes(failure: unknown, begun: boolean): boolean {
  if (failure instanceof Refused) return failure.passes;
  return begun && (failure instanceof Lost || (failure instanceof ForeignAnswer && failure.passes));
}

interface Event {
  name: string;
  id: string | undefined;
  body: unknown;
}

/** The events of one connection. One without the empty line at its end was cut off, and is none. */
async function* events(ask: Ask, lastId: string | undefined, signal: AbortSignal): AsyncGenerator<Event> {
  const connection = new Connection(signal);
  try {
    const response = ours(await connection.heard(ask(lastId, connection.signal)), "text/event-stream");
    if (!response.ok || !response.body) {
      throw refusal(response.status, await connection.heard(response.json()).catch(() => undefined));
    }
    const whole: Event[] = [];
    const parser = createParser({ onEvent: ({ event = "", id, data }) => whole.push({ name: event, id, body: JSON.parse(data) }) });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let part = await connection.heard(reader.read()); !part.done; part = await connection.heard(reader.read())) {
      parser.feed(part.value);
      for (const event of whole.splice(0)) {
        if (event.name === "error") throw refusal(500, event.body);
        yield event;
      }
    }
  } finally {
    // Whoever stops reading lets go of the connection.
    connection.end();
  }
}

/** A connection that ends by itself where nothing is heard of it. While nobody listens, it may be silent. */
class Connection {
  private readonly ending = new AbortController();
  readonly signal = this.ending.signal;
  readonly end = () => {
    this.outer.removeEventListener("abort", this.end);
    this.ending.abort();
  };

  constructor(private readonly outer: AbortSignal) {
    outer.addEventListener("abort", this.end);
  }

  /** What comes of it. */
  async heard<T>(awaited: Promise<T>): Promise<T> {
    let dead = false;
    const watchdog = setTimeout(() => {
      dead = true;
      this.end();
    }, SILENCE_MS);
    try {
      return await awaited;
    } catch (failure) {
      throw new Lost(dead ? `nothing was heard for ${SILENCE_MS / 1000} s` : failure, dead);
    } finally {
      clearTimeout(watchdog);
    }
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

class Kept {
  begun = false;
  /** Of the last event, for resuming only: what it says of the position is the server's affair. */
  lastId: string | undefined;
  private columns: Column[] = [];
  private order = new Order("", []);
  private readonly rows = new Map<string, Row>();
  private asOf: AsOf = { lsn: "", commit_time: "" };
  private trouble: string | null = null;

  constructor(private readonly asked: string) {}

  /** Takes an event. Whether there is something else to show. */
  take({ name, id, body }: Event): boolean {
    if (name === "resync") {
      // All of it comes again.
      this.lastId = undefined;
      return this.doubt((body as { reason: string }).reason);
    }
    if (name === "snapshot") this.begin(body as Answer);
    else if (this.lastId === undefined || (name !== "change" && name !== "progress")) return false;
    else this.move(body as Moved);
    if (name === "change") this.change(body as Change);
    this.lastId = id;
    const doubted = this.trouble !== null;
    this.trouble = null;
    return name !== "progress" || doubted;
  }

  /** Nobody vouches for it any more. Whether that is something else to show. */
  doubt(trouble: string): boolean {
    const other = this.trouble !== trouble;
    this.trouble = trouble;
    return this.begun && other;
  }

  live(): Live {
    return { columns: this.columns, rows: this.order.sorted(this.rows.values()), asOf: this.asOf, trouble: this.trouble };
  }

  private begin({ columns, data, as_of }: Answer): void {
    this.begun = true;
    this.columns = columns;
    this.order = new Order(this.asked, columns);
    this.asOf = as_of;
    this.rows.clear();
    this.put(data as Row[]);
  }

  private move({ as_of, lag_ms }: Moved): void {
    this.asOf = { ...this.asOf, ...as_of, lag_ms };
  }

  private change(body: Change): void {
    for (const row of body.delete) this.rows.delete(this.key(row));
    this.put(body.upsert);
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
