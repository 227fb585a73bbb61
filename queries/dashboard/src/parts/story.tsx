// The demo's story, shown where the page is served by `tidemark demo` only: something happens in Postgres, and the total
// before and after it is held against Postgres' own GROUP BY at the same position.
import { useState } from "preact/hooks";

import { type Problem, refusalOf, send } from "../model/api";
import { label } from "../model/bucket";
import { difference } from "../model/panels";
import { shown, signed } from "../model/exact";
import { href } from "../model/place";
import { Refused } from "./trouble";

interface Moment {
  lsn: string;
  total: string;
  postgres: string;
}

interface Told {
  statement: string;
  aggregate: string;
  currency: string;
  month: string;
  before: Moment;
  after: Moment;
  equal: boolean;
}

const STEPS: { name: string; title: string; about: string }[] = [
  { name: "refund", title: "A refund arrives", about: "A negative payment in this month." },
  { name: "correction", title: "A closed month is corrected", about: "A payment of three months ago turns out to be 10.00 more." },
  { name: "kill", title: "Kill the database", about: "Postgres is stopped as by a power cut, and comes back." },
];

export function Story() {
  const [told, setTold] = useState<{ step: string; told: Told } | null>(null);
  const [refused, setRefused] = useState<Problem | null>(null);
  const [busy, setBusy] = useState("");
  if (document.documentElement.dataset["mode"] !== "demo") return null;
  const run = async (step: string) => {
    setBusy(step);
    setRefused(null);
    try {
      setTold({ step, told: await send<Told>("POST", `/demo/steps/${step}`) });
    } catch (error) {
      setRefused(refusalOf(error));
    } finally {
      setBusy("");
    }
  };
  return (
    <section class="sheet story" aria-labelledby="story">
      <h2 id="story">Try what exact means</h2>
      <div class="steps">
        {STEPS.map(({ name, title, about }) => (
          <div key={name}>
            <button type="button" disabled={busy !== ""} aria-busy={busy === name} onClick={() => run(name)}>{title}</button>
            <p class="about">{busy === name ? "\u2026" : about}</p>
          </div>
        ))}
      </div>
      {refused && <Refused problem={refused} />}
      {told && <Outcome {...told} />}
    </section>
  );
}

function Outcome({ step, told }: { step: string; told: Told }) {
  const { before, after } = told;
  const change = difference(after.total, before.total);
  const row = (name: string, moment: Moment) => (
    <tr>
      <th scope="row">{name}</th>
      <td><code>{moment.lsn}</code></td>
      <td>{shown(moment.total)}</td>
      <td>{shown(moment.postgres)}</td>
    </tr>
  );
  return (
    <div class="outcome" role="status">
      <pre tabIndex={0}>{told.statement}</pre>
      <div class="scroll flat" tabIndex={0} role="region" aria-label="Before and after">
        <table class="totals">
          <caption>{told.currency}, {label(`${told.month}-01T00:00:00Z`, "month")} <span>{told.aggregate}</span></caption>
          <thead><tr><th scope="col" /><th scope="col">at</th><th scope="col">Tidemark</th><th scope="col">Postgres, GROUP BY</th></tr></thead>
          <tbody>{row("before", before)}{row("after", after)}</tbody>
        </table>
      </div>
      <p class={told.equal ? "verdict equal" : "verdict"}>
        {told.equal ? "Equal to Postgres' own GROUP BY, to the last digit" : "Not equal: this is a bug, please report it"}
        {change && <>; {step === "kill" ? "moved by what other sessions committed meanwhile:" : "moved by"} <strong>{signed(change)}</strong></>}.{" "}
        <a href={href(["aggregates", told.aggregate], { by: "month" })}>Look at it</a>
      </p>
    </div>
  );
}
