// A question to the table: which aggregate answers it from how many cells, why not the others, and what to register where
// none can.
import { useEffect, useState } from "preact/hooks";

import { type Definition, type Problem, refusalOf, send } from "../model/api";
import { shown } from "../model/exact";
import { go, href, place } from "../model/place";
import { sources } from "../model/upstream";
import { Refused } from "../parts/trouble";

interface Explanation {
  aggregate: string;
  access: "points" | "scan";
  granularity: string;
  time_zone: string;
  ranges: { level: string; from: string; to: string; min_key: string; max_key: string; max_inclusive: boolean }[];
  cells_estimated: number;
  cells_read?: number;
  rows?: number;
  took_us?: number;
  levels: { level: string; used: boolean; reason?: string }[];
  alternatives: { aggregate: string; cells_estimated: number }[];
  why_not: { aggregate: string; code: string; reason: string }[];
}

type Unanswered = Problem & { why_not?: Explanation["why_not"]; suggestion?: Definition };

const FIELDS = ["table", "measures", "group_by", "filter", "granularity", "from", "to", "time", "time_zone"] as const;
const LABELS: Record<string, string> = { table: "Table", measures: "Measures", group_by: "Group by", filter: "Filter", granularity: "Granularity", from: "From", to: "To, exclusive", time: "Time column", time_zone: "Zone" };
const HINTS: Record<string, string> = { measures: "sum(amount), count(*)", group_by: "currency", filter: "status = 'settled'", granularity: "month", from: "2026", to: "2027", time: "created_at", time_zone: "UTC" };

export function Explain() {
  const { query } = place.value;
  const tables = (sources.value ?? []).flatMap((source) => source.tables.map(({ name }) => name));
  const asked = Object.fromEntries(FIELDS.map((name) => [name, query.get(name) ?? (name === "table" ? (tables[0] ?? "") : name === "measures" ? "count(*)" : "")]));
  const [found, setFound] = useState<Explanation | null>(null);
  const [refused, setRefused] = useState<Unanswered | null>(null);
  const key = JSON.stringify(asked);
  useEffect(() => {
    if (!asked["table"]) return undefined;
    let stopped = false;
    send<Explanation>("POST", "/v1/query", { ...question(asked), explain: "analyze" })
      .then((one) => { if (!stopped) { setFound(one); setRefused(null); } })
      .catch((error: unknown) => { if (!stopped) { setRefused(refusalOf(error)); setFound(null); } });
    return () => { stopped = true; };
  }, [key]);
  const submit = (event: SubmitEvent) => {
    event.preventDefault();
    const given = new FormData(event.currentTarget as HTMLFormElement);
    go(href(["explain"], Object.fromEntries(FIELDS.map((name) => [name, String(given.get(name) ?? "") || undefined]))));
  };
  return (
    <>
      <h1>Explain</h1>
      <p class="about">A question to the table is answered by the aggregate that reads the fewest cells.</p>
      <form class="sheet question" key={key} onSubmit={submit}>
        {FIELDS.map((name) => (
          <label class={`field ${name}`} key={name}><span>{LABELS[name]}</span><input name={name} defaultValue={asked[name]} placeholder={HINTS[name]} spellcheck={false} /></label>
        ))}
        <button class="main">Explain</button>
      </form>
      {refused && <Unanswerable problem={refused} />}
      {found && <Chosen found={found} />}
    </>
  );
}

function Chosen({ found }: { found: Explanation }) {
  return (
    <>
      <section class="sheet">
        <div class="heading"><h2>Answered by <a href={href(["aggregates", found.aggregate])}>{found.aggregate}</a></h2></div>
        <dl class="facts">
          <div><dt>Cells read</dt><dd>{shown(found.cells_read ?? found.cells_estimated)}</dd></div>
          <div><dt>Rows of the answer</dt><dd>{shown(found.rows ?? null)}</dd></div>
          <div><dt>Reading took</dt><dd>{found.took_us === undefined ? "\u2013" : shown(found.took_us)} <small>µs</small></dd></div>
          <div><dt>Access</dt><dd>{found.access === "points" ? "cell by cell" : "a run of cells"}</dd></div>
        </dl>
        <ul class="levels">
          {found.levels.map(({ level, used, reason }) => <li key={level} class={used ? "used" : undefined}><strong>{level}</strong> {used ? "is read" : `is not read: ${reason}`}</li>)}
        </ul>
        <details>
          <summary>Key ranges</summary>
          <div class="scroll flat" tabIndex={0} role="region" aria-label="Key ranges">
            <table class="rows"><thead><tr><th scope="col">level</th><th scope="col">from</th><th scope="col">to</th><th scope="col">first key</th><th scope="col">end</th></tr></thead>
              <tbody>{found.ranges.map((range, at) => <tr key={at}><td>{range.level}</td><td>{range.from}</td><td>{range.to}</td><td><code>{range.min_key}</code></td><td><code>{range.max_key}</code></td></tr>)}</tbody></table>
          </div>
        </details>
      </section>
      <Others alternatives={found.alternatives} whyNot={found.why_not} />
    </>
  );
}

function Others({ alternatives, whyNot }: { alternatives: Explanation["alternatives"]; whyNot: Explanation["why_not"] }) {
  if (!alternatives.length && !whyNot.length) return null;
  return (
    <section class="sheet">
      <h2>Why not the others</h2>
      <ul class="levels">
        {alternatives.map((one) => <li key={one.aggregate}><strong><a href={href(["aggregates", one.aggregate])}>{one.aggregate}</a></strong> could, but would read {shown(one.cells_estimated)} cells</li>)}
        {whyNot.map((one) => <li key={one.aggregate}><strong><a href={href(["aggregates", one.aggregate])}>{one.aggregate}</a></strong> {one.reason} <code>{one.code}</code></li>)}
      </ul>
    </section>
  );
}

function Unanswerable({ problem }: { problem: Unanswered }) {
  return (
    <>
      <Refused problem={problem} />
      {problem.suggestion && (
        <section class="sheet">
          <h2>What would answer</h2>
          <pre>{JSON.stringify(problem.suggestion, null, 1)}</pre>
          <div class="actions"><a class="button" href={href(["register"], { definition: JSON.stringify(problem.suggestion) })}>Register it</a></div>
        </section>
      )}
      <Others alternatives={[]} whyNot={problem.why_not ?? []} />
    </>
  );
}

/** Commas part measures and dimensions, except within parentheses. */
function question(asked: Record<string, string>): Record<string, unknown> {
  const list = (text: string) => text.split(/,(?![^(]*\))/).map((part) => part.trim()).filter(Boolean);
  const one = (name: string) => (asked[name] ? { [name]: asked[name] } : {});
  return {
    table: asked["table"],
    measures: list(asked["measures"] ?? ""),
    group_by: list(asked["group_by"] ?? ""),
    ...one("filter"), ...one("granularity"), ...one("from"), ...one("to"), ...one("time"), ...one("time_zone"),
  };
}
