// The page begins here: its frame, and what the address names.
import { type ComponentType, render } from "preact";
import { useEffect, useState } from "preact/hooks";

import "./style/page.css";
import { place } from "./model/place";
import { follow } from "./model/upstream";
import { AggregatePage } from "./pages/aggregate";
import { Explain } from "./pages/explain";
import { Overview } from "./pages/overview";
import { Register } from "./pages/register";
import { Sources } from "./pages/sources";
import { Shell } from "./parts/shell";

function Page() {
  const [page, name] = place.value.path;
  document.title = [name ?? page, "Tidemark"].filter(Boolean).join(" \u00b7 ");
  if (page === undefined) return <Overview />;
  if (page === "aggregates" && name !== undefined) return <AggregatePage key={name} name={name} />;
  if (page === "register") return <Register key={location.hash} />;
  if (page === "explain") return <Explain />;
  if (page === "sources") return <Sources />;
  if (page === "console") return <Lazy />;
  return <><h1>Nothing here</h1><p>There is no page at <code>{location.hash}</code>. <a href="#/">Overview</a></p></>;
}

/** The query console is fetched when somebody wants it. */
function Lazy() {
  const [found, setFound] = useState<{ Console: ComponentType } | null>(null);
  useEffect(() => {
    void import("./pages/console").then((loaded) => setFound({ Console: loaded.default }));
  }, []);
  return found ? <found.Console /> : <h1>Query</h1>;
}

const root = document.getElementById("app");
if (root) render(<Shell><Page /></Shell>, root);
void follow();
