// The HTTP face as the page uses it. A refusal is thrown as the problem that the server sent.
import type { Value } from "./exact";

export interface Problem {
  status: number;
  code: string;
  detail: string;
  hint?: string;
  title?: string;
  errors?: { parameter?: string; pointer?: string; detail?: string; excerpt?: string }[];
  progress?: Progress;
}

export interface Progress {
  rows_done: number;
  rows_estimated: number;
  fraction: number | null;
  rows_per_second: number;
  eta_seconds: number | null;
  /** From here on it answers already. */
  covered_from: string | null;
}

export interface Column {
  name: string;
  type: string;
  role: "time" | "dimension" | "measure" | "flag";
  /** A dimension that says in what money amounts are: different ones are never added up. */
  currency?: true;
  scale?: number;
  time_zone?: string;
}

export type Row = Record<string, Value>;

export interface AsOf {
  lsn: string;
  commit_time?: string | null;
  lag_ms?: number;
  state?: string;
}

export interface Remark {
  code: string;
  message: string;
}

export interface Answer {
  aggregate: string;
  columns: Column[];
  data: Row[];
  as_of: AsOf;
  page: { next: string | null };
  stats: { cells_read: number; served_from: string };
  warnings: Remark[];
}

export interface Listed {
  name: string;
  state: "building" | "live" | "halted";
  table: string;
  levels: string[];
  time_zone: string;
  dimensions: string[];
  measures: string[];
}

export interface MeasureDefinition {
  name: string;
  sum?: string;
  count?: string;
  avg?: string;
  where?: string;
  [more: string]: unknown;
}

export interface Definition {
  table: string;
  measures: MeasureDefinition[];
  dimensions?: string[];
  time?: { column: string; granularity: string; time_zone?: string; codec?: string; origin?: string };
  rollups?: string[];
  where?: string;
  drill_through?: boolean;
}

export interface Description {
  name: string;
  version: number;
  state: "building" | "live" | "halted";
  halted?: { code: string; message: string; remedy: string };
  definition: Definition;
  columns: Column[];
  levels: string[];
  sql: string;
  warnings: Remark[];
  progress?: Progress;
  next?: { version: number; state: string; definition: Definition; progress?: Progress };
}

export interface Backfill {
  name: string;
  version: number;
  phase: "building" | "paused" | "done" | "halted";
  progress: Progress | null;
  error: { code: string; message: string; remedy: string } | null;
}

export interface Check {
  name: string;
  outcome: "ok" | "warning" | "failed";
  message: string;
  remedy?: string;
}

export interface Table {
  name: string;
  state: string;
  code?: string;
  message?: string;
  remedy?: string;
  partitions: number;
  row_image: boolean;
  columns: { name: string; type: string; primary_key: boolean }[];
}

export interface Source {
  name: string;
  connector: string;
  database?: string;
  slot?: string;
  state: string;
  code?: string;
  message?: string;
  remedy?: string;
  ready: boolean;
  unavailable?: { code: string; message: string; remedy: string };
  lag_ms: number;
  reconnects?: number;
  retained_wal_bytes?: number | null;
  slot_status?: { wal_status?: string; restart_lsn?: string; confirmed_flush_lsn?: string; safe_wal_bytes?: number; spilled_bytes?: number };
  applied_lsn: string;
  durable_lsn: string;
  acknowledged_lsn?: string;
  received_lsn?: string;
  upstream_lsn?: string;
  checks?: Check[];
  tables: Table[];
  totals: { transactions: number; inserts: number; updates: number; deletes: number; truncates: number; snapshot_rows: number };
}

/** A refusal, or that nobody answers. */
export class Refusal extends Error {
  constructor(readonly problem: Problem) {
    super(problem.detail);
  }
}

const TOKEN = "token";

/** A request with this tab's token, which is asked for where the server wants one. It is forgotten with the tab. */
export async function authorized(path: string, options: RequestInit = {}): Promise<Response> {
  const token = sessionStorage.getItem(TOKEN);
  const headers = new Headers(options.headers);
  if (token) headers.set("Authorization", `Bearer ${token}`);
  const response = await fetch(path, { cache: "no-store", ...options, headers });
  if (response.status !== 401) return response;
  // Several requests are refused at once: one of them asks.
  if (sessionStorage.getItem(TOKEN) === token) {
    const given = prompt("This server asks for a token:");
    if (!given) return response;
    sessionStorage.setItem(TOKEN, given.trim());
  }
  return authorized(path, options);
}

export async function ask<T>(path: string, options: RequestInit = {}): Promise<T> {
  const response = await authorized(path, options).catch((error: unknown) => {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new Refusal({ status: 0, code: "no_answer", detail: "The server does not answer.", hint: "See that it runs; this page goes on by itself." });
  });
  if (!response.ok) throw new Refusal(await problem(response));
  return response.status === 204 ? (undefined as T) : ((await response.json()) as T);
}

export function send<T>(method: string, path: string, body?: unknown, type = "application/json"): Promise<T> {
  const text = typeof body === "string" ? body : JSON.stringify(body);
  return ask<T>(path, { method, ...(body === undefined ? {} : { body: text, headers: { "Content-Type": type } }) });
}

export async function problem(response: Response): Promise<Problem> {
  const body = (await response.json().catch(() => null)) as Problem | null;
  return body ?? { status: response.status, code: "no_problem", detail: `The server answered ${response.status}.` };
}

export function refusalOf(error: unknown): Problem {
  if (error instanceof Refusal) return error.problem;
  return { status: 0, code: "page_failed", detail: error instanceof Error ? error.message : String(error) };
}

export const aggregatePath = (name: string) => `/v1/aggregates/${encodeURIComponent(name)}`;
