import type { Problem } from "./answer.js";

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
