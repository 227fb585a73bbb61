// A state in a word and a colour; the colour never says it alone.

const TONES: Record<string, string> = {
  live: "good", ok: "good", done: "good",
  building: "busy", snapshotting: "busy", catching_up: "busy", preflight: "busy", creating_slot: "busy", reading: "busy", starting: "busy",
  paused: "busy", reconnecting: "bad", halted: "bad", failed: "bad", warning: "warn",
};

export function Pill({ state }: { state: string }) {
  return <span class={`pill ${TONES[state] ?? "busy"}`}>{state.replaceAll("_", " ")}</span>;
}
