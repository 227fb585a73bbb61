// The demo's story, told by its buttons; the page says so while the database is away, and that all is well again.
import { accessible, fits, nothingWrong, open, step } from "./browser.mjs";

const { browser, page, visit } = await open();
await visit();
for (const [button, verdict] of [["A refund arrives", "moved by \u221249.90"], ["A closed month is corrected", "moved by +10.00"]]) {
  step(button);
  await page.getByRole("button", { name: button }).click();
  await page.locator(".verdict.equal", { hasText: verdict }).waitFor();
}
await accessible(page, "the story");

step("Kill the database");
await page.getByRole("button", { name: "Kill the database" }).click();
await page.getByRole("heading", { name: "Source postgres is away" }).waitFor();
// How far behind nobody knows now.
await page.locator(".fresh", { hasText: "\u2013 ms" }).waitFor();
await page.locator(".verdict.equal", { hasText: "other sessions" }).waitFor({ timeout: 60_000 });
await page.getByText("Nothing needs you").waitFor();

step("a telephone");
await page.setViewportSize({ width: 390, height: 844 });
await fits(page, "the story");

nothingWrong();
await browser.close();
step("done");
process.exit(0);
