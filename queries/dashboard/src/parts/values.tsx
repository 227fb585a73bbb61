// Values of dimensions as they are read. SQL's NULL is not the text NULL: it neither looks nor sounds like it.
import type { Value } from "../model/exact";
import type { Fixed } from "../model/view";

export function Single({ of }: { of: Value }) {
  return of === null || of === undefined ? <i>NULL<span class="unseen"> of SQL</span></i> : <>{String(of)}</>;
}

export function Values({ of }: { of: Fixed[] }) {
  return <>{of.map(([name, value], at) => <span key={name}>{at > 0 && " \u00b7 "}<Single of={value} /></span>)}</>;
}

/** The same as text, for names that are only spoken. */
export const spoken = (of: Fixed[]) => of.map(([, value]) => value ?? "NULL of SQL").join(" \u00b7 ");
