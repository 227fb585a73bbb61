// A new aggregate, or the next version of one: a form and its SQL side by side, each changes the other. The server reads
// both, so what is shown is what would be made: the preview's definition is what is registered.
import { useEffect, useRef, useState } from "preact/hooks";

import { type Column, type Definition, type Description, type Problem, type Remark, type Row, type Table, aggregatePath, ask, refusalOf, send } from "../model/api";
import { inLines } from "../model/as_sql";
import { label } from "../model/bucket";
import { bytes, shown } from "../model/exact";
import { go, href, place } from "../model/place";
import { lookAgain, sources } from "../model/upstream";
import { DefinitionForm } from "../parts/definition_form";
import { Refused } from "../parts/trouble";
import { Single } from "../parts/values";

const PAUSE_MS = 250;

interface Preview {
  definition: Definition;
  sql: string;
  warnings: Remark[];
  size?: { rows: number; rows_sampled: number; exact: boolean; cells: number; bytes: number; levels: { granularity: string; cells: number }[] };
  sample?: { columns: Column[]; data: Row[] };
  registered?: { state: "absent" | "same" | "different"; differences: string[] };
}

/** What was written last, and where: the other side follows. */
type Written = { side: "form"; definition: Definition } | { side: "sql"; sql: string };

export function Register() {
  const tables = (sources.value ?? []).flatMap((source) => source.tables);
  const known = tables.length > 0;
  const [name, setName] = useState(place.value.query.get("from") ?? "");
  const [written, setWritten] = useState<Written | null>(null);
  const [definition, setDefinition] = useState<Definition | null>(null);
  const [sql, setSql] = useState("");
  const [preview, setPreview] = useState<Preview | null>(null);
  const [refused, setRefused] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);

  const edit = (next: Definition) => {
    setDefinition(next);
    setWritten({ side: "form", definition: next });
  };
  useBegin(known, tables, edit);

  const asked = useRef(0);
  useEffect(() => {
    if (!written) return undefined;
    const turn = ++asked.current;
    const timer = setTimeout(async () => {
      const path = `/v1/aggregates:preview${named(name) ? `?name=${encodeURIComponent(name)}` : ""}`;
      const body = written.side === "form" ? written.definition : written.sql;
      try {
        const found = await send<Preview>("POST", path, body, written.side === "form" ? "application/json" : "application/sql");
        if (turn !== asked.current) return;
        setPreview(found);
        setRefused(null);
        if (written.side === "form") setSql(inLines(found.sql));
        else setDefinition(found.definition);
      } catch (error) {
        if (turn !== asked.current) return;
        setRefused(refusalOf(error));
        setPreview(null);
      }
    }, PAUSE_MS);
    return () => clearTimeout(timer);
  }, [written, name]);

  const editSql = (text: string) => {
    setSql(text);
    const told = /^\s*CREATE\s+(?:ONLINE\s+AGGREGATE|MATERIALIZED\s+VIEW)\s+(?:IF\s+NOT\s+EXISTS\s+)?([a-z_][a-z0-9_]*)/i.exec(text)?.[1];
    if (told) setName(told);
    setWritten({ side: "sql", sql: text });
  };
  const different = preview?.registered?.state === "different";
  const create = async () => {
    if (!preview) return;
    setBusy(true);
    try {
      await send("PUT", `${aggregatePath(name)}${different ? "?on_change=rebuild" : ""}`, preview.definition);
      await lookAgain();
      go(href(["aggregates", name]));
    } catch (error) {
      setRefused(refusalOf(error));
    } finally {
      setBusy(false);
    }
  };

  return (
    <>
      <h1>Register an aggregate</h1>
      {!known && <p class="empty">No table is followed yet. <a href={href(["sources"])}>Sources</a></p>}
      {known && (
        <div class="pair wide">
          <section class="sheet" aria-labelledby="form">
            <h2 id="form">Definition</h2>
            <label class="field name"><span>Name</span><input value={name} spellcheck={false} autocomplete="off" placeholder="payments_by_month" onInput={(event) => setName(event.currentTarget.value)} /></label>
            {definition && <DefinitionForm definition={definition} tables={tables} onChange={edit} />}
          </section>
          <section class="sheet" aria-labelledby="sql">
            <h2 id="sql">The same in SQL</h2>
            <textarea aria-labelledby="sql" rows={9} spellcheck={false} value={sql} onInput={(event) => editSql(event.currentTarget.value)} />
            {refused && <Refused problem={refused} />}
            {preview && <Shown preview={preview} />}
            <div class="actions">
              <button type="button" class="main" disabled={!preview || !named(name) || busy || preview.registered?.state === "same"} onClick={create}>{different ? "Build the next version" : "Create"}</button>
            </div>
            {!named(name) && <p class="about">It needs a name: letters, digits and underscores, a letter first.</p>}
            {preview?.registered?.state === "same" && <p class="about">{name} is registered with this definition already.</p>}
            {different && <p class="about">{name} is registered and differs in {preview?.registered?.differences.join(", ")}. The next version is built beside it and takes its place when it is filled.</p>}
          </section>
        </div>
      )}
    </>
  );
}

function Shown({ preview }: { preview: Preview }) {
  const { size, sample, warnings } = preview;
  const time = sample?.columns.find(({ role }) => role === "time");
  return (
    <div class="preview">
      {warnings.map((warning) => <p class="remark" key={`${warning.code} ${warning.message}`}>{warning.message}</p>)}
      {size && (
        <dl class="facts">
          <div><dt>Rows</dt><dd>{shown(size.rows)}</dd></div>
          <div><dt>{size.exact ? "Cells" : "Cells, estimated"}</dt><dd>{shown(size.cells)}</dd></div>
          <div><dt>On disk, about</dt><dd>{bytes(size.bytes)}</dd></div>
        </dl>
      )}
      {sample && sample.data.length > 0 && (
        <div class="scroll flat" tabIndex={0} role="region" aria-label="Sample">
          <table class="totals">
            <caption>Sample <span>of {shown(size?.rows_sampled ?? 0)} rows, not the totals</span></caption>
            <thead><tr>{sample.columns.map(({ name }) => <th key={name} scope="col">{name}</th>)}</tr></thead>
            <tbody>
              {sample.data.slice(0, 6).map((row, at) => (
                <tr key={at}>{sample.columns.map(({ name, role }) => <td key={name}>{role === "measure" ? shown(row[name]) : role === "time" ? label(row[name] as string | null, granularity(time)) : <Single of={row[name]} />}</td>)}</tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}

/** Begins with what the address names: an aggregate to change, a definition that was suggested, or the first table. */
function useBegin(known: boolean, tables: Table[], edit: (definition: Definition) => void): void {
  const { query } = place.value;
  const [from, suggested] = [query.get("from"), query.get("definition")];
  useEffect(() => {
    if (!known) return;
    const definition = suggested ? read(suggested) : null;
    if (definition) edit(definition);
    else if (from) ask<Description>(aggregatePath(from)).then((of) => edit(of.definition)).catch(() => edit(first(tables)));
    else edit(first(tables));
  }, [known, from, suggested]);
}

function read(text: string): Definition | null {
  try {
    return JSON.parse(text) as Definition;
  } catch {
    return null;
  }
}

export function first(tables: Table[], name?: string): Definition {
  const table = tables.find((one) => one.name === name) ?? tables[0];
  const columns = table?.columns ?? [];
  const amount = columns.find(({ type, primary_key }) => /numeric|double|real|bigint|integer/.test(type) && !primary_key);
  const time = columns.find(({ type }) => /^timestamp/.test(type)) ?? columns.find(({ type }) => type === "date");
  // Ticked at first, to be unticked: a table's columns do not say which are currencies, as an aggregate's do.
  const currencies = columns.filter(({ name }) => /^(ccy|curr|currency_code|currency_id|(.*_)?currency)$/i.test(name));
  return {
    table: table?.name ?? "",
    measures: [...(amount ? [{ name: amount.name, sum: amount.name }] : []), { name: "n", count: "*" }],
    dimensions: currencies.map(({ name }) => name),
    ...(time ? { time: { column: time.name, granularity: "day", time_zone: "UTC" }, rollups: ["month", "year"] } : {}),
  };
}

const named = (name: string) => /^[a-z_][a-z0-9_]*$/i.test(name);
const granularity = (column: Column | undefined) => (column as { granularity?: string } | undefined)?.granularity ?? "";
