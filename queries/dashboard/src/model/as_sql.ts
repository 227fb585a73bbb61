// A view's question as Postgres would be asked it. Conditions, sums, and how the column of time is read (codecs, clocks
// without a zone) are taken from the statement that the server printed of the definition: they are written down once, and
// mean the same in every session's zone.
import type { Definition, Description, MeasureDefinition } from "./api";
import { type Fixed, type View, groups } from "./view";

/** One clause a line; what is quoted stays as it is. */
export const inLines = (statement: string) =>
  statement.replace(/'[^']*'|"[^"]*"| (AS SELECT|FROM|WHERE|GROUP BY) /g, (all, clause?: string) => (clause ? `\n${clause} ` : all));

/** Nothing where the buckets cannot be written. */
export function asSql(of: Description, view: View): string | null {
  const { definition } = of;
  const printed = partsOf(of.sql);
  if (!printed) return null;
  const clock = definition.time ? clockOf(of, view, printed.columns[0] ?? "") : null;
  const timed = view.by !== null && view.by !== "all";
  if ((timed || view.from || view.to) && !clock) return null;
  const bucket = timed && !view.rows ? clock?.bucket(clock.operand) : undefined;
  const where = [
    printed.where && `(${printed.where})`,
    ...view.fixed.map(fixedCondition),
    view.filter && `(${view.filter})`,
    view.from && clock?.bound(view.from, false),
    view.to && clock?.bound(view.to, true),
  ].filter(Boolean);
  const measures = printed.columns.slice(-definition.measures.length);
  const measure = measures[definition.measures.findIndex(({ name }) => name === view.measure)];
  const head = view.rows ? ["*"] : [...(bucket ? [`${bucket} AS time`] : []), ...groups(of, view).map(quotedName), measure];
  const grouped = head.slice(1).map((_, at) => at + 1).join(", ");
  return [
    `SELECT ${head.join(", ")}`,
    `FROM ${printed.table}`,
    ...(where.length ? [`WHERE ${where.join("\n  AND ")}`] : []),
    ...(grouped ? [`GROUP BY ${grouped}`, "ORDER BY 1"] : []),
    ...(view.rows && clock ? [`ORDER BY ${clock.operand} DESC`] : []),
  ].join("\n").concat(";");
}

/** The same question to the table, whichever aggregate answers it. */
export function ofTheTable(of: Description, view: View): Record<string, string | undefined> {
  const { table, time, where } = of.definition;
  const conditions = [where, ...view.fixed.map(fixedCondition), view.filter].filter((one) => one !== undefined);
  return {
    table,
    measures: call(of.definition, view),
    group_by: groups(of, view).join(",") || undefined,
    filter: conditions.length > 1 ? conditions.map((one) => `(${one})`).join(" AND ") : conditions[0],
    granularity: view.by ?? "all",
    from: view.from,
    to: view.to,
    time: time?.column,
    time_zone: view.zone ?? time?.time_zone,
  };
}

/** The parts of a statement as the server prints it. What is quoted or in parentheses may hold any word: it is blanked out,
 * sign for sign, where the parts are looked for. */
function partsOf(statement: string) {
  let depth = 0;
  const outline = statement.replace(/'[^']*'|"[^"]*"|[^]/g, (part) => {
    if (part === ")") depth -= 1;
    const blank = depth > 0 || part.length > 1;
    if (part === "(") depth += 1;
    return blank ? "\0".repeat(part.length) : part;
  });
  const found = / AS SELECT (.*?) FROM (\S+)(?: WHERE (.*))? (?:GROUP BY|HAVING) /ds.exec(outline)?.indices;
  if (!found) return null;
  const [columns, table, where] = found.slice(1).map((at) => at && { text: statement.slice(...at), from: at[0] });
  if (!columns || !table) return null;
  let from = columns.from;
  const each = outline.slice(from, from + columns.text.length).split(", ").map(({ length }) => {
    const text = statement.slice(from, from + length);
    from += length + 2;
    return text;
  });
  return { columns: each, table: table.text, where: where?.text };
}

const UNITS: Record<string, [number, string]> = { s: [1, "seconds"], m: [1, "minutes"], h: [1, "hours"], d: [24, "hours"], w: [168, "hours"] };

/** How the server reads a moment off a row: an instant, or a clock without a zone, which is UTC's. */
function readingOf(column: string) {
  const expression = column.replace(/ AS time$/, "");
  const civil = /^date_trunc\('\w+', (.*)\)$/s.exec(expression)?.[1];
  const [, bin, stepped, origin, type] = /^(date_bin\('\d+ seconds', )(.*), ((timestamp(?:tz)?) '[^']*')\)$/s.exec(expression) ?? [];
  const zoned = /^(.*), '(?:[^']|'')*'$/s.exec(civil ?? "")?.[1];
  return { moment: stepped ?? zoned ?? civil, bin, origin, bare: bin ? type === "timestamp" : zoned === undefined };
}

/** How a moment is read, put in a bucket, and compared with. */
function clockOf(of: Description, { by, zone: asked, rows }: View, column: string) {
  const { moment: read, bin, origin = "", bare } = readingOf(column);
  // What has no edges of its own has those of the finest bucket.
  const unit = by === null || by === "all" || rows ? (of.levels[0] ?? "all") : by;
  const steps = unit.startsWith("P");
  if (!read || unit === "all" || (steps && (!bin || unit !== of.levels[0]))) return null;
  // In a zone that is asked for, the readings of a clock without one are instants first.
  const moved = bare && asked !== undefined && asked !== "UTC";
  const settled = (text: string) => (moved ? `${text} AT TIME ZONE 'UTC'` : text);
  const local = bare && !moved;
  const operand = settled(read);
  const zone = literal(asked ?? of.definition.time?.time_zone ?? "UTC");
  const bucket = (moment: string): string => {
    if (steps) return `${bin}${moment}, ${settled(origin)})`;
    return local ? `date_trunc('${unit}', ${moment})` : `date_trunc('${unit}', ${moment}, ${zone})`;
  };
  /** One end of the range; what is relative to now goes outward to the edge of a bucket. */
  const bound = (text: string, end: boolean): string => {
    const ago = agoOf(text);
    if (ago === null) return `${operand} ${end ? "<" : ">="} ${instantOf(text, local, zone)}`;
    const edge = bucket(`${local ? "now() AT TIME ZONE 'UTC'" : "now()"}${ago}`);
    return end ? `${bucket(operand)} <= ${edge}` : `${operand} >= ${edge}`;
  };
  return { operand, bucket, bound };
}

/** How long before now, as what is subtracted. In hours: a day that a session's clock is set in is not one of 24. */
function agoOf(text: string): string | null {
  if (text === "now") return "";
  const [, count, letter = ""] = /^-(\d+)([smhdw])$/.exec(text) ?? [];
  const [each, name] = UNITS[letter] ?? [];
  return each ? ` - interval '${Number(count) * each} ${name}'` : null;
}

function instantOf(text: string, local: boolean, zone: string): string {
  if (text.includes("T")) return local ? `timestamptz ${literal(text)} AT TIME ZONE 'UTC'` : `timestamptz ${literal(text)}`;
  const [year, month = "01", day = "01"] = text.split("-");
  return local ? `timestamp '${year}-${month}-${day}'` : `timestamp '${year}-${month}-${day}' AT TIME ZONE ${zone}`;
}

function call({ measures }: Definition, view: View): string {
  const { sum, count = "*", where }: Partial<MeasureDefinition> = measures.find(({ name }) => name === view.measure) ?? {};
  const argument = sum ?? count;
  const filter = where ? ` FILTER (WHERE ${where})` : "";
  return `${sum === undefined ? "count" : "sum"}(${argument === "*" ? "*" : quotedName(argument)})${filter}`;
}

function fixedCondition([column, value]: Fixed): string {
  return value === null ? `${quotedName(column)} IS NULL` : `${quotedName(column)} = ${literal(value)}`;
}

const literal = (text: string) => `'${text.replaceAll("'", "''")}'`;
const quotedName = (text: string) => (/^[a-z_][a-z0-9_]*$/.test(text) ? text : `"${text.replaceAll('"', '""')}"`);
