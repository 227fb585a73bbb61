// What is around every page: the name, where to go, how fresh the numbers are, dark or light, and the keyboard.
import type { ComponentChildren } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";

import { go, href, place } from "../model/place";
import { choice } from "../model/scheme";
import { aggregates, lagOf, source, unreachable } from "../model/upstream";
import { shown } from "../model/exact";
import { Pill } from "./pill";

export const PAGES: { path: string; name: string; key: string }[] = [
  { path: "", name: "Overview", key: "o" },
  { path: "register", name: "Register", key: "r" },
  { path: "explain", name: "Explain", key: "e" },
  { path: "sources", name: "Sources", key: "s" },
  { path: "console", name: "Query", key: "q" },
];

export function Shell({ children }: { children: ComponentChildren }) {
  const at = place.value.path[0] ?? "";
  return (
    <>
      <a class="skip" href="#main" onClick={(event) => { event.preventDefault(); document.getElementById("main")?.focus(); }}>Skip to the numbers</a>
      <header class="top">
        <a class="mark" href={href([])}><Mark />Tidemark</a>
        <nav aria-label="Pages">
          {PAGES.map(({ path, name, key }) => (
            <a key={path} href={href(path ? [path] : [])} title={`g ${key}`} aria-current={at === path || (path === "" && at === "aggregates") ? "page" : undefined}>{name}</a>
          ))}
        </nav>
        <div class="status"><Freshness /><Scheme /></div>
      </header>
      <main id="main" tabIndex={-1}>{children}</main>
      <footer>
        <a href="/docs">API</a> <a href="/openapi.json">OpenAPI</a> <a href="/metrics">Metrics</a> <a href="/assets/licences.md">Licences</a>
        <span class="keys"><kbd>/</kbd> find an aggregate, <kbd>g</kbd> then {PAGES.map(({ key }) => <kbd key={key}>{key}</kbd>)} pages</span>
      </footer>
      <Finder />
    </>
  );
}

function Mark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <rect width="32" height="32" rx="7" class="mark-ground" />
      <path d="M6 21c3.3-3 6.7-3 10 0s6.7 3 10 0" class="mark-wave" />
      <path d="M6 14h20" class="mark-line" />
    </svg>
  );
}

function Freshness() {
  if (unreachable.value) return <span class="fresh"><Pill state="reconnecting" /></span>;
  const one = source.value;
  if (!one) return <span class="fresh" />;
  return (
    <span class="fresh" title="The newest position that answers show, and how far it is behind upstream">
      <Pill state={one.state} /> {one.ready && <><code>{one.applied_lsn}</code> <span class="lag">{shown(lagOf(one))} ms</span></>}
    </span>
  );
}

function Scheme() {
  const next = { system: "dark", dark: "light", light: "system" } as const;
  return (
    <button type="button" class="quiet scheme" onClick={() => { choice.value = next[choice.value]; }} aria-label={`Colours: ${choice.value}`} title={`Colours: ${choice.value}`}>
      {{ system: "\u25D0", dark: "\u25CF", light: "\u25CB" }[choice.value]}
    </button>
  );
}

/** `/` finds an aggregate by a part of its name, `g` and a letter goes to a page. */
function Finder() {
  const [text, setText] = useState("");
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    let after = "";
    const press = (event: KeyboardEvent) => {
      const target = event.target as HTMLElement;
      if (event.ctrlKey || event.metaKey || event.altKey || target.closest("input, select, textarea, dialog")) return;
      const page = after === "g" ? PAGES.find(({ key }) => key === event.key) : undefined;
      if (page) go(href(page.path ? [page.path] : []));
      after = event.key;
      if (event.key === "/") {
        event.preventDefault();
        // At once: the next letter belongs to it already.
        dialog.current?.showModal();
      }
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  }, []);
  const found = (aggregates.value ?? []).filter(({ name }) => name.includes(text));
  const choose = (name: string) => {
    dialog.current?.close();
    go(href(["aggregates", name]));
  };
  return (
    <dialog ref={dialog} onClose={() => setText("")} aria-label="Find an aggregate">
      <form onSubmit={(event) => { event.preventDefault(); if (found[0]) choose(found[0].name); }}>
        <input aria-label="A part of its name" placeholder="Find an aggregate" value={text} onInput={(event) => setText(event.currentTarget.value)} />
      </form>
      <ul>
        {found.slice(0, 12).map(({ name, table }) => (
          <li key={name}><a href={href(["aggregates", name])} onClick={() => dialog.current?.close()}>{name} <span>{table}</span></a></li>
        ))}
      </ul>
    </dialog>
  );
}
