// The totals of a view, live: one chart for each combination of currencies, the groups with their shares, and the same
// numbers as a table, which is also the way down for the keyboard.
import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";

import { type Answer, type Description, type Problem, aggregatePath, ask, refusalOf } from "../model/api";
import { bounds, tick } from "../model/bucket";
import { type Exact, type Value, exact, percent, pixels, shown, text, widened } from "../model/exact";
import { type Live, follow } from "../model/live";
import { type Drawn, type Panel, drawn, picked } from "../model/panels";
import { go } from "../model/place";
import { lagOf, source } from "../model/upstream";
import { type View, address, currenciesOf, groups, into, parameters } from "../model/view";
import { Chart } from "./chart";
import { Pill } from "./pill";
import { type Before, TotalsTable } from "./totals_table";
import { Refused } from "./trouble";
import { Values, spoken } from "./values";

const COMPARE_EVERY_MS = 1500;

export function Totals({ of, view }: { of: Description; view: View }) {
  const question = parameters(of, view).toString();
  const path = `${aggregatePath(of.name)}/live?${question}`;
  const followed = useMemo(() => follow(path), [path]);
  useEffect(() => () => followed.stop(), [followed]);
  const live = followed.answer.value;
  const refused = followed.refused.value;
  const compared = useBefore(of, view, live);
  const before = compared && "previous" in compared ? compared : null;
  const seen = useMemo(() => (live ? drawn(of, view, live.columns, live.rows.values()) : null), [live?.rows, of, question]);
  if (refused && !live) return <Refused problem={refused} />;
  if (!live || !seen) return <div class="panel waiting" aria-busy="true" />;
  const csv = `${aggregatePath(of.name)}/data.csv?${question}`;
  return (
    <>
      {refused && <Refused problem={refused} />}
      <div class="freshness" role="status">
        <Pill state={followed.connected.value ? (source.value?.state ?? live.asOf.state ?? "live") : "reconnecting"} />
        <span>as of <code>{live.asOf.lsn}</code></span>
        <span>{source.value && lagOf(source.value) === null ? "upstream is away" : `${shown(live.asOf.lag_ms)} ms behind upstream`}</span>
        <span>{shown(live.stats.cells_read)} cells read from {live.stats.served_from}</span>
      </div>
      {live.warnings.map((warning) => <p class="remark" key={warning.code}>{warning.message}</p>)}
      {compared && "detail" in compared && <p class="remark">Nothing is compared: {compared.detail}{compared.hint && ` (${compared.hint})`}</p>}
      {seen.panels.length === 0 && <p class="empty">No rows in this range.</p>}
      <div class={seen.panels.length > 1 ? "panels many" : "panels"}>
        {seen.panels.map((panel) => <PanelView key={panel.key} of={of} view={view} seen={seen} panel={panel} before={before} alone={seen.panels.length === 1} />)}
      </div>
      {seen.panels.length > 0 && <TotalsTable of={of} view={view} seen={seen} before={before} />}
      <p class="exports"><a href={csv} download={`${of.name}.csv`}>CSV</a> <a href={csv.replace(".csv", ".json")}>JSON</a> <a href={csv.replace(".csv", ".arrow")} download={`${of.name}.arrow`}>Arrow</a></p>
    </>
  );
}

function PanelView({ of, view, seen, panel, before, alone }: { of: Description; view: View; seen: Drawn; panel: Panel; before: Before | null; alone: boolean }) {
  const [at, setAt] = useState<number | null>(null);
  const by = view.by ?? "";
  const whole = seen.times.length === 1 && (view.by === null || view.by === "all");
  const series = panel.series;
  const previous = before && series.length === 1 ? seen.times.map((time) => pixels(before.previous(time, panel.key))) : undefined;
  const next = (index: number) => into(of, view, bounds(seen.times[index] ?? null, by), panel.fixed);
  const pick = (index: number) => {
    const to = next(index);
    if (to) go(address(of.name, to));
  };
  return (
    <section class="panel" aria-label={spoken(panel.fixed) || view.measure}>
      <header>
        <h2>{panel.fixed.length ? <Values of={panel.fixed} /> : view.measure}</h2>
        <p class="readout">
          {at !== null && at < seen.times.length
            ? <><span>{seen.labels[at]}{seen.open[at] && " (open)"}</span> {series.length === 1 && <strong>{shown(series[0]?.values[at])}</strong>}</>
            : panel.total !== null && <><span>in all</span> <strong>{shown(panel.total)}</strong></>}
        </p>
      </header>
      {!whole && (
        <Chart height={alone ? 280 : 190} open={seen.open} previous={previous}
          buckets={seen.times.length} tick={(index, earlier) => tick(seen.times[index] ?? null, earlier === undefined ? undefined : seen.times[earlier], by)}
          lines={series.map(({ key, values }) => ({ key, values: values.map(pixels) }))}
          onPick={seen.times.some((_, index) => next(index)) ? pick : undefined} onPoint={setAt} />
      )}
      {(series.length > 1 || whole) && <Legend of={of} view={view} panel={panel} at={at} />}
      {panel.missing > 0 && <p class="about">{panel.missing} more groups are not shown; filter, or see the CSV.</p>}
    </section>
  );
}

/** The largest groups and the others, each with its part of the whole. */
function Legend({ of, view, panel, at }: { of: Description; view: View; panel: Panel; at: number | null }) {
  const total = exact(panel.total);
  // Below zero there are no parts of a whole, and a bucket's number is not the one that a share is of.
  const whole = at === null && total && total.digits > 0n && panel.series.every(({ total }) => (exact(total)?.digits ?? 0n) >= 0n) ? total : null;
  const top = Math.max(...panel.series.map(({ total }) => Math.abs(pixels(total) ?? 0)), 1);
  return (
    <table class="legend">
      <caption class="unseen">{view.measure} by group{panel.fixed.length > 0 && <>, <Values of={panel.fixed} /></>}</caption>
      <tbody>
        {panel.series.map(({ key, fixed, total: part, values }, index) => {
          const number = at === null ? part : values[at];
          return <tr key={key}>
            <th scope="row">
              <svg viewBox="0 0 10 10" class={`swatch s${fixed ? index + 1 : 7}`} aria-hidden="true"><rect width="10" height="10" rx="2" /></svg>
              {fixed?.length ? <a href={address(of.name, { ...view, fixed: [...view.fixed, ...panel.fixed, ...fixed], group: null })}><Values of={fixed} /></a> : fixed ? "total" : key}
            </th>
            <td>{number === undefined ? "" : shown(number)}</td>
            <td class="share">{whole && percent(shareOf(part, whole))}</td>
            <td class="length"><svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true"><rect width={(Math.abs(pixels(part) ?? 0) / top) * 100} height="6" class={`s${fixed ? index + 1 : 7}`} /></svg></td>
          </tr>;
        })}
      </tbody>
    </table>
  );
}

/** With six digits, rounded down. */
function shareOf(part: Value, whole: Exact): string | null {
  const one = exact(part);
  if (!one) return null;
  const scale = Math.max(one.scale, whole.scale);
  return text({ digits: (widened(one, scale) * 1_000_000n) / widened(whole, scale), scale: 6 });
}

/** The same buckets a period before, asked again when the live answer changed; or why there are none. */
function useBefore(of: Description, view: View, live: Live | null): Before | Problem | null {
  const question = parameters(of, view);
  const due = useRef(0);
  const path = `${aggregatePath(of.name)}/data?${question}&compare=${view.compare ?? ""}`;
  // One for each path: the answer to an earlier one is not shown under this one's period.
  const found = useMemo(() => signal<Answer | Problem | null>(null), [path]);
  useEffect(() => {
    if (!view.compare || view.group || !live) return undefined;
    const timer = setTimeout(() => {
      due.current = performance.now() + COMPARE_EVERY_MS;
      ask<Answer>(path).catch(refusalOf).then((answer) => { found.value = answer; });
    }, Math.max(0, due.current - performance.now()));
    return () => clearTimeout(timer);
  }, [path, live?.rows]);
  const answer = view.group ? null : found.value;
  return useMemo(() => {
    if (!answer || !("data" in answer)) return answer;
    const panelled = currenciesOf(of).filter((name) => groups(of, view).includes(name));
    const values = new Map(answer.data.map((row) => [`${row["time"]} ${JSON.stringify(picked(row, panelled))}`, row[`${view.measure}_previous`]]));
    return { lsn: answer.as_of.lsn, previous: (time, key) => values.get(`${time} ${key}`) };
  }, [answer]);
}
