// Buckets of time as the server writes them: the local clock of the answer's zone, with its offset. They are read as
// clocks and never moved to the browser's zone.

const LOCALE = navigator.language;
const CLOCK = /^(\d{4})-(\d\d)-(\d\d)T(\d\d):(\d\d)(?::(\d\d)(?:\.\d+)?)?(Z|[+-]\d\d:\d\d)$/;

export type Granularity = string;

/** Civil units, fine to coarse; a base nests in those after it (weeks in none). */
const CIVIL = ["hour", "day", "week", "month", "quarter", "year"];

const FORMATS: Record<string, Intl.DateTimeFormatOptions> = {
  year: { year: "numeric" },
  month: { year: "numeric", month: "short" },
  week: { year: "numeric", month: "short", day: "numeric" },
  day: { year: "numeric", month: "short", day: "numeric" },
};
const CLOCK_FORMAT: Intl.DateTimeFormatOptions = { year: "numeric", month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" };
/** Of buckets that need not begin with a minute. */
const SECONDS_FORMAT: Intl.DateTimeFormatOptions = { ...CLOCK_FORMAT, second: "2-digit" };
const FILLED_AT_MOST = 4000;
const formatters = new Map<string, Intl.DateTimeFormat>();

/** The granularities that an aggregate can be asked for, coarse first; the server refuses what does not nest after all. */
export function granularities(levels: Granularity[]): Granularity[] {
  const base = levels[0];
  if (!base || base === "all") return [];
  if (base === "week") return [...levels].reverse();
  const at = CIVIL.indexOf(base);
  const coarser = CIVIL.slice(at < 0 ? 0 : at);
  return [...(at < 0 ? [base] : []), ...coarser].reverse();
}

/** The next finer granularity on the way from years to rows. */
export function finer(granularity: Granularity, possible: Granularity[]): Granularity | null {
  const way = ["year", "month", "day", "hour"].filter((one) => possible.includes(one));
  if (granularity === "quarter") return way.includes("month") ? "month" : null;
  if (granularity === "week") return way.includes("day") ? "day" : null;
  const at = way.indexOf(granularity);
  return at < 0 ? null : (way[at + 1] ?? null);
}

/** A bucket's name; with the date in full also where the axis is narrow. */
export function label(time: string | null, granularity: Granularity): string {
  if (time === null) return "no time";
  const clock = read(time);
  if (!clock) return time;
  if (granularity === "quarter") return `Q${Math.floor(clock.getUTCMonth() / 3) + 1} ${clock.getUTCFullYear()}`;
  return formatter(granularity, FORMATS[granularity] ?? (/S$|^second$/.test(granularity) ? SECONDS_FORMAT : CLOCK_FORMAT)).format(clock);
}

/** Names of buckets that no two share: an hour that the clock shows twice has its offset too. */
export function labels(times: (string | null)[], granularity: Granularity): string[] {
  const plain = times.map((time) => label(time, granularity));
  const count = new Map<string, number>();
  for (const name of plain) count.set(name, (count.get(name) ?? 0) + 1);
  return plain.map((name, at) => (count.get(name) === 1 ? name : `${name} (${CLOCK.exec(times[at] ?? "")?.[7]})`));
}

/** For an axis: without the year where the one before has it too. */
export function tick(time: string | null, before: string | null | undefined, granularity: Granularity): string {
  const clock = time === null ? null : read(time);
  if (!clock || granularity === "year" || granularity === "quarter") return label(time, granularity);
  const previous = before ? read(before) : null;
  const sameYear = previous?.getUTCFullYear() === clock.getUTCFullYear();
  if (granularity === "month") {
    const month = formatter("tick month", { month: "short" }).format(clock);
    return sameYear ? month : `${month}\n${clock.getUTCFullYear()}`;
  }
  if (granularity === "day" || granularity === "week") {
    const sameMonth = sameYear && previous?.getUTCMonth() === clock.getUTCMonth();
    return sameMonth ? String(clock.getUTCDate()) : `${clock.getUTCDate()}\n${formatter("tick", { month: "short", year: "2-digit" }).format(clock)}`;
  }
  return formatter("tick clock", { hour: "2-digit", minute: "2-digit" }).format(clock);
}

/** The bounds of a bucket as parameters of a question; nothing where it has none, or needs none that can be written. */
export function bounds(time: string | null, granularity: Granularity): { from: string; to: string } | null {
  const clock = time === null ? null : read(time);
  if (!clock) return null;
  if (granularity === "hour") {
    const offset = CLOCK.exec(time ?? "")?.[7] ?? "Z";
    const after = new Date(clock.getTime() + 3_600_000);
    return { from: time ?? "", to: `${after.toISOString().slice(0, 19)}${offset}` };
  }
  const next = following(clock, granularity);
  return next ? { from: written(clock, granularity), to: written(next, granularity) } : null;
}

/** All buckets from the first to the last, so that one without rows is a gap and not missing. A day may begin at one
 * o'clock, so days are told apart by their date; where that meets not every bucket that is there, none is added. */
export function filled(times: string[], granularity: Granularity): string[] {
  const known = new Map(times.map((time) => [time.slice(0, 10), time]));
  const dates = [...known.keys()];
  const [first, last] = [dates[0], dates.at(-1)];
  if (!first || !last || !["day", "week", "month", "quarter", "year"].includes(granularity)) return times;
  const all: string[] = [];
  let met = 0;
  for (let at = parameter(first); at && all.length < FILLED_AT_MOST; at = following(at, granularity)) {
    const date = at.toISOString().slice(0, 10);
    if (date > last) break;
    const there = known.get(date);
    if (there) met += 1;
    all.push(there ?? `${date}T00:00:00Z`);
  }
  return met === times.length ? all : times;
}

/** A period as somebody would say it: the bounds of a question, back to a name. */
export function period(from: string, to: string): string {
  const named = (granularity: Granularity) => {
    const clock = parameter(from);
    const next = clock && following(clock, granularity);
    const end = parameter(to);
    return clock && next && end && next.getTime() === end.getTime() ? label(clock.toISOString(), granularity) : null;
  };
  if (/^-\d+[smhdw]$/.test(from)) return to && to !== "now" ? `${from} to ${to}` : `last ${from.slice(1).replace("d", " days")}`;
  return named("year") ?? named("quarter") ?? named("month") ?? named("day") ?? named("week") ?? (to ? `${from} to ${to}` : `since ${from}`);
}

/** What a timestamp with an offset says to a reader who wants all of it. */
export function instant(time: string): string {
  return time.replace("T", " ").replace("Z", " UTC");
}

/** The local clock, as if it were UTC's, so that no other zone comes into play. */
function read(time: string): Date | null {
  const parts = CLOCK.exec(time);
  if (!parts) return null;
  const [year, month, day, hour, minute, second] = parts.slice(1, 7).map(Number);
  const clock = new Date(Date.UTC(2000, (month ?? 1) - 1, day, hour, minute, second || 0));
  clock.setUTCFullYear(year ?? 0, (month ?? 1) - 1, day);
  return clock;
}

function parameter(text: string): Date | null {
  const parts = /^(\d{4})(?:-(\d\d))?(?:-(\d\d))?$/.exec(text);
  return parts ? read(`${parts[1]}-${parts[2] ?? "01"}-${parts[3] ?? "01"}T00:00:00Z`) : null;
}

function following(clock: Date, granularity: Granularity): Date | null {
  const next = new Date(clock);
  switch (granularity) {
    case "year": next.setUTCFullYear(next.getUTCFullYear() + 1); return next;
    case "quarter": next.setUTCMonth(next.getUTCMonth() + 3); return next;
    case "month": next.setUTCMonth(next.getUTCMonth() + 1); return next;
    case "week": next.setUTCDate(next.getUTCDate() + 7); return next;
    case "day": next.setUTCDate(next.getUTCDate() + 1); return next;
    default: return null;
  }
}

function written(clock: Date, granularity: Granularity): string {
  const day = clock.toISOString().slice(0, 10);
  if (granularity === "year") return day.slice(0, 4);
  return granularity === "month" || granularity === "quarter" ? day.slice(0, 7) : day;
}

function formatter(key: string, options: Intl.DateTimeFormatOptions): Intl.DateTimeFormat {
  const known = formatters.get(key) ?? new Intl.DateTimeFormat(LOCALE, { ...options, timeZone: "UTC" });
  formatters.set(key, known);
  return known;
}
