// The TypeScript client in every scene of `fake.py`: what it yields, and what it throws.
//
//     node scenes.mjs DIST http://127.0.0.1:PORT     what build.sh made, and an address that `fake.py` printed
import { pathToFileURL } from "node:url";

const [, , dist, fake] = process.argv;
const { ForeignAnswer, Refused, Tidemark } = await import(pathToFileURL(`${dist}/src/index.js`).href);

// Nobody waits here for three quarters of a minute.
const timeout = globalThis.setTimeout;
globalThis.setTimeout = (call, ms, ...rest) => timeout(call, ms === 45_000 ? 500 : Math.min(ms, 50), ...rest);
const failed = [];

/** Amounts, and whether there was trouble: so many, or until it throws. */
async function follow(scene, most, question) {
  const base = scene === "nobody" ? "http://127.0.0.1:2" : `${fake}/${scene}`;
  const seen = [];
  const stop = new AbortController();
  const late = timeout(() => (seen.push("nothing comes any more"), stop.abort()), 5000);
  try {
    for await (const { rows, asOf, trouble } of new Tidemark(base, { token: "secret" }).follow("x", question, stop.signal)) {
      seen.push([asOf.lsn, rows.map(({ amount }) => amount).join(" "), Boolean(trouble)]);
      if (seen.length === most) break;
    }
  } catch (failure) {
    seen.push(failure instanceof Refused ? failure.code : failure instanceof ForeignAnswer ? failure.status : failure.name);
  }
  clearTimeout(late);
  return seen;
}

async function scene(name, expected, most = 9, question = {}) {
  const [seen, wanted] = [JSON.stringify(await follow(name, most, question)), JSON.stringify(expected)];
  if (seen !== wanted) failed.push(`${name}: ${seen}, not ${wanted}`);
}

const first = ["0/1", "1.00", false];
const second = ["0/2", "2.00", false];
const troubled = ["0/1", "1.00", true];

await scene("elsewhere", [302]);
const asked = await (await fetch(`${fake}/asked`)).json();
if (asked.some(({ path }) => path.startsWith("/caught"))) failed.push("the address points elsewhere, and that was asked");
await scene("nobody", ["Lost"]);
await scene("forbidden", [403]);
await scene("not_found", [404]);
await scene("bad_gateway", [502]);
await scene("login", [200]);
await scene("empty", ["Lost"]);
await scene("login_later", [first, 200]);
await scene("gateway_later", [first, troubled, first, second], 4);
await scene("halted", [first, "row_image_missing"]);
await scene("ended", [first, "slot_lost"]);
await scene("restarted", [first, troubled, second], 3);
await scene("building", [first], 1);
await scene("resumed", [first, second], 2);
await scene("resync", [first, troubled, second], 3);
await scene("half", [first, ["0/3", "3.00", false]], 2);
await scene("silent", [first, troubled, second], 3);
const largest = "90071992547409931.02 90071992547409931.01 10.00 -2.00 -10.00 ";
await scene(
  "ordered",
  [["0/1", "10.00 9.00", false], ["0/2", "90071992547409931.01 10.00", false], ["0/3", largest, false]],
  3,
  { order: "-amount" },
);

for (const path of ["elsewhere", "forbidden", "login"]) {
  const failure = await new Tidemark(`${fake}/${path}`).data("x").catch((failure) => failure);
  if (failure?.name !== "ForeignAnswer") failed.push(`data of ${path}: ${failure}`);
}
if ((await new Tidemark(`${fake}/forbidden`).drop("x").catch((failure) => failure))?.name !== "ForeignAnswer") failed.push("drop");

// It ends by itself: no connection is left behind.
if (failed.length) console.error(failed.join("\n"));
process.exitCode = failed.length ? 1 : 0;
