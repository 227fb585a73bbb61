// What the aggregate is, and how to ask the same elsewhere.
import type { Description } from "../model/api";
import { asSql, inLines, ofTheTable } from "../model/as_sql";
import { href } from "../model/place";
import { type View, curl } from "../model/view";
import { Statement } from "./copy";

export function DefinitionPanel({ of, view }: { of: Description; view: View }) {
  const sql = asSql(of, view);
  const explain = href(["explain"], ofTheTable(of, view));
  return (
    <section class="definition" aria-labelledby="definition">
      <h2 id="definition">Elsewhere</h2>
      <div class="pair">
        <div><h3>The same with curl</h3><Statement text={curl(of, view)} label="Copy curl" /></div>
        {sql && <div class="same-sql"><h3>The same in Postgres</h3><Statement text={sql} label="Copy SQL" /></div>}
      </div>
      <p><a href={explain}>Explain this question</a></p>
      <h2>Definition</h2>
      {of.warnings.map((warning) => <p class="remark" key={warning.code}>{warning.message}</p>)}
      <Statement text={inLines(of.sql)} />
      <p class="about">Version {of.version} {of.state === "live" ? "answers" : `is ${of.state}`}{of.next ? `; version ${of.next.version} is ${of.next.state}` : ""}. <a href={href(["register"], { from: of.name })}>Change it</a>: the next version is built beside this one and takes its place when it is filled.</p>
    </section>
  );
}
