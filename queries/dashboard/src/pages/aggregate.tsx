// One aggregate: its totals as they move, and the way from years down to the rows. Everything that is chosen is in the
// address.
import { useEffect, useState } from "preact/hooks";

import { type Description, type Problem, aggregatePath, ask, refusalOf } from "../model/api";
import { place } from "../model/place";
import { aggregates } from "../model/upstream";
import { viewOf } from "../model/view";
import { Behind } from "../parts/behind";
import { DefinitionPanel } from "../parts/definition";
import { Filling } from "../parts/filling";
import { Pill } from "../parts/pill";
import { Crumbs, Toolbar } from "../parts/toolbar";
import { Totals } from "../parts/totals";
import { Refused, ToDo } from "../parts/trouble";

export function AggregatePage({ name }: { name: string }) {
  const { of, refused, again } = useDescription(name);
  if (refused) return <><h1>{name}</h1><Refused problem={refused} /></>;
  if (!of || of.name !== name) return <h1>{name}</h1>;
  const view = viewOf(of, place.value.query);
  const building = of.state === "building" || of.next !== undefined;
  return (
    <>
      <div class="heading">
        <h1>{of.name} <Pill state={of.state} /></h1>
        <span class="about">version {of.version}{of.definition.where && <>, where <code>{of.definition.where}</code></>}</span>
      </div>
      {of.halted && <ToDo what="Halted" message={of.halted.message} remedy={of.halted.remedy} />}
      {building && <Filling name={name} onMore={again} />}
      {(of.state === "live" || of.progress?.covered_from) && (
        <>
          <Crumbs of={of} view={view} />
          <Toolbar of={of} view={view} />
          {view.rows ? <Behind of={of} view={view} /> : <Totals key={of.version} of={of} view={view} />}
        </>
      )}
      <DefinitionPanel of={of} view={view} />
    </>
  );
}

/** The description, looked at again when the list says that something about it changed. */
function useDescription(name: string) {
  const [of, setOf] = useState<Description | null>(null);
  const [refused, setRefused] = useState<Problem | null>(null);
  const [times, setTimes] = useState(0);
  const listed = aggregates.value?.find((one) => one.name === name);
  useEffect(() => {
    let stopped = false;
    ask<Description>(aggregatePath(name))
      .then((found) => { if (!stopped) { setOf(found); setRefused(null); } })
      .catch((error: unknown) => { if (!stopped) setRefused(refusalOf(error)); });
    return () => { stopped = true; };
  }, [name, listed, times]);
  return { of, refused, again: () => setTimes(times + 1) };
}
