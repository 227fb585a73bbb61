import type { Problem } from "./answer.js";
import { ForeignAnswer } from "./foreign_answer.js";

/** The server's refusal, with what it says: a stable `code`, a `detail` for people, often a `hint`. */
export class Refused extends Error {
  constructor(readonly problem: Problem) {
    super(problem.hint ? `${problem.detail} (${problem.hint})` : problem.detail);
    this.name = "Refused";
  }

  get code(): string {
    return this.problem.code;
  }

  /** Whether the same question may be answered later. */
  get passes(): boolean {
    return this.problem.status === 429 || this.problem.status === 503 || this.code === "not_covered";
  }
}

/** What is thrown of a body. A proxy refuses as well, and in JSON too. */
export function refusal(status: number, body: unknown): Refused | ForeignAnswer {
  const told = typeof body === "object" && body !== null && "code" in body && "detail" in body && "status" in body;
  return told ? new Refused(body as Problem) : new ForeignAnswer(status);
}
