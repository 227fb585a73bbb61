// From the rows of an answer to what is drawn: one panel for each combination of currencies, one series per group, the
// largest first and the rest together. All arithmetic is exact, and none goes over different panels.
import type { Column, Description, Row } from "./api";
import { type Granularity, filled, labels } from "./bucket";
import { type Value, add, exact, negated, sum, text } from "./exact";
import { type Fixed, type View, addsUp, currenciesOf, groups } from "./view";

/** Groups that are shown by themselves. */
const SHOWN = 6;

export interface Series {
  /** What picks this group, as one text; of the others what they are called. */
  key: string;
  /** What picks this group; nothing picks the others. */
  fixed: Fixed[] | null;
  values: Value[];
  /** Undefined where several buckets do not add up. */
  total: Value;
}

export interface Panel {
  key: string;
  /** The currencies; empty where amounts have none. */
  fixed: Fixed[];
  series: Series[];
  total: Value;
  /** How many groups are not shown, not even together. */
  missing: number;
}

export interface Drawn {
  /** Begins of the buckets; null for rows without a time. */
  times: (string | null)[];
  labels: string[];
  open: boolean[];
  panels: Panel[];
}

/** The values of a row in these dimensions. As JSON they are a key: NULL and the text NULL are two. */
export function picked(row: Row, dimensions: string[]): Fixed[] {
  return dimensions.map((name) => [name, written(row[name])]);
}

export function drawn(of: Description, view: View, columns: Column[], rows: Iterable<Row>): Drawn {
  const all = [...rows];
  const dimensions = groups(of, view);
  const panelled = currenciesOf(of).filter((name) => dimensions.includes(name));
  const inner = dimensions.filter((name) => !panelled.includes(name));
  const whole = view.by === null || view.by === "all";
  const times = whole ? [null] : timesOf(all, view.by);
  const at = new Map(times.map((time, index) => [time, index]));
  const open = times.map(() => false);
  const panels = new Map<string, { fixed: Fixed[]; groups: Map<string, Found> }>();
  for (const row of all) {
    const index = whole ? 0 : at.get(timeOf(row));
    if (index === undefined) continue;
    if (row["complete"] === false) open[index] = true;
    const fixed = picked(row, panelled);
    const panel = panels.get(JSON.stringify(fixed)) ?? { fixed, groups: new Map() };
    panels.set(JSON.stringify(fixed), panel);
    const group = picked(row, inner);
    const series = panel.groups.get(JSON.stringify(group)) ?? { fixed: group, values: times.map(() => undefined) };
    panel.groups.set(JSON.stringify(group), series);
    series.values[index] = row[view.measure];
  }
  // Doubles that the server rounded once are not rounded again here.
  const rounded = columns.find(({ name }) => name === view.measure)?.type === "float64";
  const additive = !rounded && addsUp(of.definition.measures.find(({ name }) => name === view.measure));
  const made = [...panels].map(([key, { fixed, groups }]) => panelOf(key, fixed, [...groups], additive));
  return { times, labels: labels(times, view.by ?? "all"), open, panels: made.sort((a, b) => larger(b.total, a.total) || (a.key < b.key ? -1 : 1)) };
}

interface Found {
  fixed: Fixed[];
  values: Value[];
}

function panelOf(key: string, fixed: Fixed[], found: [string, Found][], additive: boolean): Panel {
  const all = found
    .map(([key, { fixed, values }]): Series => ({ key, fixed, values, total: additive ? total(values) : values.length === 1 ? values[0] : undefined }))
    .sort((a, b) => larger(weight(b), weight(a)) || (a.key < b.key ? -1 : 1));
  const shown = all.slice(0, all.length === SHOWN + 1 ? SHOWN + 1 : SHOWN);
  const rest = all.slice(shown.length);
  const others: Series[] = additive && rest.length ? [together(rest)] : [];
  return {
    key,
    fixed,
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
  return { key: `${rest.length} others`, fixed: null, values, total: total(rest.flatMap(({ values }) => values)) };
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
  // By instant: where the clock goes back, the later of two equal hours has the smaller offset.
  const civil = [...times].filter((time) => /^\d{4}-/.test(time)).sort((a, b) => Date.parse(a) - Date.parse(b));
  const odd = [...times].filter((time) => !/^\d{4}-/.test(time)).sort();
  return [...filled(civil, by ?? ""), ...odd, ...(without ? [null] : [])];
}

const timeOf = (row: Row): string | null => (typeof row["time"] === "string" ? row["time"] : null);
const written = (value: Value): string | null => (value === null || value === undefined ? null : String(value));
const size = (value: Value): number => Math.abs(Number(value) || 0);
/** What has no total is ordered by its newest value. */
const weight = ({ total, values }: Series): Value => total ?? values.findLast((value) => value !== undefined);
const larger = (a: Value, b: Value): number => size(a) - size(b);
