// The rows of the table behind a cell, newest first, a page at a time.
import { signal } from "@preact/signals";
import { useEffect, useMemo } from "preact/hooks";

import { type AsOf, type Column, type Description, type Problem, type Row, aggregatePath, ask, refusalOf } from "../model/api";
import { instant } from "../model/bucket";
import { type Value, shown } from "../model/exact";
import { type View, rowParameters } from "../model/view";
import { Refused } from "./trouble";
import { Single } from "./values";

interface Rows {
  columns: Column[];
  data: Row[];
  as_of: AsOf;
  page: { next: string | null };
}

export function Behind({ of, view }: { of: Description; view: View }) {
  const asked = rowParameters(view);
  const path = `${aggregatePath(of.name)}/rows?${asked}`;
  // One for each path: what comes when another is asked is shown by nobody.
  const found = useMemo(() => signal<Rows | Problem | null>(null), [path]);
  const take = (asked: Promise<Rows>) => asked.catch(refusalOf).then((rows) => { found.value = rows; });
  useEffect(() => void take(ask(path)), [path]);
  const rows = found.value;
  if (!rows) return <div class="panel waiting" aria-busy="true" />;
  if (!("data" in rows)) return <Refused problem={rows} />;
  const more = () => take(ask<Rows>(`${path}&cursor=${encodeURIComponent(rows.page.next ?? "")}`).then((next) => ({ ...next, data: [...rows.data, ...next.data] })));
  return (
    <section class="behind">
      <div class="freshness" role="status"><span>{shown(rows.data.length)} rows{rows.page.next && ", there are more"}, newest first</span> <span>as of <code>{rows.as_of.lsn}</code></span></div>
      <div class="scroll" tabIndex={0} role="region" aria-label="Rows">
        <table class="rows">
          <caption>{of.definition.table}</caption>
          <thead><tr>{rows.columns.map(({ name, type }) => <th key={name} scope="col" class={isNumber(type) ? "number" : undefined}>{name}</th>)}</tr></thead>
          <tbody>
            {rows.data.map((row, at) => (
              <tr key={at}>{rows.columns.map(({ name, type }) => <td key={name} class={isNumber(type) ? "number" : undefined}>{cell(row[name], type)}</td>)}</tr>
            ))}
          </tbody>
        </table>
      </div>
      {rows.page.next && <button type="button" onClick={more}>More rows</button>}
    </section>
  );
}

const isNumber = (type: string) => /numeric|decimal|int|real|double/.test(type);

function cell(value: Value, type: string) {
  if (value === null || value === undefined) return <Single of={value} />;
  if (/timestamp/.test(type)) return instant(String(value));
  return /numeric|decimal|real|double/.test(type) ? shown(value) : String(value);
}
