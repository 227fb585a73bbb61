// Shuffled rows of an aggregate are in the server's order again, by every column of the answer and its reverse.
//
//     node ordered.mjs DIST http://127.0.0.1:7171 AGGREGATE     what build.sh made, a server
import assert from "node:assert";
import { pathToFileURL } from "node:url";

const [, , dist, base, name] = process.argv;
const { Tidemark } = await import(pathToFileURL(`${dist}/src/index.js`).href);
const { Order } = await import(pathToFileURL(`${dist}/src/order.js`).href);

const totals = new Tidemark(base);
const { columns } = await totals.data(name);
const names = columns.filter(({ role }) => role !== "flag").map(({ name }) => name);
for (const order of [undefined, ...names, ...names.map((name) => `-${name}`), `${names.at(-1)}, -${names[1]}`]) {
  const { data } = await totals.data(name, { order });
  // Neither as they come nor the other way round.
  const shuffled = data.map((row, at) => [(at * 7919) % 101, row]).sort(([a], [b]) => a - b).map(([, row]) => row);
  assert.deepStrictEqual(new Order(order ?? "", columns).sorted(shuffled), data, order);
}
