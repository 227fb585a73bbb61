// Whether all is well, and what to do where it is not; then every aggregate with its newest total and its last buckets.
// All totals are of one request, so they are all true at one position.
import { useEffect, useState } from "preact/hooks";

import { type Answer, type Description, type Listed, type Problem, type Row, type Source, aggregatePath, ask, send } from "../model/api";
import { granularities, label } from "../model/bucket";
import { bytes, pixels, shown } from "../model/exact";
import { picked } from "../model/panels";
import { href } from "../model/place";
import { aggregates, lagOf, lags, rates, retained, sources, unreachable } from "../model/upstream";
import { currenciesOf } from "../model/view";
import { Pill } from "../parts/pill";
import { SparkBars, SparkLine } from "../parts/spark";
import { Story } from "../parts/story";
import { Refused, ToDo } from "../parts/trouble";
import { Values, spoken } from "../parts/values";

const EVERY_MS = 1000;
/** Bars of a card, and the combinations of currencies that it shows. */
const BUCKETS = 24;
const GROUPS = 3;
/** Days that hold so many buckets, and a bit. */
const DAYS: Record<string, number> = { hour: 1, day: 24, week: 168, month: 730, quarter: 2200, year: 8800 };
/** Aggregates whose totals are asked for at once; the server answers up to 32. */
const AT_ONCE = 24;

type Totals = Map<string, Answer | Problem>;

export function Overview() {
  const list = aggregates.value;
  const totals = useTotals(list);
  const at = [...totals.values()].flatMap((one) => ("as_of" in one ? one.as_of.lsn : []))[0];
  return (
    <>
      <h1>Overview</h1>
      {unreachable.value && <Refused problem={unreachable.value} />}
      <Trouble />
      <Vitals />
      <Story />
      <section aria-labelledby="aggregates">
        <div class="heading"><h2 id="aggregates">Aggregates</h2> {at && <span class="freshness">as of <code>{at}</code></span>} <a class="button" href={href(["register"])}>Register</a></div>
        {list?.length === 0 && <p class="empty">No aggregate is registered yet. <a href={href(["register"])}>Register the first one</a>: it is filled from the rows that are already there.</p>}
        <div class="cards">
          {list?.map((one) => <Card key={one.name} one={one} answer={totals.get(one.name)} />)}
        </div>
      </section>
    </>
  );
}

function Trouble() {
  const found = (sources.value ?? []).flatMap(troubleOf);
  const halted = (aggregates.value ?? []).filter(({ state }) => state === "halted");
  if (!sources.value) return null;
  if (!found.length && !halted.length) return <p class="well">Nothing needs you. Every total is exact at the position shown.</p>;
  return (
    <section class="troubles" aria-label="What needs you">
      {found}
      {halted.map(({ name }) => (
        <article class="todo bad" key={name}><h3>{name} is halted</h3><p>It gives no answers. <a href={href(["aggregates", name])}>Why, and what to do</a></p></article>
      ))}
    </section>
  );
}

function troubleOf(one: Source) {
  const failed = (one.checks ?? []).filter(({ outcome }) => outcome === "failed");
  const tables = one.tables.filter(({ state }) => state === "halted");
  return [
    ...(one.state === "halted" ? [<ToDo key="state" what={`Source ${one.name} is halted`} message={one.message ?? ""} remedy={one.remedy} />] : []),
    ...(one.state === "reconnecting" ? [<ToDo key="away" what={`Source ${one.name} is away`} message={one.message ?? "It is tried again all the time; totals stay at the last position."} remedy={one.remedy} />] : []),
    ...failed.map((check) => <ToDo key={check.name} what={`${one.name}: ${check.name.replaceAll("_", " ")}`} message={check.message} remedy={check.remedy} />),
    ...tables.map((table) => <ToDo key={table.name} what={`${table.name} is halted`} message={table.message ?? ""} remedy={table.remedy} />),
  ];
}

function Vitals() {
  const one = sources.value?.[0];
  if (!one) return sources.value ? null : <div class="vitals waiting" />;
  const warnings = (one.checks ?? []).filter(({ outcome }) => outcome === "warning").length;
  return (
    <dl class="vitals">
      <div><dt>Source</dt><dd><a href={href(["sources", one.name])}>{one.name}</a> <Pill state={one.state} /></dd><dd class="aside">{warnings ? <a href={href(["sources", one.name])}>{warnings} {warnings === 1 ? "warning" : "warnings"}</a> : "all checks ok"}</dd></div>
      <div><dt>Lag</dt><dd>{shown(lagOf(one))} <small>ms</small></dd><dd class="aside"><SparkLine values={lags.value} label="Lag over the last two minutes" /></dd></div>
      <div><dt>Retained WAL</dt><dd>{typeof one.retained_wal_bytes === "number" ? bytes(one.retained_wal_bytes) : "\u2013"}</dd><dd class="aside"><SparkLine values={retained.value} label="Retained WAL over the last two minutes" /></dd></div>
      <div><dt>Transactions a second</dt><dd>{shown(Math.round(rates.value.at(-1) ?? 0))}</dd><dd class="aside"><SparkLine values={rates.value} label="Transactions a second over the last two minutes" /></dd></div>
      <div><dt>Applied up to</dt><dd><code>{one.applied_lsn}</code></dd><dd class="aside">durable <code>{one.durable_lsn}</code></dd></div>
    </dl>
  );
}

function Card({ one, answer }: { one: Listed; answer: Answer | Problem | undefined }) {
  const by = scale(one);
  return (
    <article class="card">
      <h3><a href={href(["aggregates", one.name])}>{one.name}</a></h3>
      <Pill state={one.state} />
      <p class="about">{one.table}{one.dimensions.length > 0 && <> by {one.dimensions.join(", ")}</>}{one.levels[0] !== "all" && <>; {one.levels.join(", ")} ({one.time_zone})</>}</p>
      {answer && "data" in answer ? <Groups one={one} answer={answer} by={by} /> : <p class="wait">{answer ? answer.detail : "\u2026"}</p>}
    </article>
  );
}

function Groups({ one, answer, by }: { one: Listed; answer: Answer; by: string }) {
  const measure = one.measures[0] ?? "";
  const dimensions = answer.columns.filter(({ role }) => role === "dimension").map(({ name }) => name);
  // What has no time, or one before all others, is of no bucket that is shown.
  const rows = answer.data.filter((row) => by === "all" || /^\d{4}-/.test(String(row["time"])));
  const times = [...new Set(rows.map((row) => row["time"]))].sort().slice(-BUCKETS);
  const groups = new Map<string, Row[]>();
  for (const row of rows) {
    const key = JSON.stringify(picked(row, dimensions));
    groups.set(key, [...(groups.get(key) ?? []), row]);
  }
  const size = (rows: Row[]) => rows.reduce((all, row) => all + Math.abs(pixels(row[measure]) ?? 0), 0);
  const largest = [...groups].sort((a, b) => size(b[1]) - size(a[1])).slice(0, GROUPS);
  const top = Math.max(...largest.map(([, rows]) => size(rows)), 1);
  return (
    <table class="glance">
      <caption>{measure}{by !== "all" && times.length > 0 && `, ${label(String(times.at(-1)), by)}`}{groups.size > GROUPS && ` (${GROUPS} of ${groups.size})`}</caption>
      <tbody>
        {largest.map(([key, rows]) => {
          // A group may have no row in the newest bucket, or lack some before.
          const shownRows = times.map((time) => rows.find((row) => row["time"] === time));
          const values = shownRows.map((row) => pixels(row?.[measure]) ?? 0);
          const of = picked(rows[0] ?? {}, dimensions);
          const open = shownRows.map((row) => row?.["complete"] === false);
          return (
            <tr key={key}>
              <th scope="row">{of.length ? <Values of={of} /> : measure}</th>
              <td class="figure">{shown(shownRows.at(-1)?.[measure])}</td>
              <td>{by === "all" ? <SparkLength part={size(rows) / top} /> : <SparkBars values={values} open={open} label={`${spoken(of) || measure}, the last ${values.length} ${by}s`} />}</td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function SparkLength({ part }: { part: number }) {
  return <svg class="spark bars" viewBox="0 0 120 28" preserveAspectRatio="none" aria-hidden="true"><rect x="0" y="9" height="10" width={Math.max(1, part * 120)} /></svg>;
}

/** The granularity of a card: months where there are. */
function scale({ levels }: Listed): string {
  const possible = granularities(levels);
  return ["month", "week", "day", "year"].find((one) => possible.includes(one)) ?? possible[0] ?? "all";
}

/** Up to now: what is dated ahead, or never ends, is no newest total. The newest first, as there may be more than a page. */
async function question(one: Listed) {
  const of = await ask<Description>(aggregatePath(one.name));
  const by = scale(one);
  const days = DAYS[by];
  return {
    aggregate: one.name,
    granularity: by,
    group_by: currenciesOf(of),
    measures: one.measures.slice(0, 1),
    ...(days ? { from: `-${days}d` } : {}),
    ...(by === "all" ? {} : { to: "now", order: ["-time"] }),
    limit: 10_000,
  };
}

/** The totals of every aggregate, again every second while somebody looks. */
function useTotals(list: Listed[] | null): Totals {
  const [totals, setTotals] = useState<Totals>(new Map());
  useEffect(() => {
    let stopped = false;
    const asked = (list ?? []).filter(({ state }) => state !== "halted").slice(0, AT_ONCE);
    let queries: object[] | null = null;
    const look = async () => {
      while (!stopped) {
        queries ??= await Promise.all(asked.map(question)).catch(() => null);
        const answered = queries?.length ? await send<{ answers: (Answer | { problem: Problem })[] }>("POST", "/v1/query", { queries }).catch(() => null) : null;
        // Totals that are not answered any more are not shown any more.
        if (!stopped) setTotals(new Map(answered?.answers.map((answer, at) => [asked[at]?.name ?? "", "problem" in answer ? answer.problem : answer])));
        await new Promise((resume) => setTimeout(resume, document.hidden ? 10 * EVERY_MS : EVERY_MS));
      }
    };
    void look();
    return () => { stopped = true; };
  }, [list]);
  return totals;
}
