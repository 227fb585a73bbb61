// Exact numbers: the strings that the server sends, as integers with a scale. Nothing that is shown as a number goes
// through a float; only a bar's length does.

/** What a measure's cell holds: decimals and wide sums are strings, counts and doubles numbers. */
export type Value = string | number | boolean | null | undefined;

export interface Exact {
  digits: bigint;
  scale: number;
}

const LOCALE = navigator.language;
const MINUS = "\u2212";
const point = new Intl.NumberFormat(LOCALE, { numberingSystem: "latn", minimumFractionDigits: 1 })
  .formatToParts(1.5)
  .find((part) => part.type === "decimal")?.value ?? ".";
const whole = new Intl.NumberFormat(LOCALE, { numberingSystem: "latn" });
const short = new Intl.NumberFormat(LOCALE, { numberingSystem: "latn", notation: "compact", maximumFractionDigits: 1 });

/** The number a text writes; nothing where it writes none, such as "NaN". */
export function exact(value: Value): Exact | null {
  if (typeof value === "number") return Number.isInteger(value) ? { digits: BigInt(value), scale: 0 } : null;
  if (typeof value !== "string") return null;
  const written = /^(-?)(\d+)(?:\.(\d+))?$/.exec(value);
  if (!written) return null;
  const fraction = written[3] ?? "";
  const digits = BigInt(`${written[2]}${fraction}`);
  return { digits: written[1] ? -digits : digits, scale: fraction.length };
}

export function add(a: Exact, b: Exact): Exact {
  const scale = Math.max(a.scale, b.scale);
  return { digits: widened(a, scale) + widened(b, scale), scale };
}

export function negated(a: Exact): Exact {
  return { digits: -a.digits, scale: a.scale };
}

/** As in SQL: of nothing but NULL it is nothing, and not zero. Nothing either where one is no number. */
export function sum(values: Value[]): Exact | null {
  let total: Exact | null = null;
  for (const value of values) {
    if (value === null || value === undefined) continue;
    const one = exact(value);
    if (!one) return null;
    total = total ? add(total, one) : one;
  }
  return total;
}

export function text({ digits, scale }: Exact): string {
  const sign = digits < 0n ? "-" : "";
  const all = (digits < 0n ? -digits : digits).toString().padStart(scale + 1, "0");
  return scale === 0 ? sign + all : `${sign}${all.slice(0, -scale)}.${all.slice(-scale)}`;
}

/** Grouped as the reader's locale does, every digit kept. */
export function shown(value: Value): string {
  if (value === null || value === undefined) return "\u2013";
  const number = exact(value);
  if (!number) return typeof value === "number" ? double(value) : String(value);
  const [integer = "0", fraction] = text(number).replace("-", "").split(".");
  const grouped = whole.format(BigInt(integer));
  return (number.digits < 0n ? MINUS : "") + grouped + (fraction ? point + fraction : "");
}

/** With a sign, for differences. */
export function signed(value: Value): string {
  const number = exact(value);
  return number && number.digits > 0n ? `+${shown(value)}` : shown(value);
}

/** For axes and lengths of bars only. */
export function pixels(value: Value): number | null {
  if (value === null || value === undefined || typeof value === "boolean") return null;
  const number = Number(value);
  return Number.isFinite(number) ? number : null;
}

/** Ticks of an axis. */
export function brief(value: number): string {
  return short.format(value).replace("-", MINUS);
}

export function percent(share: Value): string {
  const part = exact(share);
  if (!part) return "\u2013";
  const tenths = (part.digits * 10_000n) / 10n ** BigInt(part.scale);
  const [integer = "0", fraction = "0"] = text({ digits: tenths / 10n, scale: 1 }).split(".");
  return `${integer}${point}${fraction}\u202f%`;
}

export function bytes(count: number): string {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let at = 0;
  let size = count;
  while (size >= 1000 && at < units.length - 1) {
    size /= 1000;
    at += 1;
  }
  return `${new Intl.NumberFormat(LOCALE, { maximumFractionDigits: size < 10 && at > 0 ? 1 : 0 }).format(size)}\u202f${units[at]}`;
}

/** A double as it is, in the reader's locale. */
function double(value: number): string {
  return new Intl.NumberFormat(LOCALE, { numberingSystem: "latn", maximumFractionDigits: 20 }).format(value).replace("-", MINUS);
}

export function widened(a: Exact, scale: number): bigint {
  return a.digits * 10n ** BigInt(scale - a.scale);
}
