// A reader's walk through the page: what is there, down from years to payments and back, while payments arrive.
import assert from "node:assert/strict";

import { accessible, fits, nothingWrong, open, pixels, sql, step, until } from "./browser.mjs";

const { browser, page, visit } = await open();
const bucket = (name) => page.locator(".totals tbody tr", { has: page.getByRole("rowheader", { name }) });
const figure = async (row, column = 0) => (await row.locator("td").nth(column).innerText()).replaceAll(",", "");
const total = (where) => sql(`SELECT coalesce(sum(amount), 0)::text FROM payments WHERE currency = 'EUR' AND ${where}`);

step("overview");
await visit();
const card = page.locator(".card", { hasText: "monthly" });
await card.getByText("EUR").waitFor();
await accessible(page, "overview");

step("aggregate");
await card.getByRole("link", { name: "monthly" }).click();
await bucket("Mar 2026").waitFor();
assert.equal(await figure(bucket("Mar 2026")), await total("created_at >= '2026-03-01Z' AND created_at < '2026-04-01Z'"));
await accessible(page, "aggregate");

step("the chart moves while payments arrive");
const chart = page.locator(".panel", { hasText: "EUR" }).locator(".chart");
const before = await pixels(chart);
await sql("INSERT INTO payments (merchant, currency, amount, created_at) SELECT 'b', 'EUR', 900000000000000.01, '2026-03-15Z' FROM generate_series(1, 3)");
const march = await total("created_at >= '2026-03-01Z' AND created_at < '2026-04-01Z'");
await until("the payments in March", async () => (await figure(bucket("Mar 2026"))) === march);
// A float could not hold it: the cents would be gone.
assert.match(march, /^2700000000\d+\.\d\d$/);
await until("the chart moved", async () => (await pixels(chart)) !== before);
await sql("DELETE FROM payments WHERE amount > 100000000000000");

step("hidden, nothing is read; seen again, it goes on where it was");
const seen = (hidden) => page.evaluate((hidden) => {
  Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
  document.dispatchEvent(new Event("visibilitychange"));
}, hidden);
await until("the total without them", async () => !(await figure(bucket("Mar 2026"))).startsWith("27"));
await seen(true);
await page.locator(".freshness", { hasText: "reconnecting" }).waitFor();
await sql("UPDATE payments SET amount = amount + 0.01 WHERE currency = 'EUR'");
const resumed = page.waitForRequest((request) => request.url().includes("/live?") && request.headers()["last-event-id"] !== undefined);
await seen(false);
await resumed;
const cents = await total("created_at >= '2026-03-01Z' AND created_at < '2026-04-01Z'");
await until("every payment with its cent more", async () => (await figure(bucket("Mar 2026"))) === cents);
assert.equal((await page.locator(".totals tfoot td").first().innerText()).replaceAll(",", ""), await total("true"));

step("year, month, day, rows");
await page.getByRole("radio", { name: "year" }).check({ force: true });
await bucket("2026").getByRole("link", { name: "2026" }).click();
await bucket("Mar 2026").getByRole("link", { name: "Mar 2026" }).click();
const day = bucket("15 Mar 2026");
await day.locator("td a").first().click();
await page.locator(".rows tbody tr").first().waitFor();
const count = await sql("SELECT count(*)::text FROM payments WHERE currency = 'EUR' AND created_at >= '2026-03-15Z' AND created_at < '2026-03-16Z'");
assert.equal(String(await page.locator(".rows tbody tr").count()), count);
const deep = page.url();

step("back");
await page.goBack();
await day.waitFor();
await page.goBack();
await bucket("Mar 2026").waitFor();
await page.goForward();
await page.goForward();
await page.locator(".rows tbody tr").first().waitFor();
assert.equal(page.url(), deep);

step("reload on the deep link");
await page.reload();
await page.locator(".rows tbody tr").first().waitFor();
assert.equal(String(await page.locator(".rows tbody tr").count()), count);
await accessible(page, "rows");

step("a day that begins at one o'clock is a day");
await visit("#/aggregates/cairo?by=day&from=2025-04-25&to=2025-04-28");
await bucket("27 Apr 2025").waitFor();
assert.deepEqual(await page.locator(".totals tbody th").allInnerTexts(), ["27 Apr 2025", "26 Apr 2025", "25 Apr 2025"]);
for (const day of ["25", "26", "27"]) {
  const counted = await sql(`SELECT count(*)::text FROM payments WHERE (created_at AT TIME ZONE 'Africa/Cairo')::date = '2025-04-${day}'`);
  assert.equal(await figure(bucket(`${day} Apr 2025`)), counted, day);
}

step("the SQL beside it gives the same in Postgres");
await sql("INSERT INTO payments (merchant, currency, amount, created_at) SELECT 'late', 'EUR', 7.77, now() - i * interval '20 days' FROM generate_series(0, 5) i");
for (const hash of ["#/aggregates/monthly?by=quarter", "#/aggregates/monthly?by=day&filter=merchant='late'", "#/aggregates/monthly?by=all&where=currency:EUR",
  "#/aggregates/cairo?by=month&from=2025-03&to=2025-06", "#/aggregates/steps?by=PT15M&from=2025-04-25&to=2025-04-28", "#/aggregates/steps?by=day&zone=Asia/Kathmandu&from=-90d"]) {
  await visit(hash);
  const measure = hash.includes("monthly") ? "amount" : "n";
  const asked = async () => (await page.locator(".same-sql pre").innerText()).replace(";", "");
  const same = async () => {
    const shown = await page.locator(".panel .readout strong").first().innerText();
    const counted = await sql(`SELECT sum(${measure})::text FROM (${await asked()}) q ${measure === "amount" && !hash.includes("where") ? "WHERE currency = 'EUR'" : ""}`);
    return shown.replaceAll(",", "") === counted || [shown, counted, await asked()];
  };
  await page.locator(".panel").first().waitFor();
  await until(hash, same);
}

step("dark, and a telephone");
for (const colorScheme of ["dark", "light"]) {
  await page.emulateMedia({ colorScheme });
  for (const hash of ["#/", "#/aggregates/monthly?by=month", deep.slice(deep.indexOf("#"))]) {
    await page.setViewportSize({ width: 390, height: 844 });
    await visit(hash);
    await page.locator(".card .figure, .totals tbody tr, .rows tbody tr").first().waitFor();
    await fits(page, `${hash} (${colorScheme})`);
    await accessible(page, `${hash} (${colorScheme})`);
  }
  const ground = await page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  const [red] = ground.match(/\d+/g).map(Number);
  assert.ok(colorScheme === "dark" ? red < 60 : red > 200, `${colorScheme}: ${ground}`);
}

nothingWrong();
await browser.close();
step("done");
process.exit(0);
