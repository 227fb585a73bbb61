// From the rows of an answer to what is drawn: one panel per currency, one series per group, the largest first and the
// rest together. All arithmetic is exact.
import type { Column, Definition, Row } from "./api";
import { type Granularity, filled } from "./bucket";
import { type Value, add, exact, negated, sum, text } from "./exact";
import { type View, addsUp, currencyOf, groups } from "./view";

/** Groups that are shown by themselves. */
const SHOWN = 6;

export interface Series {
  name: string;
  /** What picks this group; nothing for "others". */
  fixed: [string, string | null][] | null;
  values: Value[];
  /** Undefined where several buckets do not add up. */
  total: Value;
}

export interface Panel {
  /** The currency; nothing where amounts have none. */
  title: string | null;
  fixed: [string, string | null][];
  series: Series[];
  total: Value;
  /** How many groups are not shown, not even together. */
  missing: number;
}

export interface Drawn {
  /** Begins of the buckets; null for rows without a time. */
  times: (string | null)[];
  open: boolean[];
  panels: Panel[];
}

export function drawn(of: Definition, view: View, columns: Column[], rows: Iterable<Row>): Drawn {
  const all = [...rows];
  const dimensions = groups(of, view);
  const currency = currencyOf(of);
  const panelled = currency !== null && dimensions.includes(currency) ? currency : null;
  const inner = dimensions.filter((name) => name !== panelled);
  const whole = view.by === null || view.by === "all";
  const times = whole ? [null] : timesOf(all, view.by);
  const at = new Map(times.map((time, index) => [time, index]));
  const open = times.map(() => false);
  const panels = new Map<string, { key: string | null; groups: Map<string, { key: Value[]; values: Value[] }> }>();
  for (const row of all) {
    const index = whole ? 0 : at.get(timeOf(row));
    if (index === undefined) continue;
    if (row["complete"] === false) open[index] = true;
    const key = panelled === null ? null : written(row[panelled]);
    const panel = panels.get(String(key)) ?? { key, groups: new Map() };
    panels.set(String(key), panel);
    const group = inner.map((name) => row[name]);
    const name = JSON.stringify(group);
    const series = panel.groups.get(name) ?? { key: group, values: times.map(() => undefined) };
    panel.groups.set(name, series);
    series.values[index] = row[view.measure];
  }
  // Doubles that the server rounded once are not rounded again here.
  const rounded = columns.find(({ name }) => name === view.measure)?.type === "float64";
  const additive = !rounded && addsUp(of.measures.find(({ name }) => name === view.measure));
  const made = [...panels.values()].map(({ key, groups }) => panelOf(panelled, key, inner, [...groups.values()], additive));
  return { times, open, panels: made.sort((a, b) => larger(b.total, a.total) || (String(a.title) < String(b.title) ? -1 : 1)) };
}

function panelOf(panelled: string | null, key: string | null, inner: string[], found: { key: Value[]; values: Value[] }[], additive: boolean): Panel {
  const all = found
    .map(({ key, values }): Series => ({
      name: key.length ? key.map((value) => written(value) ?? "NULL").join(" · ") : "total",
      fixed: inner.map((name, at) => [name, written(key[at])]),
      values,
      total: additive ? total(values) : values.length === 1 ? values[0] : undefined,
    }))
    .sort((a, b) => larger(weight(b), weight(a)) || (a.name < b.name ? -1 : 1));
  const shown = all.slice(0, all.length === SHOWN + 1 ? SHOWN + 1 : SHOWN);
  const rest = all.slice(shown.length);
  const others: Series[] = additive && rest.length ? [together(rest)] : [];
  return {
    title: panelled === null ? null : (key ?? "NULL"),
    fixed: panelled === null ? [] : [[panelled, key]],
    series: [...shown, ...others],
    // Of the values: a series without a total, as with a NaN in it, must not be skipped.
    total: additive ? total(all.flatMap(({ values }) => values)) : null,
    missing: additive ? 0 : rest.length,
  };
}

function together(rest: Series[]): Series {
  const values = (rest[0]?.values ?? []).map((_, at) => {
    const here = rest.map(({ values }) => values[at]).filter((value) => value !== undefined);
    return here.length ? total(here) : undefined;
  });
  return { name: `${rest.length} others`, fixed: null, values, total: total(rest.flatMap(({ values }) => values)) };
}

function total(values: Value[]): Value {
  const exactly = sum(values);
  return exactly ? text(exactly) : null;
}

/** Doubles differ as the server's do. */
export function difference(now: Value, then: Value): Value {
  if (typeof now === "number" && typeof then === "number") return now - then;
  const [a, b] = [exact(now), exact(then)];
  return a && b ? text(add(a, negated(b))) : null;
}

function timesOf(rows: Row[], by: Granularity | null): (string | null)[] {
  const times = new Set<string>();
  let without = false;
  for (const row of rows) {
    const time = timeOf(row);
    if (time === null) without = true;
    else times.add(time);
  }
  const civil = [...times].filter((time) => /^\d{4}-/.test(time)).sort();
  const odd = [...times].filter((time) => !/^\d{4}-/.test(time)).sort();
  return [...filled(civil, by ?? ""), ...odd, ...(without ? [null] : [])];
}

const timeOf = (row: Row): string | null => (typeof row["time"] === "string" ? row["time"] : null);
const written = (value: Value): string | null => (value === null || value === undefined ? null : String(value));
const size = (value: Value): number => Math.abs(Number(value) || 0);
/** What has no total is ordered by its newest value. */
const weight = ({ total, values }: Series): Value => total ?? values.findLast((value) => value !== undefined);
const larger = (a: Value, b: Value): number => size(a) - size(b);
