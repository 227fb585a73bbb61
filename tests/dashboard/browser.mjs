// A browser on the page: everything that it says or asks for is kept, so that at the end nothing was wrong and nothing
// left the host. SQL is run by the test that started this: a line out, a line back.
import assert from "node:assert/strict";
import { createRequire } from "node:module";
import { createInterface } from "node:readline";
import path from "node:path";

const { TOOLS: tools, BASE: base, CHROMIUM: executablePath } = process.env;
const require = createRequire(path.join(tools, "package.json"));
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

const wrong = [];
const asked = new Set();
const replies = createInterface({ input: process.stdin })[Symbol.asyncIterator]();

/** Runs a statement in Postgres; the first value of its first row. */
export async function sql(statement) {
  process.stdout.write(`sql ${statement.replaceAll("\n", " ")}\n`);
  return JSON.parse((await replies.next()).value);
}

/** Says where the walk is, for a failure's sake. */
export const step = (name) => process.stdout.write(`step ${name}\n`);

export async function open(options = {}) {
  const browser = await chromium.launch({ executablePath, args: process.getuid() === 0 ? ["--no-sandbox"] : [] });
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, locale: "en-GB", ...options });
  const page = await context.newPage();
  page.setDefaultTimeout(30_000);
  page.on("console", (message) => ["error", "warning"].includes(message.type()) && wrong.push(`console: ${message.text()}`));
  page.on("pageerror", (error) => wrong.push(`page: ${error.stack}`));
  page.on("request", (request) => asked.add(new URL(request.url()).origin));
  const visit = (hash = "") => page.goto(`${base}/${hash}`);
  return { browser, context, page, visit };
}

/** No finding of axe that keeps somebody out. */
export async function accessible(page, where) {
  // The policy of the page keeps scripts out that are not its own; the driver evaluates this one past it.
  const { readFileSync } = await import("node:fs");
  await page.evaluate(readFileSync(axe, "utf8"));
  const { violations } = await page.evaluate(() => globalThis.axe.run());
  const found = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = found.map(({ id, help, nodes }) => `${id}: ${help}: ${nodes.slice(0, 3).map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`);
  assert.deepEqual(told, [], where);
}

/** Nothing sticks out at the right. */
export async function fits(page, where) {
  const { wide, width } = await page.evaluate(() => ({ wide: document.documentElement.scrollWidth, width: innerWidth }));
  assert.ok(wide <= width, `${where} is ${wide} wide on a screen of ${width}`);
}

/** The pixels of a chart, to see that it moved. */
export const pixels = (chart) => chart.locator("canvas").first().evaluate((canvas) => canvas.toDataURL());

/** Waits until something is true of the page. */
export async function until(what, condition, limitMs = 30_000) {
  const end = Date.now() + limitMs;
  let last;
  while (Date.now() < end) {
    last = await condition();
    if (last === true) return;
    await new Promise((resume) => setTimeout(resume, 50));
  }
  assert.fail(`not seen: ${what}; last: ${JSON.stringify(last)}`);
}

export function nothingWrong(expected = []) {
  assert.deepEqual(wrong.filter((one) => !expected.some((known) => known.test(one))), []);
  assert.deepEqual([...asked], [new URL(base).origin], "a request left the host");
}
