// What is wrong, and what repairs it.
import type { Problem } from "../model/api";
import { Statement } from "./copy";

/** A refusal of the server, in its words. */
export function Refused({ problem }: { problem: Problem }) {
  const parts = (problem.errors ?? []).filter(({ detail, excerpt }) => (detail && !problem.detail.endsWith(detail)) || excerpt);
  return (
    <div class="trouble" role="alert">
      <p><strong>{problem.detail}</strong> <code>{problem.code}</code></p>
      {problem.hint && <p>{problem.hint}</p>}
      {parts.map((part, at) => (
        <div key={at}>
          <p>{part.pointer ?? part.parameter ? <code>{part.pointer ?? part.parameter}</code> : null} {part.detail}</p>
          {part.excerpt && <pre>{part.excerpt}</pre>}
        </div>
      ))}
    </div>
  );
}

/** Something that somebody has to do; `remedy` is to be pasted where it is a statement. */
export function ToDo({ what, message, remedy, tone = "bad" }: { what: string; message: string; remedy?: string; tone?: "bad" | "warn" }) {
  return (
    <article class={`todo ${tone}`}>
      <h3>{what}</h3>
      <p>{message}</p>
      {remedy && (isStatement(remedy) ? <Statement text={remedy} /> : <p>{remedy}</p>)}
    </article>
  );
}

const isStatement = (text: string) => /^(ALTER|CREATE|DROP|GRANT|SELECT|UPDATE|SET|VACUUM|REVOKE|DELETE|POST|PUT|curl)\b/.test(text);
