// A definition as a form: table, time, measures, dimensions. It says what is chosen; whether that works the server says.
import type { Definition, MeasureDefinition, Table } from "../model/api";
import { first } from "../pages/register";
import { Select } from "./toolbar";

const GRANULARITIES = ["PT15M", "hour", "day", "week", "month", "quarter", "year"];
const ROLLUPS = ["day", "month", "quarter", "year"];
const CODECS = ["yyyymmdd", "yymmdd", "ddmmyy", "yyyymm", "epoch_s", "epoch_ms", "epoch_us"];
const KINDS = ["sum", "count"];

interface Edited {
  definition: Definition;
  onChange: (definition: Definition) => void;
}

export function DefinitionForm({ definition, tables, onChange }: Edited & { tables: Table[] }) {
  const columns = tables.find(({ name }) => name === definition.table)?.columns ?? [];
  const dimensions = definition.dimensions ?? [];
  const change = (changes: Partial<Definition>) => onChange({ ...definition, ...changes });
  const toggle = (name: string) => change({ dimensions: dimensions.includes(name) ? dimensions.filter((one) => one !== name) : [...dimensions, name] });
  const groupable = columns.filter(({ name, type, primary_key }) => !primary_key && name !== definition.time?.column && !/numeric|double|real/.test(type));
  return (
    <form class="definition-form" onSubmit={(event) => event.preventDefault()}>
      <Select label="Table" value={definition.table} options={tables.map(({ name }) => [name, name])} onChange={(table) => onChange(first(tables, table))} />
      <Measures definition={definition} onChange={onChange} columns={columns} />
      <fieldset class="choices">
        <legend>Group by</legend>
        {groupable.map(({ name, type }) => (
          <label key={name}><input type="checkbox" checked={dimensions.includes(name)} onChange={() => toggle(name)} /> {name} <span>{type}</span></label>
        ))}
      </fieldset>
      <TimeFields definition={definition} onChange={onChange} columns={columns} />
      <label class="field"><span>Only rows where</span><input value={definition.where ?? ""} spellcheck={false} placeholder="status = 'settled'" onChange={(event) => change({ where: event.currentTarget.value.trim() || undefined })} /></label>
      <label class="choice"><input type="checkbox" checked={definition.drill_through === true} onChange={(event) => change({ drill_through: event.currentTarget.checked || undefined })} /> Keep an index of the rows, to see what is behind a total</label>
    </form>
  );
}

function Measures({ definition, onChange, columns }: Edited & { columns: Table["columns"] }) {
  const put = (measures: MeasureDefinition[]) => onChange({ ...definition, measures });
  const replace = (at: number, measure: MeasureDefinition) => put(definition.measures.map((one, index) => (index === at ? measure : one)));
  const numbers = columns.filter(({ type }) => /numeric|double|real|int/.test(type)).map(({ name }) => name);
  return (
    <fieldset class="measures">
      <legend>Measures</legend>
      {definition.measures.map((measure, at) => {
        const kind = KINDS.find((one) => measure[one] !== undefined) ?? "count";
        const column = String(measure[kind] ?? "*");
        const choices = kind === "count" ? ["*", ...columns.map(({ name }) => name)] : numbers;
        const { [kind]: _, ...rest } = measure;
        return (
          <div key={at}>
            <select aria-label={`Kind of measure ${at + 1}`} value={kind} onChange={(event) => replace(at, { ...rest, name: measure.name, [event.currentTarget.value]: event.currentTarget.value === "count" ? "*" : (numbers.includes(column) ? column : (numbers[0] ?? "")) })}>
              {KINDS.map((one) => <option key={one}>{one}</option>)}
            </select>
            <select aria-label={`Column of measure ${at + 1}`} value={column} onChange={(event) => replace(at, { ...measure, [kind]: event.currentTarget.value })}>
              {choices.map((one) => <option key={one} value={one}>{one === "*" ? "all rows" : one}</option>)}
            </select>
            <input aria-label={`Name of measure ${at + 1}`} value={measure.name} spellcheck={false} onChange={(event) => replace(at, { ...measure, name: event.currentTarget.value })} />
            <button type="button" class="quiet" aria-label={`Remove ${measure.name}`} disabled={definition.measures.length === 1} onClick={() => put(definition.measures.filter((_, index) => index !== at))}>×</button>
          </div>
        );
      })}
      <button type="button" class="quiet" onClick={() => put([...definition.measures, { name: `measure_${definition.measures.length + 1}`, count: "*" }])}>Add a measure</button>
    </fieldset>
  );
}

function TimeFields({ definition, onChange, columns }: Edited & { columns: Table["columns"] }) {
  const { time } = definition;
  const rollups = definition.rollups ?? [];
  const times = columns.filter(({ type }) => /timestamp|date|int/.test(type));
  const change = (changes: Partial<NonNullable<Definition["time"]>>) => time && onChange({ ...definition, time: { ...time, ...changes } });
  const integer = /int/.test(columns.find(({ name }) => name === time?.column)?.type ?? "");
  const pick = (column: string) => {
    const { time: _, rollups: __, ...rest } = definition;
    onChange(column ? { ...rest, time: { granularity: "day", time_zone: "UTC", ...time, column }, rollups: definition.rollups ?? ["month", "year"] } : rest);
  };
  return (
    <div class="times">
      <Select label="Time" value={time?.column ?? ""} options={[...times.map(({ name }): [string, string] => [name, name]), ["", "no time"]]} onChange={pick} />
      {time && <Select label="Buckets" value={time.granularity} options={[...new Set([...GRANULARITIES, time.granularity])].map((one) => [one, one === "PT15M" ? "15 minutes" : one])} onChange={(granularity) => change({ granularity })} />}
      {time && <label class="field"><span>Zone</span><input value={time.time_zone ?? "UTC"} spellcheck={false} onChange={(event) => change({ time_zone: event.currentTarget.value.trim() || "UTC" })} /></label>}
      {time && integer && <Select label="Dates are written" value={time.codec ?? ""} options={[["", "choose"], ...CODECS.map((one): [string, string] => [one, one])]} onChange={(codec) => change({ codec: codec || undefined })} />}
      {time && (
        <fieldset class="choices">
          <legend>Kept as well</legend>
          {ROLLUPS.map((one) => (
            <label key={one}><input type="checkbox" checked={rollups.includes(one)} onChange={() => onChange({ ...definition, rollups: rollups.includes(one) ? rollups.filter((other) => other !== one) : [...rollups, one] })} /> {one}</label>
          ))}
        </fieldset>
      )}
    </div>
  );
}
