// Asks the HTTP face every half second and shows what it answers. Data reaches the page through textContent only.
"use strict";

const POLL_MS = 500;
const MAX_GROUPS = 12;
const MAX_ROWS = 60;
const MAX_ANSWER_ROWS = 20000;
const byId = (id) => document.getElementById(id);

let aggregates = [];
let shown = { url: null, etag: null, cells: new Map() };

function make(tag, text, className) {
  const element = document.createElement(tag);
  if (text !== undefined) element.textContent = text;
  if (className) element.className = className;
  return element;
}

function setOptions(select, options) {
  const signature = JSON.stringify(options);
  if (select.dataset.signature === signature) return;
  const before = select.dataset.signature ? select.value : null;
  select.dataset.signature = signature;
  select.replaceChildren(...options.map(([value, text]) => {
    const option = make("option", text);
    option.value = value;
    return option;
  }));
  if (options.some(([value]) => value === before)) select.value = before;
}

function notice(text) {
  byId("notice").hidden = !text;
  byId("notice").textContent = text || "";
}

function problemText(problem) {
  const progress = problem.progress && problem.progress.fraction !== null
    ? `\n${(100 * problem.progress.fraction).toFixed(1)} % of ${problem.progress.rows_estimated} rows` : "";
  return `${problem.detail} [${problem.code}]${progress}${problem.hint ? "\n" + problem.hint : ""}`;
}

// The coarser granularities that a base nests in; the server says which of them are stored.
const COARSER = ["hour", "day", "week", "month", "quarter", "year"];

function granularities(aggregate) {
  const base = aggregate.levels[0];
  if (base === "all") return [["all", "all"]];
  const all = base === "week" || !COARSER.includes(base) ? aggregate.levels : COARSER.slice(COARSER.indexOf(base));
  return all.concat("all").map((name) => [name, name]);
}

function fillControls() {
  setOptions(byId("aggregate"), aggregates.map((aggregate) => [aggregate.name, aggregate.name]));
  const aggregate = aggregates.find((one) => one.name === byId("aggregate").value);
  if (!aggregate) return null;
  const select = byId("granularity");
  const fresh = select.dataset.of !== aggregate.name;
  setOptions(select, granularities(aggregate));
  if (fresh) {
    select.dataset.of = aggregate.name;
    if ([...select.options].some((option) => option.value === "month")) select.value = "month";
  }
  setOptions(byId("measure"), aggregate.measures.map((name) => [name, name]));
  const dimensions = aggregate.dimensions.map((name) => [name, name]).concat([["", "nothing"]]);
  setOptions(byId("dimension"), dimensions);
  return aggregate;
}

function question(aggregate) {
  const parameters = new URLSearchParams({
    granularity: byId("granularity").value,
    group_by: byId("dimension").value,
    measures: byId("measure").value,
    limit: String(MAX_ANSWER_ROWS),
  });
  // The newest are shown, so that they must not be what a limit cuts off.
  if (byId("granularity").value !== "all") parameters.set("order", "-time");
  return { path: `/v1/aggregates/${encodeURIComponent(aggregate.name)}/data`, query: parameters.toString() };
}

const amount = (value) => (value === null || value === undefined ? NaN : Number(value));

// Exact digits with grouping: a Number would round large sums.
function pretty(value) {
  if (value === null || value === undefined) return "";
  return String(value).replace(/^(-?)(\d+)/, (_, sign, digits) => sign + digits.replace(/\B(?=(\d{3})+$)/g, "\u202f"));
}

function timeText(value, granularity) {
  if (value === null) return "no time";
  if (!/^\d{4}-/.test(value)) return value;
  const length = { year: 4, month: 7, quarter: 7, week: 10, day: 10 }[granularity];
  return length ? value.slice(0, length) : value.slice(0, 16).replace("T", " ");
}

function draw(answer, measure, dimension, granularity) {
  const times = new Map();
  const totals = new Map();
  for (const row of answer.data) {
    const time = granularity === "all" ? "all" : row.time;
    const group = dimension ? (row[dimension] === null ? "NULL" : String(row[dimension])) : measure;
    if (!times.has(time)) times.set(time, { groups: new Map(), complete: row.complete !== false });
    times.get(time).groups.set(group, row[measure]);
    totals.set(group, (totals.get(group) || 0) + Math.abs(amount(row[measure]) || 0));
  }
  const groups = [...totals].sort((a, b) => b[1] - a[1] || (a[0] < b[0] ? -1 : 1)).slice(0, MAX_GROUPS).map(([group]) => group);
  // Of the last one some groups may be missing.
  if (answer.data.length === MAX_ANSWER_ROWS && times.size > 1) times.delete([...times.keys()].pop());
  const rows = [...times].slice(0, MAX_ROWS);
  let largest = 0;
  for (const [, row] of rows) for (const group of groups) largest = Math.max(largest, Math.abs(amount(row.groups.get(group))) || 0);

  const more = [];
  if (totals.size > groups.length) more.push(`the ${groups.length} largest of ${totals.size} groups`);
  if (times.size > rows.length) more.push(`the newest ${rows.length} of ${times.size} rows`);
  byId("caption").textContent = `${measure}${dimension ? " by " + dimension : ""}${more.length ? ", " + more.join(", ") : ""}`;
  const head = make("tr");
  const zone = (answer.columns.find((column) => column.name === "time") || {}).time_zone;
  head.append(make("th", zone ? `${granularity} (${zone})` : granularity), ...groups.map((group) => make("th", group)));
  byId("head").replaceChildren(head);

  const cells = new Map();
  byId("body").replaceChildren(...rows.map(([time, row]) => {
    const line = make("tr", undefined, row.complete || time === null || granularity === "all" ? "" : "open");
    line.append(make("td", granularity === "all" ? "all" : timeText(time, granularity)));
    for (const group of groups) {
      const value = row.groups.get(group);
      const key = JSON.stringify([time, group]);
      cells.set(key, value);
      const moved = shown.cells.size > 0 && shown.cells.get(key) !== value;
      const cell = make("td", undefined, moved ? "moved" : "");
      const bar = make("span", undefined, "bar");
      const share = largest > 0 ? Math.abs(amount(value)) / largest : 0;
      bar.style.width = `${(100 * (share || 0)).toFixed(2)}%`;
      cell.append(bar, make("span", pretty(value), "number"));
      line.append(cell);
    }
    return line;
  }));
  shown.cells = cells;
}

function describe(headers, state) {
  if (state) {
    byId("state").textContent = state;
    byId("state").className = state === "live" ? "pill live" : "pill";
  }
  byId("lsn").textContent = headers.get("Tidemark-Lsn") || "";
  byId("lag").textContent = `${headers.get("Tidemark-Lag-Ms") || "?"} ms`;
}

async function pollAnswer(aggregate) {
  const { path, query } = question(aggregate);
  const url = `${path}?${query}`;
  if (url !== shown.url) shown = { url, etag: null, cells: new Map() };
  const response = await fetch(url, { headers: shown.etag ? { "If-None-Match": shown.etag } : {}, cache: "no-store" });
  if (url !== shown.url) return;
  if (response.status === 304) {
    describe(response.headers, null);
    for (const cell of document.querySelectorAll("td.moved")) cell.className = "";
    return;
  }
  const body = await response.json();
  byId("answer").hidden = !response.ok;
  if (!response.ok) {
    shown.etag = null;
    notice(problemText(body));
    return;
  }
  shown.etag = response.headers.get("ETag");
  notice(body.warnings.filter((warning) => warning.code !== "truncated").map((warning) => warning.message).join("\n"));
  describe(response.headers, body.as_of.state);
  byId("cost").textContent = `${body.stats.cells_read} cells read from ${body.stats.served_from}`;
  byId("json").href = `${path}.json?${query}`;
  byId("csv").href = `${path}.csv?${query}`;
  draw(body, byId("measure").value, byId("dimension").value, byId("granularity").value);
}

async function pollLists() {
  const [sources, list] = await Promise.all(["/v1/sources", "/v1/aggregates"].map(async (url) => {
    const response = await fetch(url, { cache: "no-store" });
    return response.json();
  }));
  byId("sources").textContent = sources.data
    .map((source) => `${source.name} (${source.connector}): ${source.state}, ${source.lag_ms} ms behind`
      + (source.unavailable ? `, ${source.unavailable.message}` : ""))
    .join(" · ");
  aggregates = list.data;
}

async function poll() {
  let round = 0;
  for (;;) {
    try {
      if (round % 4 === 0) await pollLists();
      round += 1;
      const aggregate = fillControls();
      if (aggregate) {
        await pollAnswer(aggregate);
      } else {
        byId("answer").hidden = true;
        notice("No aggregate is registered yet: PUT /v1/aggregates/{name}");
      }
    } catch (error) {
      round = 0;
      notice(`The server does not answer: ${error.message}`);
    }
    await new Promise((resolve) => setTimeout(resolve, document.hidden ? 4 * POLL_MS : POLL_MS));
  }
}

byId("controls").addEventListener("submit", (event) => event.preventDefault());
poll();
