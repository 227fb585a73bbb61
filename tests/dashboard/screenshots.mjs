// Pictures of every page for the documentation, of a running demo: BASE, TOOLS and CHROMIUM as the tests set them, and the
// directory to write to as the argument.
import path from "node:path";

import { open } from "./browser.mjs";

const [to] = process.argv.slice(2);
const PAGES = [
  ["aggregate", "#/aggregates/payments_daily?by=month", ".panel canvas"],
  ["groups", "#/aggregates/payments_daily?by=month&group=merchant&where=currency:EUR", ".legend"],
  ["explain", "#/explain?table=public.payments&measures=sum(amount)&group_by=currency&filter=status%20%3D%20'settled'&granularity=month&from=2026", ".levels"],
  ["sources", "#/sources", ".checks"],
  ["query", "#/console", ".rows tbody tr"],
  ["register", "#/register", ".preview table"],
];

/** Long enough for the colours of what moved to fade in and the sparklines to fill. */
const SETTLED_MS = 2500;

async function shoot(name, hash, ready, options, act) {
  const { browser, page, visit } = await open({ viewport: { width: 1180, height: 760 }, ...options });
  await visit(hash);
  await page.locator(ready).first().waitFor();
  await act?.(page);
  await page.waitForTimeout(SETTLED_MS);
  await page.screenshot({ path: path.join(to, `${name}.png`) });
  await browser.close();
}

await shoot("overview", "", ".figure", { viewport: { width: 1180, height: 940 } }, async (page) => {
  await page.getByRole("button", { name: "A closed month is corrected" }).click();
  await page.locator(".verdict").waitFor();
  await page.waitForTimeout(20_000);
});
for (const [name, hash, ready] of PAGES) await shoot(name, hash, ready, {}, name === "register" ? (page) => page.getByRole("textbox", { name: "Name", exact: true }).fill("by_currency") : undefined);
await shoot("aggregate-dark", PAGES[0][1], PAGES[0][2], { colorScheme: "dark" });
await shoot("rows", "#/aggregates/payments_daily?by=day&from=2026-11-20&to=2026-11-21&where=currency:EUR&rows=1", ".rows tbody tr");
await shoot("telephone", PAGES[0][1], PAGES[0][2], { viewport: { width: 390, height: 844 } });
process.exit(0);
