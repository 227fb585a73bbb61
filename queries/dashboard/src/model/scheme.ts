// Dark or light: what the system says, unless the reader chose. Charts draw with colours of the moment, so they listen.
import { effect, signal } from "@preact/signals";

export type Choice = "system" | "light" | "dark";

const system = matchMedia("(prefers-color-scheme: dark)");
const systemDark = signal(system.matches);
system.addEventListener("change", () => {
  systemDark.value = system.matches;
});

/** Browsers may keep storage from us: then the choice lasts as long as the page. */
function storage(use: (kept: Storage) => string | null | void): string | null {
  try {
    return use(localStorage) ?? null;
  } catch {
    return null;
  }
}

const kept = storage((kept) => kept.getItem("scheme"));
export const choice = signal<Choice>(kept === "light" || kept === "dark" ? kept : "system");
export const scheme = signal<"light" | "dark">("light");

effect(() => {
  scheme.value = choice.value === "system" ? (systemDark.value ? "dark" : "light") : choice.value;
  document.documentElement.dataset["scheme"] = scheme.value;
  const chosen = choice.value;
  storage((kept) => kept.setItem("scheme", chosen));
});
