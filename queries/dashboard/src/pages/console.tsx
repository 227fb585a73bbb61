// The query console, which is loaded when somebody comes here: a body of POST /v1/query, and its answer.
import { useEffect, useState } from "preact/hooks";

import { type Answer, type Column, type Description, type Problem, type Row, aggregatePath, ask, refusalOf, send } from "../model/api";
import { instant } from "../model/bucket";
import { shown } from "../model/exact";
import { aggregates, source } from "../model/upstream";
import { currenciesOf } from "../model/view";
import { Copy } from "../parts/copy";
import { Refused } from "../parts/trouble";
import { Single } from "../parts/values";

export default function Console() {
  const [text, setText] = useState<string | null>(null);
  const [answers, setAnswers] = useState<(Answer | { problem: Problem })[] | null>(null);
  const [refused, setRefused] = useState<Problem | null>(null);
  const [took, setTook] = useState(0);
  const samples = useExamples();
  const body = text ?? samples[0]?.[1] ?? "";
  const run = async (asked = body) => {
    const began = performance.now();
    try {
      const found = await send<Answer | { answers: (Answer | { problem: Problem })[] }>("POST", "/v1/query", asked);
      setAnswers("answers" in found ? found.answers : [found]);
      setRefused(null);
    } catch (error) {
      setRefused(refusalOf(error));
      setAnswers(null);
    }
    setTook(performance.now() - began);
  };
  // Something to look at, as soon as it is known what there is.
  useEffect(() => { if (samples.length) void run(); }, [samples.length > 0]);
  return (
    <>
      <h1>Query</h1>
      <section class="sheet console">
        <div class="heading"><h2 id="body">Body of POST /v1/query</h2><span class="actions">{samples.map(([name, sample]) => <button type="button" class="quiet" key={name} onClick={() => { setText(sample); void run(sample); }}>{name}</button>)}</span></div>
        <textarea aria-labelledby="body" rows={Math.min(22, body.split("\n").length + 1)} spellcheck={false} value={body} onInput={(event) => setText(event.currentTarget.value)}
          onKeyDown={(event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) void run(); }} />
        <div class="actions"><button type="button" class="main" onClick={() => run()}>Run</button> <span class="about"><kbd>Ctrl</kbd> <kbd>Enter</kbd></span> <Copy label="Copy curl" text={`curl -X POST ${location.origin}/v1/query -H 'Content-Type: application/json' -d '${body.replaceAll("'", "'\\''")}'`} /></div>
      </section>
      {refused && <Refused problem={refused} />}
      {answers?.map((answer, at) => ("problem" in answer ? <Refused key={at} problem={answer.problem} /> : <Answered key={at} answer={answer} took={took} />))}
    </>
  );
}

function Answered({ answer, took }: { answer: Answer; took: number }) {
  if (!Array.isArray(answer.data)) return <pre class="sheet" tabIndex={0}>{JSON.stringify(answer, null, 1)}</pre>;
  const columns = answer.columns;
  return (
    <div class="scroll" tabIndex={0} role="region" aria-label="Answer">
      <table class="rows">
        <caption>{answer.aggregate} <span>as of <code>{answer.as_of.lsn}</code>, {shown(answer.data.length)} rows from {shown(answer.stats.cells_read)} cells, {shown(Math.round(took))} ms with the network</span></caption>
        <thead><tr>{columns.map(({ name, role }) => <th key={name} scope="col" class={role === "measure" ? "number" : undefined}>{name}</th>)}</tr></thead>
        <tbody>
          {answer.data.slice(0, 500).map((row, at) => (
            <tr key={at}>{columns.map((column) => <td key={column.name} class={column.role === "measure" ? "number" : undefined}>{cell(column, row)}</td>)}</tr>
          ))}
        </tbody>
      </table>
    </div>
  );
}

function cell({ name, role }: Column, row: Row) {
  if (role === "measure") return shown(row[name]);
  if (role === "time" && row[name]) return instant(String(row[name]));
  // The others have no value of their own, which is not NULL.
  return role === "dimension" && row["others"] === true ? "" : <Single of={row[name]} />;
}

/** Questions to an aggregate that there is. */
function useExamples(): [string, string][] {
  const name = (aggregates.value?.find(({ levels }) => levels[0] !== "all") ?? aggregates.value?.[0])?.name;
  const [of, setOf] = useState<Description | null>(null);
  useEffect(() => { if (name) ask<Description>(aggregatePath(name)).then(setOf, () => setOf(null)); }, [name]);
  return of ? examples(of) : [];
}

function examples(of: Description): [string, string][] {
  const aggregate = of.name;
  const { measures, dimensions = [] } = of.definition;
  const currencies = currenciesOf(of);
  const group_by = currencies.length ? currencies : dimensions.slice(0, 1);
  const text = (body: unknown) => JSON.stringify(body, null, 2);
  const year = String(new Date().getFullYear());
  // Others would be of different currencies together.
  const top = { aggregate, granularity: "all", group_by: dimensions, order: [`-${measures.at(-1)?.name}`], limit: 10, ...(currencies.length ? {} : { others: true }) };
  const table = source.value?.tables[0]?.name;
  return [
    ["By year", text({ aggregate, granularity: "year", group_by })],
    ["Largest ten", text(top)],
    ["At one position", text({ queries: [{ aggregate, granularity: "month", from: year, group_by }, top] })],
    ...(table ? [["Of the table", text({ table, measures: ["count(*)"], granularity: "year", explain: "analyze" })] as [string, string]] : []),
  ];
}
