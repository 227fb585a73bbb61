import type { Problem } from "./answer.js";
import { ForeignAnswer } from "./foreign_answer.js";

// What ends by itself, of all that a server refuses with 503 (and 409): docs/problems.md. What is halted has the status too, and stays.
const PASSING: ReadonlySet<string> = new Set(
  `starting connecting snapshotting checking_store catching_up building not_covered table_joining source_busy stopping
  overloaded timeout not_yet_visible cannot_connect transactions_open position_missed`.split(/\s+/),
);

/** The server's refusal, with what it says: a stable `code`, a `detail` for people, often a `hint`. */
export class Refused extends Error {
  constructor(readonly problem: Problem) {
    super(problem.hint ? `${problem.detail} (${problem.hint})` : problem.detail);
    this.name = "Refused";
  }

  get code(): string {
    return this.problem.code;
  }

  /** Whether the same question is answered later without anybody's doing. */
  get passes(): boolean {
    return this.problem.status === 429 || PASSING.has(this.code);
  }
}

/** What is thrown of a body. A proxy refuses as well, and in JSON too. */
export function refusal(status: number, body: unknown): Refused | ForeignAnswer {
  const told = typeof body === "object" && body !== null && "code" in body && "detail" in body && "status" in body;
  return told ? new Refused(body as Problem) : new ForeignAnswer(status);
}
