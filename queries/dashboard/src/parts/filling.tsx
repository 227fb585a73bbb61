// How far a version is filled, and what can be done about it.
import { useEffect, useState } from "preact/hooks";

import { type Backfill, type Problem, aggregatePath, ask, refusalOf, send } from "../model/api";
import { shown } from "../model/exact";
import { go, href } from "../model/place";
import { lookAgain } from "../model/upstream";
import { Refused } from "./trouble";

const EVERY_MS = 400;

/** `onMore`: it answers more than before. */
export function Filling({ name, onMore }: { name: string; onMore: () => void }) {
  const [filling, setFilling] = useState<Backfill | null>(null);
  const [refused, setRefused] = useState<Problem | null>(null);
  const path = `${aggregatePath(name)}/backfill`;
  useEffect(() => {
    let stopped = false;
    let covered: string | null | undefined;
    const look = async () => {
      while (!stopped) {
        const now = await ask<Backfill>(path).catch(() => null);
        if (stopped) return;
        if (now) setFilling(now);
        if (now?.phase === "done") return void lookAgain().then(onMore);
        if (now?.progress && now.progress.covered_from !== covered) onMore();
        covered = now?.progress?.covered_from ?? covered;
        await new Promise((resume) => setTimeout(resume, EVERY_MS));
      }
    };
    void look();
    return () => { stopped = true; };
  }, [name]);
  const act = (action: string) =>
    send<Backfill | undefined>("POST", `${path}:${action}`)
      .then(async (now) => {
        if (now && "phase" in now) setFilling(now);
        setRefused(null);
        await lookAgain();
        // A first version that is given up is gone; before a next one stands another.
        if (action === "cancel") filling?.version === 1 ? go(href([])) : onMore();
      })
      .catch((error: unknown) => setRefused(refusalOf(error)));
  if (!filling || filling.phase === "done") return null;
  const { progress, phase } = filling;
  const part = progress?.fraction ?? 0;
  return (
    <section class="filling" aria-label="Filling">
      <div class="heading">
        <h2>{phase === "paused" ? "Paused" : phase === "halted" ? "Halted" : "Filling"} version {filling.version}</h2>
        <span class="actions">
          {phase === "paused" ? <button type="button" onClick={() => act("resume")}>Resume</button> : <button type="button" onClick={() => act("pause")}>Pause</button>}
          <button type="button" onClick={() => act("cancel")}>Cancel</button>
        </span>
      </div>
      <progress max={1} value={part} aria-label="Filled" />
      {progress && (
        <p class="about">
          {shown(progress.rows_done)} of about {shown(progress.rows_estimated)} rows, {shown(Math.round(progress.rows_per_second))} a second
          {typeof progress.eta_seconds === "number" && phase === "building" && <>, about {shown(Math.ceil(progress.eta_seconds))} s left</>}
          {progress.covered_from && <>; answers from <code>{progress.covered_from}</code> on</>}
        </p>
      )}
      {filling.error && <p>{filling.error.message} {filling.error.remedy}</p>}
      {refused && <Refused problem={refused} />}
    </section>
  );
}
