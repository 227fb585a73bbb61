// The numbers of a view as a table, the newest first: exact, each a link to what is behind it.
import { useEffect, useRef } from "preact/hooks";

import type { Description } from "../model/api";
import { bounds } from "../model/bucket";
import { type Value, shown, signed } from "../model/exact";
import { type Drawn, type Panel, type Series, difference } from "../model/panels";
import { type View, address, into } from "../model/view";
import { Values } from "./values";

/** What a comparison adds: earlier values, true at a position of their own. */
export interface Before {
  lsn: string;
  previous: (time: string | null | undefined, panel: string) => Value;
}

const ROWS_AT_MOST = 400;

export function TotalsTable({ of, view, seen, before }: { of: Description; view: View; seen: Drawn; before: Before | null }) {
  // What is there at first has not moved.
  const settled = useRef(false);
  useEffect(() => { settled.current = true; }, []);
  const by = view.by ?? "all";
  const whole = by === "all" || view.by === null;
  if (whole) return null;
  const columns = seen.panels.flatMap((panel) => panel.series.map((series) => ({ panel, series })));
  const several = seen.panels.length > 1 && columns.some(({ series }) => series.fixed?.length !== 0);
  const rows = seen.times.map((time, at) => ({ time, at })).reverse().slice(0, ROWS_AT_MOST);
  const zone = view.zone ?? of.definition.time?.time_zone ?? "UTC";
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Totals as a table">
      <table class="totals">
        <caption>{view.measure} by {by}{view.group && ` and ${view.group}`} <span>{zone}</span></caption>
        <thead>
          {several && <tr><td /> {seen.panels.map((panel) => <th key={panel.key} scope="colgroup" colSpan={panel.series.length * (before ? 3 : 1)}><Values of={panel.fixed} /></th>)}</tr>}
          <tr>
            <th scope="col">{by}</th>
            {columns.flatMap(({ panel, series }) => [
              <th key={`${panel.key} ${series.key}`} scope="col">{heading(panel, series, several, view.measure)}</th>,
              ...(before ? [<th key={`${panel.key} before`} scope="col" title={`as of ${before.lsn}`}>before</th>, <th key={`${panel.key} change`} scope="col">change</th>] : []),
            ])}
          </tr>
        </thead>
        <tbody>
          {rows.map(({ time, at }) => {
            const range = bounds(time, by);
            const down = into(of, view, range, []);
            return (
              <tr key={time} class={seen.open[at] ? "open" : undefined}>
                <th scope="row">{down ? <a href={address(of.name, down)}>{seen.labels[at]}</a> : seen.labels[at]}{seen.open[at] && <span class="mark-open"> open</span>}</th>
                {columns.flatMap(({ panel, series }) => {
                  const value = series.values[at];
                  const then = before?.previous(time, panel.key);
                  const cell = series.fixed && value !== undefined ? into(of, view, range, [...panel.fixed, ...series.fixed]) : null;
                  const number = <span key={String(value)} class={settled.current ? "moved" : undefined}>{value === undefined ? "" : shown(value)}</span>;
                  return [
                    <td key={`${panel.key} ${series.key}`}>{cell ? <a href={address(of.name, cell)}>{number}</a> : number}</td>,
                    ...(before ? [<td key={`${panel.key} before`} class="aside">{shown(then)}</td>, <td key={`${panel.key} change`} class="aside">{signed(difference(value, then))}</td>] : []),
                  ];
                })}
              </tr>
            );
          })}
        </tbody>
        <tfoot>
          <tr><th scope="row">in all</th>{columns.flatMap(({ panel, series }) => [<td key={`${panel.key} ${series.key}`}>{shown(series.total)}</td>, ...(before ? [<td key="b" />, <td key="c" />] : [])])}</tr>
        </tfoot>
      </table>
      {seen.times.length > ROWS_AT_MOST && <p class="about">The newest {ROWS_AT_MOST} of {seen.times.length}; CSV has all.</p>}
    </div>
  );
}

/** A column is called by its group; by its currencies where those are all that it is of, and nothing above says them. */
function heading(panel: Panel, { key, fixed }: Series, several: boolean, measure: string) {
  const of = fixed?.length || several ? fixed : panel.fixed;
  if (!of) return key;
  return of.length ? <Values of={of} /> : measure;
}
