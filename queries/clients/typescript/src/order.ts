// The order of a live answer's rows, as the server has it: by what was asked, then by time, then by the dimensions. Its events are
// differences and say nothing of places.
//
// NULL is the largest of times and dimensions, and last of measures in either direction; NaN is the largest of numbers; texts are in the
// order of their bytes in UTF-8, which `<` does not have: it compares halves of pairs. Sums are compared by their digits.
import type { Column, Row, Value } from "./answer.js";

interface Term {
  name: string;
  descending: boolean;
  nullIsLast: boolean;
  read: (value: Exclude<Value, null>) => Place;
}

/** Where a value stands. Those of one column are of one kind. */
type Place = number | bigint | Uint8Array | Digits;

export class Order {
  private readonly terms: Term[];
  /** By row, which stays the same object while it does not change. */
  private readonly places = new WeakMap<Row, (Place | null)[]>();

  /** @param asked the parameter of the question; `columns` are those of the answer */
  constructor(asked: string, columns: Column[]) {
    const names = asked.split(",").map((name) => name.trim()).filter((name) => name !== "");
    const term = (column: Column, descending: boolean): Term => {
      return { name: column.name, descending, nullIsLast: column.role === "measure", read: readers[column.type] ?? utf8 };
    };
    const named = names.flatMap((name) => {
      const descending = name.startsWith("-");
      return columns.filter((column) => column.name === name.slice(descending ? 1 : 0)).map((column) => term(column, descending));
    });
    const key = columns.filter(({ role }) => role === "time" || role === "dimension");
    this.terms = [...named, ...key.map((column) => term(column, false))];
  }

  sorted(rows: Iterable<Row>): Row[] {
    return [...rows].sort((a, b) => {
      const [left, right] = [this.placesOf(a), this.placesOf(b)];
      for (const [at, { descending, nullIsLast }] of this.terms.entries()) {
        const [x = null, y = null] = [left[at], right[at]];
        const compared = x === null || y === null ? Number(x === null) - Number(y === null) : compare(x, y);
        if (compared !== 0) return descending && !((x === null || y === null) && nullIsLast) ? -compared : compared;
      }
      return 0;
    });
  }

  private placesOf(row: Row): (Place | null)[] {
    const known = this.places.get(row);
    if (known) return known;
    const places = this.terms.map(({ name, read }) => {
      const value = row[name] ?? null;
      return value === null ? null : read(value);
    });
    this.places.set(row, places);
    return places;
  }
}

function compare(a: Place, b: Place): number {
  if (a instanceof Uint8Array && b instanceof Uint8Array) {
    const at = a.findIndex((byte, index) => byte !== b[index]);
    return at < 0 ? a.length - b.length : (a[at] ?? 0) - (b[at] ?? -1);
  }
  if (a instanceof Digits && b instanceof Digits) return a.compare(b);
  const notNumbers = Number(Number.isNaN(a)) - Number(Number.isNaN(b));
  return notNumbers || (a < b ? -1 : a > b ? 1 : 0);
}

/** A decimal of any length; what a double would make of it may be what it makes of its neighbour. */
class Digits {
  private constructor(
    /** -1 and 1 of what is finite, beyond them what is not. */
    private readonly rank: number,
    private readonly whole: string,
    private readonly fraction: string,
  ) {}

  static read(value: Value): Digits {
    const infinite = { "-Infinity": -2, Infinity: 2, NaN: 3 }[String(value)];
    if (infinite !== undefined) return new Digits(infinite, "", "");
    const [, sign, whole = "", fraction = ""] = /^(-?)(\d+)(?:\.(\d+))?$/.exec(String(value)) ?? [];
    return new Digits(sign === "-" ? -1 : 1, whole, fraction);
  }

  compare(other: Digits): number {
    if (this.rank !== other.rank) return this.rank - other.rank;
    const larger = this.whole.length - other.whole.length || byText(this.whole, other.whole) || byText(this.fraction, other.fraction);
    return this.rank * larger;
  }
}

function byText(a: string, b: string): number {
  return a < b ? -1 : a > b ? 1 : 0;
}

const encoder = new TextEncoder();

function utf8(value: Value): Uint8Array {
  return encoder.encode(String(value));
}

const CLOCK = /^([+-]?\d+)-(\d\d)-(\d\d)(?:T(\d\d):(\d\d):(\d\d)(?:\.(\d+))?)?(?:Z|([+-])(\d\d):(\d\d))?$/;
const LONGEST = 1n << 80n;

/** Microseconds, of years that `Date` does not have as well: after 400 of them the calendar is the same again. */
function moment(value: Value): bigint {
  const clock = CLOCK.exec(String(value));
  if (!clock) return value === "infinity" ? LONGEST : -LONGEST;
  const part = (at: number) => Number(clock[at] ?? 0);
  const cycles = Math.floor(part(1) / 400);
  const ahead = (part(9) * 60 + part(10)) * (clock[8] === "-" ? -1 : 1);
  const ms = Date.UTC(2000 + part(1) - cycles * 400, part(2) - 1, part(3), part(4), part(5) - ahead, part(6));
  return BigInt(cycles) * 146_097n * 86_400_000_000n + BigInt(ms) * 1000n + BigInt((clock[7] ?? "").padEnd(6, "0"));
}

const readers: Record<string, Term["read"]> = {
  decimal: Digits.read,
  int64: (value) => BigInt(value as string | number),
  float64: (value) => Number(value),
  boolean: Number,
  timestamp: moment,
  local_timestamp: moment,
  date: moment,
};
