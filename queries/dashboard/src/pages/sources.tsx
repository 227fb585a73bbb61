// Where the source stands: its checks, the failed first, each with the statement that repairs it; the slot, the positions,
// the tables.
import { useState } from "preact/hooks";

import { type Check, type Problem, type Source, refusalOf, send } from "../model/api";
import { bytes, shown } from "../model/exact";
import { lagOf, lookAgain, sources } from "../model/upstream";
import { Pill } from "../parts/pill";
import { Refused, ToDo } from "../parts/trouble";

export function Sources() {
  if (sources.value?.length === 0) return <p class="empty">With this token nothing is told of the source: it sees a part of the data.</p>;
  return <>{(sources.value ?? []).map((source) => <One key={source.name} source={source} />)}</>;
}

function One({ source }: { source: Source }) {
  const checks = source.checks ?? [];
  const ok = checks.filter(({ outcome }) => outcome === "ok");
  return (
    <>
      <div class="heading"><h1>{source.name} <Pill state={source.state} /></h1><span class="about">{source.connector}{source.database && `, ${source.database}`}</span></div>
      {source.state === "halted" && <ToDo what="Halted" message={source.message ?? ""} remedy={source.remedy} />}
      {checks.filter(({ outcome }) => outcome !== "ok").map((check) => <Failed key={check.name + check.message} check={check} />)}
      <section class="sheet">
        <h2>Positions</h2>
        <dl class="facts">
          <Fact name="Upstream" value={source.upstream_lsn} />
          <Fact name="Received" value={source.received_lsn} />
          <Fact name="Applied" value={source.applied_lsn} />
          <Fact name="Durable" value={source.durable_lsn} />
          <Fact name="Acknowledged" value={source.acknowledged_lsn} />
          <div><dt>Lag</dt><dd>{shown(lagOf(source))} <small>ms</small></dd></div>
          {source.slot && <Fact name="Slot" value={source.slot} />}
          {source.slot_status?.wal_status && <div><dt>Its log</dt><dd>{source.slot_status.wal_status}</dd></div>}
          {typeof source.retained_wal_bytes === "number" && <div><dt>Retained for us</dt><dd>{bytes(source.retained_wal_bytes)}</dd></div>}
          <div><dt>Reconnects</dt><dd>{shown(source.reconnects ?? 0)}</dd></div>
        </dl>
      </section>
      <Tables source={source} />
      {ok.length > 0 && (
        <section class="sheet">
          <h2>{ok.length} checks are ok</h2>
          <ul class="checks">{ok.map((check) => <li key={check.name + check.message}>{check.message}</li>)}</ul>
        </section>
      )}
    </>
  );
}

function Failed({ check }: { check: Check }) {
  return <ToDo tone={check.outcome === "failed" ? "bad" : "warn"} what={check.name.replaceAll("_", " ")} message={check.message} remedy={check.remedy} />;
}

function Fact({ name, value }: { name: string; value: string | undefined }) {
  return value ? <div><dt>{name}</dt><dd><code>{value}</code></dd></div> : null;
}

function Tables({ source }: { source: Source }) {
  const [table, setTable] = useState("");
  const [refused, setRefused] = useState<Problem | null>(null);
  const follow = (name: string) =>
    send("POST", `/v1/sources/${encodeURIComponent(source.name)}/tables`, { table: name })
      .then(() => { setRefused(null); setTable(""); return lookAgain(); })
      .catch((error: unknown) => setRefused(refusalOf(error)));
  return (
    <section class="sheet">
      <h2>Tables</h2>
      {source.tables.map((one) => (
        <article class="table" key={one.name}>
          <h3>{one.name} <Pill state={one.state} /></h3>
          {one.state === "halted" && <p>{one.message} {one.remedy} <button type="button" onClick={() => follow(one.name)}>Read it anew</button></p>}
          <p class="about">{one.columns.map(({ name, type, primary_key }) => `${name} ${type}${primary_key ? " (key)" : ""}`).join(", ")}{one.partitions > 0 && `; ${one.partitions} partitions`}{!one.row_image && "; no copy of its rows"}</p>
        </article>
      ))}
      {source.connector === "postgres" && (
        <form class="toolbar" onSubmit={(event) => { event.preventDefault(); void follow(table); }}>
          <label class="field"><span>Follow one more table</span><input value={table} placeholder="public.orders" spellcheck={false} onInput={(event) => setTable(event.currentTarget.value)} /></label>
          <button disabled={!table.trim()}>Follow</button>
        </form>
      )}
      {refused && <Refused problem={refused} />}
    </section>
  );
}
