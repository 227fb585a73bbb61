// What must not be shown as one: money of different currencies, NULL and the text that is written like it, an hour that
// the clock shows twice, a newest bucket and times that never come. And the SQL beside a view, over clocks without a zone.
import assert from "node:assert/strict";

import { accessible, nothingWrong, open, sql, step, until } from "./browser.mjs";

const { browser, page, visit } = await open();
/** Begins anew, so that nothing of the view before is taken for this one's. */
async function see(hash = "") {
  await visit(hash);
  await page.reload();
}
const plain = (text) => text.replace(/\s+/g, " ").trim();
const texts = async (locator) => (await locator.allInnerTexts()).map(plain);
/** What each panel says in all, by its heading. */
async function panels() {
  await page.locator(".panel header").first().waitFor();
  const said = await texts(page.locator(".panel header"));
  return said.map((text) => text.replaceAll(",", "").split(" in all ")).sort();
}
/** The same of Postgres: a heading and a total from each row. */
const totals = async (statement) => JSON.parse(await sql(`SELECT coalesce(json_agg(json_build_array(name, total::text)), '[]')::text FROM (${statement}) AS totals (name, total)`)).sort();
const pairs = "currency_code || ' · ' || iso_currency";
const named = (column) => `coalesce(${column}, 'NULL of SQL')`;

step("every combination of currencies is by itself");
await see("#/aggregates/charges?by=month&from=all");
assert.deepEqual(await panels(), await totals(`SELECT ${pairs}, sum(amount) FROM fees GROUP BY 1`));
await accessible(page, "several currencies");
await see("#/aggregates/charges?by=all&group=merchant&where=currency_code:EUR");
await page.locator(".legend").first().waitFor();
assert.deepEqual((await panels()).map(([name]) => name), ["GBP", "JPY"]);
for (const [at, currency] of (await texts(page.locator(".panel h2"))).entries()) {
  const shares = await totals(`SELECT merchant, trunc(100 * sum(amount) / sum(sum(amount)) OVER (), 1) || ' %' FROM fees WHERE currency_code = 'EUR' AND iso_currency = '${currency}' GROUP BY 1`);
  const rows = await texts(page.locator(".legend").nth(at).locator("tr"));
  assert.deepEqual(rows.map((row) => [row.split(" ")[0], row.split(" ").slice(2, 4).join(" ")]).sort(), shares, `shares of ${currency}`);
}

step("so on the cards, up to now");
await see();
const card = (name) => page.locator(".card", { has: page.getByRole("link", { name, exact: true }) });
await card("charges").locator(".figure").first().waitFor();
const newest = `SELECT ${pairs}, sum(amount) FROM fees WHERE at >= date_trunc('month', (SELECT max(at) FROM fees), 'UTC') GROUP BY 1`;
const cells = (await card("charges").locator("tbody tr").allInnerTexts()).map((row) => row.replaceAll(",", "").split("\t").slice(0, 2).map(plain));
assert.equal(cells.length, 3);
const right = JSON.stringify(await totals(newest));
for (const cell of cells) assert.ok(right.includes(JSON.stringify(cell)), `${cell} is not of ${right}`);
await until("the newest month that there is", async () => {
  const shown = (await card("odd").locator("tbody tr", { hasText: "EUR" }).locator(".figure").innerText()).replaceAll(",", "");
  const counted = await sql("SELECT coalesce(sum(amount), 0)::text FROM odd WHERE ccy = 'EUR' AND at >= date_trunc('month', now(), 'UTC') AND at <= now()");
  return shown === counted || [shown, counted];
});
await accessible(page, "cards");

step("NULL is no text");
await see("#/aggregates/odd?by=all");
assert.deepEqual(await panels(), await totals(`SELECT ${named("ccy")}, sum(amount) FROM odd GROUP BY 1`));
const groups = "#/aggregates/odd?by=all&group=note&where=ccy:EUR";
await see(groups);
await page.locator(".legend").getByRole("link", { name: "NULL of SQL" }).waitFor();
await accessible(page, "NULL");
const parts = await totals(`SELECT ${named("note")}, sum(amount) FROM odd WHERE ccy = 'EUR' GROUP BY 1`);
for (const [name, part] of parts) {
  await see(groups);
  await page.locator(".legend").getByRole("link", { name, exact: true }).click();
  await page.locator(".chip", { hasText: "note" }).waitFor();
  assert.deepEqual((await panels()).map(([, total]) => total), [part], name);
  await page.reload();
  assert.deepEqual((await panels()).map(([, total]) => total), [part], `${name}, from the address`);
}
await see("#/aggregates/odd?by=all&where=ccy:EUR&where=note:NuLl");
assert.deepEqual(await panels(), [["amount", parts.find(([name]) => name === "NULL of SQL")[1]]]);

step("NULL is compared with NULL");
await see("#/aggregates/odd?by=month&from=2026&to=2027&compare=P1Y&filter=note='a'");
await page.getByRole("columnheader", { name: "before" }).first().waitFor();
const heads = await texts(page.locator(".totals thead th"));
const march = await texts(page.locator(".totals tbody tr", { hasText: "Mar 2026" }).locator("td"));
for (const [name, before] of await totals(`SELECT ${named("ccy")}, coalesce((sum(amount) FILTER (WHERE at < '2026-01-01Z'))::text, '–') FROM odd WHERE note = 'a' GROUP BY 1`)) {
  assert.equal(march[heads.indexOf(name)], before, `before, of ${name}`);
}

step("why nothing is compared is said");
await see("#/aggregates/odd?by=day&from=2026-03-31&to=2026-05-31&compare=P1M");
await page.getByText("Nothing is compared").waitFor();

step("rows without a bucket lead nowhere, and times are whole");
await see("#/aggregates/odd?by=day&from=all&where=ccy:EUR");
for (const [name, links] of [["no time", 0], ["infinity", 0], ["-infinity", 0], ["3 Mar 2026", 2]]) {
  const row = page.locator(".totals tbody tr", { has: page.getByRole("rowheader", { name: new RegExp(`^${name}`) }) });
  await row.waitFor();
  assert.equal(await row.getByRole("link").count(), links, name);
}
await see("#/aggregates/odd?by=day&from=2026-03-03&to=2026-03-04&rows=1");
await page.locator(".rows").getByText("2026-03-03 04:05:06.123456 UTC").waitFor();

step("an hour that the clock shows twice");
await see("#/aggregates/madrid?by=hour&from=2025-10-26&to=2025-10-27");
await page.locator(".totals tbody tr").first().waitFor();
const hours = (await texts(page.locator(".totals tbody tr"))).slice(-4).map((row) => row.replaceAll(",", ""));
const expected = await sql(`SELECT string_agg('26 Oct 2025 ' || name || ' ' || total, ';' ORDER BY at DESC) FROM (VALUES
  (timestamptz '2025-10-26 01:00Z', '02:00 (+01:00)'), ('2025-10-26 00:00Z', '02:00 (+02:00)'), ('2025-10-25 23:00Z', '01:00'), ('2025-10-25 22:00Z', '00:00')) AS hour (at, name),
  LATERAL (SELECT sum(amount) AS total FROM clocks WHERE booked >= hour.at AND booked < hour.at + interval '1 hour') AS of_hour`);
assert.deepEqual(hours, expected.split(";"));

step("the SQL beside it, over clocks without a zone, in a session of another");
await sql("SET TIME ZONE 'America/New_York'");
for (const hash of ["local?by=day&from=2025-10-19&to=2025-10-23&zone=Europe/Madrid", "local?by=day&from=2025-10-21T01:00:00%2B02:00&to=2025-10-24T00:00:00Z", "local?by=all&from=-200d&to=-100d",
  "steps?by=PT15M&from=2025-10-19&to=2025-10-21&zone=Asia/Kathmandu", "steps?by=day&from=-90d&to=now&zone=Asia/Kathmandu", "days?by=all&from=-200d", "days?by=all&from=-200d&to=-7d", "settled?by=month&from=all",
  "settled?by=month&from=all&measure=late", "madrid?by=day&from=-30d&measure=n", "read?by=month&from=2025&to=2026"]) {
  await see(`#/aggregates/${hash}`);
  const measure = /measure=(\w+)/.exec(hash)?.[1] ?? "n";
  const asked = async () => (await page.locator(".same-sql pre").innerText()).replace(";", "");
  await page.locator(".panel").first().waitFor();
  const all = hash.includes("by=all");
  await until(hash, async () => {
    const shown = all ? await texts(page.locator(".panel .readout strong")) : (await texts(page.locator(".totals tbody td:nth-child(2)"))).filter((text) => text !== "");
    const counted = await sql(`SELECT ${all ? `${measure}::text` : `string_agg(${measure}::text, ' ' ORDER BY time DESC)`} FROM (${await asked()}) q`);
    return shown.join(" ").replaceAll(",", "") === counted || [shown, counted, await asked()];
  });
}

step("explained where several columns are times");
await see("#/aggregates/madrid?by=month&from=all");
await page.getByRole("link", { name: "Explain this question" }).click();
await page.getByRole("heading", { name: "Answered by madrid" }).waitFor();

step("what the console begins with is answered");
await see("#/console");
for (const name of ["By year", "Largest ten", "At one position"]) {
  await page.getByRole("button", { name }).click();
  await until(name, async () => (await page.getByRole("textbox").inputValue()).includes("charges"));
  await page.locator(".rows tbody tr").first().waitFor();
  assert.equal(await page.getByRole("alert").count(), 0, name);
}

// The refused comparison is told to the console by the browser itself.
nothingWrong([/^console: Failed to load resource: the server responded with a status of 422/]);
await browser.close();
step("done");
process.exit(0);
