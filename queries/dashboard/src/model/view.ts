// What is looked at on an aggregate's page: its address in the URL, the question that it asks, and how a person would
// repeat it elsewhere.
import { type Column, type Description, type MeasureDefinition, aggregatePath } from "./api";
import { type Granularity, finer, granularities } from "./bucket";
import { href } from "./place";

/** A dimension and its value, which is null for SQL's NULL. */
export type Fixed = [string, string | null];

export interface View {
  measure: string;
  by: Granularity | null;
  from?: string;
  to?: string;
  /** One dimension, besides the currencies that amounts must not be mixed over. */
  group: string | null;
  fixed: Fixed[];
  filter?: string;
  compare?: string;
  zone?: string;
  /** The rows behind the cell, instead of its totals. */
  rows: boolean;
}

/** Where nobody asked for a range: as much as a chart can show. `from=all` asks for everything. */
const NEWEST: Record<string, string> = { day: "-60d", week: "-365d", hour: "-3d" };
const NEWEST_STEPS = "-2d";

/** The dimensions that are currencies, which the server says. */
export function currenciesOf({ columns }: { columns: Column[] }): string[] {
  return columns.filter(({ currency }) => currency).map(({ name }) => name);
}

/** Amounts have a currency; counts have none. */
export function isAmount(measure: MeasureDefinition | undefined): boolean {
  return !!measure && measure.count === undefined && measure["count_distinct"] === undefined;
}

/** Whether parts add up to the whole. */
export function addsUp(measure: MeasureDefinition | undefined): boolean {
  return measure?.sum !== undefined || measure?.count !== undefined;
}

export function viewOf(of: Description, query: URLSearchParams): View {
  const possible = granularities(of.levels);
  const asked = query.get("by");
  const by = asked && (possible.includes(asked) || asked === "all") ? asked : (possible.includes("month") ? "month" : (possible[0] ?? null));
  const measures = of.definition.measures.map(({ name }) => name);
  const given = (name: string) => query.get(name) || undefined;
  const dimensions = of.definition.dimensions ?? [];
  const group = query.get("group");
  return {
    measure: measures.find((name) => name === query.get("measure")) ?? measures[0] ?? "",
    by,
    from: given("from") === "all" ? undefined : (given("from") ?? newest(by)),
    to: given("to"),
    group: group !== null && dimensions.includes(group) ? group : null,
    fixed: query.getAll("where").flatMap((text) => fixedOf(text, dimensions)),
    filter: given("filter"),
    compare: given("compare"),
    zone: given("zone"),
    rows: query.get("rows") === "1",
  };
}

export function address(name: string, view: View): string {
  const base = href(["aggregates", name], {
    measure: view.measure,
    by: view.by ?? undefined,
    from: view.from ?? (newest(view.by) ? "all" : undefined),
    to: view.to,
    group: view.group ?? undefined,
    filter: view.filter,
    compare: view.compare,
    zone: view.zone,
    rows: view.rows ? "1" : undefined,
  });
  return base + view.fixed.map(([name, value]) => `&where=${encodeURIComponent(`${name}:${quoted(value)}`)}`).join("");
}

/** Dimensions by which the answer is grouped: every currency where amounts would be mixed, and the one asked for. */
export function groups(of: Description, view: View): string[] {
  const amount = isAmount(of.definition.measures.find(({ name }) => name === view.measure));
  const all = [...(amount ? currenciesOf(of) : []), ...(view.group === null ? [] : [view.group])];
  return [...new Set(all)].filter((name) => !view.fixed.some(([fixed]) => fixed === name));
}

/** The parameters of a question to `/data`, `/live` and `/explain`. */
export function parameters(of: Description, view: View): URLSearchParams {
  const asked = new URLSearchParams();
  if (view.by) asked.set("granularity", view.by);
  if (view.from) asked.set("from", view.from);
  if (view.to) asked.set("to", view.to);
  asked.set("group_by", groups(of, view).join(","));
  asked.set("measures", view.measure);
  for (const [name, value] of view.fixed) asked.append("where", `${name}:${quoted(value)}`);
  if (view.filter) asked.set("filter", view.filter);
  if (view.zone) asked.set("time_zone", view.zone);
  return asked;
}

/** Parameters of `/rows`: what fixes the cell. */
export function rowParameters(view: View): URLSearchParams {
  const asked = new URLSearchParams();
  if (view.from) asked.set("from", view.from);
  if (view.to) asked.set("to", view.to);
  for (const [name, value] of view.fixed) asked.append("where", `${name}:${quoted(value)}`);
  if (view.filter) asked.set("filter", view.filter);
  if (view.zone) asked.set("time_zone", view.zone);
  return asked;
}

/** One step closer to the rows: into a bucket, and a group of it where one was picked. Nowhere from a bucket without bounds
 * that can be asked for: a link from there would lead to more than it shows. */
export function into(of: Description, view: View, bounds: { from: string; to: string } | null, fixed: Fixed[]): View | null {
  const all = [...view.fixed, ...fixed.filter(([name]) => !view.fixed.some(([known]) => known === name))];
  const group = view.group && all.some(([name]) => name === view.group) ? null : view.group;
  if (!bounds || !view.by) return null;
  const next = finer(view.by, granularities(of.levels));
  if (next) return { ...view, ...bounds, by: next, fixed: all, group, compare: undefined };
  return of.definition.drill_through ? { ...view, ...bounds, fixed: all, rows: true, compare: undefined } : null;
}

export function curl(of: Description, view: View): string {
  const path = view.rows ? `rows?${plain(rowParameters(view))}` : `data?${plain(parameters(of, view))}`;
  return `curl ${shell(`${location.origin}${aggregatePath(of.name)}/${path}`)}`;
}

function newest(by: Granularity | null): string | undefined {
  return by?.startsWith("P") ? NEWEST_STEPS : NEWEST[by ?? ""];
}

function fixedOf(text: string, dimensions: string[]): Fixed[] {
  const at = text.indexOf(":");
  const [name, value] = [text.slice(0, at), text.slice(at + 1)];
  if (at < 0 || !dimensions.includes(name)) return [];
  if (isNull(value)) return [[name, null]];
  return [[name, /^'.*'$/s.test(value) ? value.slice(1, -1).replaceAll("''", "'") : value]];
}

/** Without quotes it is SQL's NULL, however it is written. */
const isNull = (value: string) => value.toLowerCase() === "null";

/** As the parameter `where` wants a value: quotes keep commas and the word null apart. */
function quoted(value: string | null): string {
  if (value === null) return "null";
  return /^[\w.+-]+$/.test(value) && !isNull(value) ? value : `'${value.replaceAll("'", "''")}'`;
}

/** Readable where a URL allows it. */
function plain(asked: URLSearchParams): string {
  return asked.toString().replaceAll("%3A", ":").replaceAll("%2C", ",");
}

const shell = (text: string) => `'${text.replaceAll("'", "'\\''")}'`;
