// Where the reader is: the URL's fragment, so that every view has an address, Back works, and the server needs no routes
// for pages. `#/aggregates/daily?by=month` is a path and its parameters.
import { signal } from "@preact/signals";

export interface Place {
  path: string[];
  query: URLSearchParams;
}

function current(): Place {
  const [path = "", query = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { path: path.split("/").filter(Boolean).map(decoded), query: new URLSearchParams(query) };
}

/** As it stands, where somebody typed what no link of ours would be. */
function decoded(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    return part;
  }
}

export const place = signal<Place>(current());

addEventListener("hashchange", () => {
  place.value = current();
});

export function href(path: string[], query: Record<string, string | undefined> = {}): string {
  const given = Object.entries(query).filter((entry): entry is [string, string] => entry[1] !== undefined);
  const parameters = new URLSearchParams(given).toString();
  return `#/${path.map(encodeURIComponent).join("/")}${parameters ? `?${parameters}` : ""}`;
}

/** Goes there as a link would. */
export function go(address: string): void {
  location.hash = address;
}
