// A reader whose token sees a part of one aggregate: that part, and no word of the source.
import assert from "node:assert/strict";

import { nothingWrong, open, step } from "./browser.mjs";

const { browser, page, visit } = await open();
page.on("dialog", (dialog) => dialog.accept(process.env.TOKEN));

step("the list is there");
await visit();
await page.getByRole("heading", { name: "monthly" }).waitFor();
await page.locator(".card .glance td.figure").first().waitFor();
assert.equal(await page.getByRole("alert").count(), 0);

step("and no state of the source");
const header = await page.locator("header .status").innerText();
assert.ok(!header.includes("reconnecting"), header);
assert.equal(await page.locator("dl.vitals").count(), 0);
await visit("#/sources");
await page.getByText("nothing is told of the source").waitFor();

step("its part is shown");
await visit("#/aggregates/monthly");
await page.locator(".totals tbody tr").first().waitFor();

// The source is asked for each time: another token may be given.
nothingWrong([/^console: Failed to load resource: the server responded with a status of (401|403)/]);
await browser.close();
step("done");
process.exit(0);
