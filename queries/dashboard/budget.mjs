// Prints what the page weighs, and fails where what every visitor loads is more than its budget.
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const BUDGET_BYTES = 64 * 1024;
/** Fetched by who asks for it. */
const LAZY = ["console.js", "licences.md"];

const files = readdirSync("dist", { recursive: true, withFileTypes: true }).filter((file) => file.isFile());
let first = 0;
for (const { parentPath, name } of files) {
  const bytes = readFileSync(join(parentPath, name));
  const packed = gzipSync(bytes, { level: 9 }).length;
  if (!LAZY.includes(name)) first += packed;
  console.log(`${name.padEnd(16)} ${String(bytes.length).padStart(7)} bytes  ${String(packed).padStart(6)} gzipped${LAZY.includes(name) ? "  (lazy)" : ""}`);
}
console.log(`first load       ${first} bytes gzipped, of ${BUDGET_BYTES}`);
if (first > BUDGET_BYTES) {
  console.error("the page is heavier than its budget");
  process.exit(1);
}
