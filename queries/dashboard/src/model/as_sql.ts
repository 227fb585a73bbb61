// A view's question as Postgres would be asked it. How the column of time is read (codecs, clocks without a zone) is taken
// from the statement that the server printed of the definition, so that it is written down once.
import type { Definition, Description, MeasureDefinition } from "./api";
import { type View, groups } from "./view";

/** One clause a line; what is quoted stays as it is. */
export const inLines = (statement: string) =>
  statement.replace(/'[^']*'|"[^"]*"| (AS SELECT|FROM|WHERE|GROUP BY) /g, (all, clause?: string) => (clause ? `\n${clause} ` : all));

/** Nothing where the buckets cannot be written. */
export function asSql(of: Description, view: View): string | null {
  const { definition } = of;
  const clock = definition.time ? clockOf(of, view) : null;
  const timed = view.by !== null && view.by !== "all";
  if ((timed || view.from || view.to) && !clock) return null;
  const bucket = timed && !view.rows ? clock?.bucket(clock.operand) : undefined;
  const where = [
    definition.where && `(${definition.where})`,
    ...view.fixed.map(fixedCondition),
    view.filter && `(${view.filter})`,
    clock && view.from && `${clock.operand} >= ${clock.instant(view.from)}`,
    clock && view.to && `${clock.operand} < ${clock.instant(view.to)}`,
  ].filter(Boolean);
  const keys = groups(of, view).map(quotedName);
  const measure = `${call(definition, view)} AS ${quotedName(view.measure)}`;
  const head = view.rows ? ["*"] : [...(bucket ? [`${bucket} AS time`] : []), ...keys, measure];
  const grouped = head.slice(1).map((_, at) => at + 1).join(", ");
  return [
    `SELECT ${head.join(", ")}`,
    `FROM ${definition.table}`,
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
    time_zone: view.zone ?? time?.time_zone,
  };
}

const UNITS: Record<string, string> = { s: "seconds", m: "minutes", h: "hours", d: "days", w: "weeks" };

/** How a moment is read off a row, put in a bucket, and compared with. */
function clockOf(of: Description, { by, zone: asked }: View) {
  const expression = / AS SELECT (.*?) AS time\b/s.exec(of.sql)?.[1] ?? "";
  const civil = /^date_trunc\('\w+', (.*)\)$/s.exec(expression)?.[1];
  const steps = /^(date_bin\('\d+ seconds', )(.*)(, (timestamp(?:tz)?) '[^']*'\))$/s.exec(expression);
  const named = /^(.*), '(?:[^']|'')*'$/s.exec(civil ?? "");
  const operand = steps?.[2] ?? named?.[1] ?? civil;
  if (!operand) return null;
  const local = steps ? steps[4] === "timestamp" : !named;
  const zone = literal(asked ?? of.definition.time?.time_zone ?? "UTC");
  const whole = by === null || by === "all";
  if (by?.startsWith("P") && (!steps || by !== of.levels[0])) return null;
  const bucket = (moment: string): string => {
    if (whole) return moment;
    if (steps && by === of.levels[0]) return `${steps[1]}${moment}${steps[3]}`;
    return local ? `date_trunc('${by}', ${moment})` : `date_trunc('${by}', ${moment}, ${zone})`;
  };
  const instant = (text: string): string => {
    const ago = /^-(\d+)([smhdw])$/.exec(text);
    const now = local ? `now() AT TIME ZONE ${zone}` : "now()";
    if (ago) return bucket(`${now} - interval '${ago[1]} ${UNITS[ago[2] ?? ""]}'`);
    if (text === "now") return whole ? now : `${bucket(now)} + interval '1 ${by}'`.replace("1 quarter", "3 months");
    if (text.includes("T")) return local ? `timestamp ${literal(text.slice(0, 19))}` : `timestamptz ${literal(text)}`;
    const [year = "", month = "01", day = "01"] = text.split("-");
    return local ? `timestamp '${year}-${month}-${day}'` : `timestamp '${year}-${month}-${day}' AT TIME ZONE ${zone}`;
  };
  return { operand, bucket, instant };
}

function call({ measures }: Definition, view: View): string {
  const measure: MeasureDefinition | undefined = measures.find(({ name }) => name === view.measure);
  const [kind = "count", argument = "*"] = Object.entries(measure ?? {}).find(([key]) => ["sum", "count", "avg", "min", "max"].includes(key)) ?? [];
  const filter = measure?.where ? ` FILTER (WHERE ${measure.where})` : "";
  return `${kind}(${argument === "*" ? "*" : quotedName(String(argument))})${filter}`;
}

function fixedCondition([column, value]: [string, string | null]): string {
  return value === null ? `${quotedName(column)} IS NULL` : `${quotedName(column)} = ${literal(value)}`;
}

const literal = (text: string) => `'${text.replaceAll("'", "''")}'`;
const quotedName = (text: string) => (/^[a-z_][a-z0-9_]*$/.test(text) ? text : `"${text.replaceAll('"', '""')}"`);
