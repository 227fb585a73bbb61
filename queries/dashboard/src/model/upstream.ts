// What every page shows of the server: its sources and aggregates, looked at once a second while somebody looks.
import { computed, signal } from "@preact/signals";

import { type Listed, type Problem, type Source, ask, refusalOf } from "./api";

const EVERY_MS = 1000;
const HIDDEN_EVERY_MS = 10_000;
/** Points of a sparkline: two minutes. */
const KEPT = 120;

/** None where a token sees a part of the data only: it is told nothing of the source. */
export const sources = signal<Source[] | null>(null);
export const aggregates = signal<Listed[] | null>(null);
export const unreachable = signal<Problem | null>(null);

/** Of the first source, newest last. */
export const lags = signal<number[]>([]);
export const retained = signal<number[]>([]);
/** Transactions per second. */
export const rates = signal<number[]>([]);

export const source = computed(() => sources.value?.[0] ?? null);

/** How far answers are behind upstream; nothing where upstream is away and nobody can say. */
export function lagOf({ ready, state, lag_ms }: Source): number | null {
  return ready && state !== "reconnecting" && state !== "halted" ? lag_ms : null;
}

let before: { transactions: number; at: number } | null = null;
let sourcesJson = "";
let aggregatesJson = "";

const told = () => ask<{ data: Source[] }>("/v1/sources").catch((error: unknown) => {
  if (refusalOf(error).status === 403) return { data: [] };
  throw error;
});

async function look(): Promise<void> {
  const [first, second] = await Promise.all([
    told(),
    ask<{ data: Listed[] }>("/v1/aggregates"),
  ]);
  unreachable.value = null;
  remember(first.data[0]);
  // An unchanged list keeps what is drawn from it.
  const list = second.data.map(({ name, state, table, levels, time_zone, dimensions, measures }) => ({ name, state, table, levels, time_zone, dimensions, measures }));
  const json = JSON.stringify(list);
  if (json !== aggregatesJson) aggregates.value = list;
  aggregatesJson = json;
  const stated = JSON.stringify(first.data);
  if (stated !== sourcesJson) sources.value = first.data;
  sourcesJson = stated;
}

function remember(one: Source | undefined): void {
  if (!one) return;
  const at = performance.now();
  const lag = lagOf(one);
  if (lag !== null) lags.value = [...lags.value, lag].slice(-KEPT);
  if (typeof one.retained_wal_bytes === "number") retained.value = [...retained.value, one.retained_wal_bytes].slice(-KEPT);
  if (before && at > before.at && one.totals.transactions >= before.transactions) {
    const rate = ((one.totals.transactions - before.transactions) * 1000) / (at - before.at);
    rates.value = [...rates.value, rate].slice(-KEPT);
  }
  before = { transactions: one.totals.transactions, at };
}

/** Looks again now: something was just registered or dropped. */
export async function lookAgain(): Promise<void> {
  await look().catch((error: unknown) => {
    unreachable.value = refusalOf(error);
  });
}

export async function follow(): Promise<never> {
  for (;;) {
    await lookAgain();
    await new Promise((resume) => setTimeout(resume, document.hidden ? HIDDEN_EVERY_MS : EVERY_MS));
  }
}
