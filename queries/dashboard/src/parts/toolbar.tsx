// What is chosen about a view: measure, granularity, groups, filter, comparison, zone; and the way back up.
import type { Description } from "../model/api";
import { bounds, granularities, label, period } from "../model/bucket";
import { go } from "../model/place";
import { type View, address, currenciesOf } from "../model/view";
import { Single } from "./values";

interface Viewed {
  of: Description;
  view: View;
}

const NOTHING: [string, string] = ["", "nothing"];
const BEFORE: [string, string] = ["previous", "the period before"];
const YEAR: [string, string] = ["P1Y", "a year before"];
const MONTH: [string, string] = ["P1M", "a month before"];
const WEEK: [string, string] = ["P1W", "a week before"];

/** What a granularity can be compared with: a year before a week lies no week. */
function comparisons(by: string | null): [string, string][] {
  if (by === "week") return [NOTHING, WEEK, ["P52W", "52 weeks before"]];
  if (by === "year" || by === "quarter") return [NOTHING, BEFORE, YEAR];
  return by === "month" ? [NOTHING, BEFORE, YEAR, MONTH] : [NOTHING, BEFORE, YEAR, MONTH, WEEK];
}

export function Toolbar({ of, view }: Viewed) {
  const change = (changes: Partial<View>) => go(address(of.name, { ...view, rows: false, ...changes }));
  const possible = granularities(of.levels);
  const dimensions = (of.definition.dimensions ?? []).filter((name) => !view.fixed.some(([fixed]) => fixed === name));
  const zones = anyZone(of) ? [...new Set([of.definition.time?.time_zone ?? "UTC", "UTC", Intl.DateTimeFormat().resolvedOptions().timeZone])] : [];
  return (
    <form class="toolbar" onSubmit={(event) => event.preventDefault()}>
      {possible.length > 0 && (
        <fieldset class="segments">
          <legend>By</legend>
          {possible.map((by) => (
            <label key={by}>
              <input type="radio" name="by" checked={view.by === by && !view.rows} onChange={() => change({ by, from: undefined, to: undefined, ...kept(view, by) })} />
              <span>{by}</span>
            </label>
          ))}
        </fieldset>
      )}
      <Select label="Measure" value={view.measure} options={of.definition.measures.map(({ name }) => [name, name])} onChange={(measure) => change({ measure })} />
      <Select label="Group by" value={view.group ?? ""} options={[["", "nothing"], ...dimensions.map((name): [string, string] => [name, name])]} onChange={(group) => change({ group: group || null })} />
      {possible.length > 0 && !view.group && <Select label="Compare with" value={view.compare ?? ""} options={comparisons(view.by)} onChange={(compare) => change({ compare: compare || undefined, ...ranged(view, compare) })} />}
      {zones.length > 1 && <Select label="Zone" value={view.zone ?? zones[0] ?? ""} options={zones.map((zone) => [zone, zone])} onChange={(zone) => change({ zone: zone === zones[0] ? undefined : zone })} />}
      <label class="field filter">
        <span>Filter</span>
        <input value={view.filter ?? ""} placeholder={example(of)} spellcheck={false} onChange={(event) => change({ filter: event.currentTarget.value.trim() || undefined })} />
      </label>
    </form>
  );
}

export function Select({ label, value, options, onChange }: { label: string; value: string; options: [string, string][]; onChange: (value: string) => void }) {
  return (
    <label class="field">
      <span>{label}</span>
      <select value={value} onChange={(event) => onChange(event.currentTarget.value)}>
        {options.map(([value, text]) => <option key={value} value={value}>{text}</option>)}
      </select>
    </label>
  );
}

/** The way here: all time, the year, the month, the day; and what is held fixed, each to be let go. */
export function Crumbs({ of, view }: Viewed) {
  const steps = stepsTo(of, view);
  return (
    <nav class="crumbs" aria-label="Range">
      <ol>
        {steps.map(({ name, to }, at) => (
          <li key={name}>{at === steps.length - 1 ? <span aria-current="true">{name}</span> : <a href={address(of.name, to)}>{name}</a>}</li>
        ))}
      </ol>
      {view.fixed.map(([name, value]) => (
        <a key={name} class="chip" title="Let go" href={address(of.name, { ...view, rows: false, fixed: view.fixed.filter(([other]) => other !== name) })}>
          {name} <strong><Single of={value} /></strong> <span aria-hidden="true">×</span><span class="unseen">, let go</span>
        </a>
      ))}
      {of.definition.time && <span class="zone">{view.zone ?? of.definition.time.time_zone ?? "UTC"}</span>}
    </nav>
  );
}

function stepsTo(of: Description, view: View): { name: string; to: View }[] {
  if (!of.definition.time) return [{ name: "all rows", to: view }];
  const possible = granularities(of.levels);
  const start = { ...view, rows: false, compare: undefined };
  const has = (by: string) => possible.includes(by);
  const top = ["year", "quarter", "month", "week", "day"].find(has) ?? possible[0] ?? null;
  const steps: { name: string; to: View }[] = [{ name: "All time", to: { ...start, by: top, from: undefined, to: undefined } }];
  if (!view.from) return steps;
  const name = period(view.from, view.to ?? "");
  const day = /^(\d{4})(?:-(\d\d))?(?:-(\d\d))?/.exec(view.from);
  const upTo = (granularity: string, by: string) => {
    const time = `${day?.[1]}-${day?.[2] ?? "01"}-${day?.[3] ?? "01"}T00:00:00Z`;
    const range = bounds(time, granularity);
    const step = { name: label(time, granularity), to: { ...start, by, ...range } };
    if (day && range && has(by) && step.name !== name && !(range.from === view.from && range.to === view.to)) steps.push(step);
  };
  if (day?.[2]) upTo("year", "month");
  if (day?.[3]) upTo("month", "day");
  if (view.from.includes("T")) upTo("day", "hour");
  return [...steps, { name, to: view }];
}

/** A range is kept when only its granularity changes, as long as it is one of dates. */
function kept(view: View, by: string): Partial<View> {
  const dates = view.from && /^\d{4}/.test(view.from) && !view.from.includes("T");
  const compared = comparisons(by).some(([period]) => period === view.compare);
  const range = dates && by !== "year" ? { from: view.from, to: view.to } : { compare: undefined };
  return compared ? range : { ...range, compare: undefined };
}

/** A comparison needs a range with both ends. */
function ranged(view: View, compare: string): Partial<View> {
  if (!compare || (view.from && view.to)) return {};
  if (view.from?.startsWith("-")) return { to: "now" };
  const year = new Date().getFullYear();
  return view.by === "year" ? { from: String(year - 1), to: String(year + 1) } : { from: String(year), to: String(year + 1) };
}

function anyZone(of: Description): boolean {
  const base = of.levels[0] ?? "";
  return base === "hour" || /^PT/.test(base);
}

function example(of: Description): string {
  const name = of.definition.dimensions?.find((one) => !currenciesOf(of).includes(one)) ?? of.definition.dimensions?.[0];
  return name ? `${name} in ('a', 'b')` : "no dimensions";
}
