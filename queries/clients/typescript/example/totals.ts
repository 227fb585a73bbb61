// Registers totals of payments by month and currency, prints them, then follows them until they reach a number of payments.
// node dist/example/totals.js http://127.0.0.1:7171 payments_by_currency 5
import { Refused, Tidemark } from "../src/index.js";

const [base = "http://127.0.0.1:7171", name = "payments_by_currency", until = "0"] = process.argv.slice(2);
const tidemark = new Tidemark(base, process.env["TIDEMARK_TOKEN"] ? { token: process.env["TIDEMARK_TOKEN"] } : {});

await tidemark.register(name, {
  table: "public.payments",
  measures: [
    { name: "amount", sum: "amount" },
    { name: "n", count: "*" },
  ],
  dimensions: ["currency"],
  time: { column: "created_at", granularity: "month" },
});
await tidemark.untilLive(name);

for await (const page of tidemark.pages(name, { limit: 2 })) {
  for (const { time, currency, amount, n } of page.data) console.log(`${time} ${currency} ${amount} ${n}`);
  if (page.page.next === null) console.log(`at ${page.as_of.lsn}`);
}

try {
  await tidemark.data(name, { granularity: "fortnight" });
} catch (refused) {
  if (!(refused instanceof Refused)) throw refused;
  console.log(`refused ${refused.code}`);
}

const stop = new AbortController();
for await (const { rows, asOf, trouble } of tidemark.follow(name, { granularity: "all" }, stop.signal)) {
  if (trouble) {
    console.error(`not the newest: ${trouble}`);
    continue;
  }
  const payments = rows.reduce((sum, row) => sum + Number(row["n"]), 0);
  console.log(`live ${payments} at ${asOf.lsn}`);
  if (payments >= Number(until)) stop.abort();
}
