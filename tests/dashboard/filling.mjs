// A reader looks at an aggregate that is half filled and held: what is there, the rest refused, going on, giving up.
import assert from "node:assert/strict";

import { accessible, nothingWrong, open, sql, step, until } from "./browser.mjs";

const { browser, page, visit } = await open();
const filling = page.getByRole("region", { name: "Filling" });

step("held, and what it answers is shown");
await visit("#/aggregates/late?by=month");
await filling.getByText("Paused version 1").waitFor();
const from = await filling.locator("code").innerText();
const month = await sql(`SELECT to_char(date_trunc('month', '${from}'::timestamptz AT TIME ZONE 'UTC') + interval '1 month', 'YYYY-MM-DD')`);
await visit(`#/aggregates/late?by=month&measure=amount&from=${month}`);
await page.locator(".totals tfoot td").first().waitFor();
const shown = (await page.locator(".totals tfoot td").first().innerText()).replaceAll(",", "");
assert.equal(shown, await sql(`SELECT sum(amount)::text FROM payments WHERE at >= '${month} UTC'`));
await accessible(page, "half filled");

step("the rest is refused, with what there is");
await visit("#/aggregates/late?by=month&from=2022");
await page.getByRole("alert").getByText(/2022|filled/).first().waitFor();

step("it goes on");
await filling.getByRole("button", { name: "Resume" }).click();
await until("filled", async () => (await page.getByRole("heading", { name: "late" }).innerText()).includes("live"));
await filling.waitFor({ state: "detached" });
await page.locator(".totals tbody tr").first().waitFor();

step("built anew, held, and given up");
const act = (action, method = "POST") => page.evaluate(async ([action, method]) => {
  const definition = { table: "payments", measures: [{ name: "n", count: "*" }], dimensions: ["acct"], time: { column: "at", granularity: "day" } };
  const path = "/v1/aggregates/late" + action;
  const response = await fetch(path, { method, headers: { "Content-Type": "application/json" }, body: method === "PUT" ? JSON.stringify(definition) : undefined });
  return response.status;
}, [action, method]);
assert.equal(await act("?on_change=rebuild", "PUT"), 202);
assert.equal(await act("/backfill:pause"), 200);
await page.reload();
await filling.getByText("Paused version 2").waitFor();
await page.locator(".totals tbody tr").first().waitFor();
await filling.getByRole("button", { name: "Cancel" }).click();
await filling.waitFor({ state: "detached" });
await page.locator(".totals tbody tr").first().waitFor();
await page.getByText("Version 1 answers").waitFor();

step("a first version that is given up is gone");
assert.equal(await act("", "DELETE"), 204);
assert.equal(await act("", "PUT"), 202);
assert.equal(await act("/backfill:pause"), 200);
await visit("#/");
await visit("#/aggregates/late");
await filling.getByText("Paused version 1").waitFor();
await filling.getByRole("button", { name: "Cancel" }).click();
await page.getByRole("heading", { name: "Aggregates" }).waitFor();

// What was asked for too early, or after it was gone, is told to the console by the browser itself.
nothingWrong([/^console: Failed to load resource: the server responded with a status of (404|409|503)/]);
await browser.close();
step("done");
process.exit(0);
