// A reader registers an aggregate in the form, sees it fill, and looks at it from every page.
import assert from "node:assert/strict";

import { accessible, fits, nothingWrong, open, sql, step, until } from "./browser.mjs";

const { browser, page, visit } = await open();

step("nothing is registered yet");
await visit();
await page.getByText("No aggregate is registered yet").waitFor();
await page.keyboard.press("g");
await page.keyboard.press("r");

step("the form and its SQL");
const statement = page.getByRole("textbox", { name: "The same in SQL" });
await until("the SQL of the form", async () => (await statement.inputValue()).includes("sum(amount) AS amount"));
await page.getByRole("textbox", { name: "Name", exact: true }).fill("by_month");
await page.getByRole("checkbox", { name: "merchant" }).check();
await page.getByRole("checkbox", { name: "Keep an index" }).check();
await until("the form in SQL", async () => /^CREATE MATERIALIZED VIEW by_month[^]*drill_through[^]*merchant/.test(await statement.inputValue()));
await page.getByText("Cells").first().waitFor();
await accessible(page, "register");

step("a mistake in the SQL is shown where it is");
const good = await statement.inputValue();
await statement.fill(good.replace("sum(amount)", "sum(amont)"));
await page.getByRole("alert").getByText("amont").first().waitFor();
assert.ok(await page.getByRole("button", { name: "Create" }).isDisabled());

step("SQL changes the form");
await statement.fill(good.replace("rollups = 'month,year'", "rollups = 'year'"));
await until("the form follows", async () => !(await page.getByRole("checkbox", { name: "month" }).isChecked()));
await page.getByRole("checkbox", { name: "month" }).check();
await until("and leads again", async () => (await statement.inputValue()).includes("rollups = 'year,month'") || (await statement.inputValue()).includes("rollups = 'month,year'"));

step("create, and fill");
await page.getByRole("button", { name: "Create" }).click();
await page.getByRole("heading", { name: "by_month" }).waitFor();
await page.locator(".totals tbody tr").first().waitFor();
await until("live", async () => (await page.getByRole("heading", { name: "by_month" }).innerText()).includes("live"));
const shown = (await page.locator(".totals tfoot td").first().innerText()).replaceAll(",", "");
assert.equal(shown, await sql("SELECT sum(amount)::text FROM payments WHERE currency = 'EUR'"));

step("groups, the largest and the others");
await page.getByRole("combobox", { name: "Group by" }).selectOption("merchant");
await page.locator(".legend", { hasText: "others" }).first().waitFor();
const parts = await page.locator(".legend").first().locator("tr td:nth-child(2)").allInnerTexts();
const cents = (text) => BigInt(text.replaceAll(",", "").replace(".", "").replace("\u2212", "-"));
const whole = await sql("SELECT (sum(amount) * 100)::bigint::text FROM payments WHERE currency = 'EUR'");
assert.equal(parts.map(cents).reduce((all, one) => all + one, 0n), BigInt(whole), "the groups and the others are the whole");

step("compared with the year before");
await page.getByRole("combobox", { name: "Group by" }).selectOption("");
await page.getByRole("combobox", { name: "Compare with" }).selectOption("P1Y");
await page.getByRole("columnheader", { name: "change" }).first().waitFor();
await accessible(page, "compared");

step("explained");
await page.getByRole("link", { name: "Explain this question" }).click();
await page.getByRole("heading", { name: "Answered by by_month" }).waitFor();
await accessible(page, "explain");
await page.getByRole("textbox", { name: "Filter" }).fill("id > 5");
await page.getByRole("button", { name: "Explain" }).click();
await page.getByRole("link", { name: "Register it" }).waitFor();

step("found by the keyboard");
await page.getByRole("heading", { name: "What would answer" }).click();
await page.keyboard.press("/");
await page.keyboard.type("by_m");
await page.keyboard.press("Enter");
await page.getByRole("heading", { name: "by_month" }).waitFor();

step("sources, and the console");
await page.getByRole("link", { name: "Sources" }).click();
await page.getByRole("heading", { name: "Positions" }).waitFor();
await accessible(page, "sources");
await page.getByRole("link", { name: "Query" }).click();
await page.locator(".rows tbody tr").first().waitFor();
await accessible(page, "console");

step("a telephone, in the dark");
await page.setViewportSize({ width: 390, height: 844 });
await page.emulateMedia({ colorScheme: "dark" });
for (const hash of ["#/register", "#/explain?table=public.payments&measures=count(*)&granularity=month", "#/sources", "#/console"]) {
  await visit(hash);
  await page.locator("textarea, .facts, .rows").first().waitFor();
  await fits(page, hash);
  await accessible(page, hash);
}

// The refusals that were asked for are told to the console by the browser itself.
nothingWrong([/^console: Failed to load resource: the server responded with a status of 422/]);
await browser.close();
step("done");
process.exit(0);
