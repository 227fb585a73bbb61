// A chart of money over time: bars for one series, lines for several. It starts at zero, draws an open bucket hatched,
// and leaves a gap where a bucket has no rows. The canvas says nothing to a screen reader: the table below it does.
import { signal } from "@preact/signals";
import { useEffect, useMemo, useRef } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";

import { brief } from "../model/exact";
import { scheme } from "../model/scheme";

export interface Line {
  key: string;
  values: (number | null)[];
}

interface Shown {
  /** How many buckets there are. */
  buckets: number;
  /** What the axis says at a bucket, after another one that it names too. */
  tick: (bucket: number, before: number | undefined) => string;
  lines: Line[];
  open: boolean[];
  previous?: (number | null)[];
  height: number;
  onPick?: (bucket: number) => void;
  onPoint?: (bucket: number | null) => void;
}

const BARS_AT_MOST = 80;

export function colours(): string[] {
  const style = getComputedStyle(document.documentElement);
  return Array.from({ length: 7 }, (_, at) => style.getPropertyValue(`--series-${at + 1}`).trim());
}

export function Chart(shown: Shown) {
  const holder = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef(shown);
  latest.current = shown;
  const width = useMemo(() => signal(0), []);
  const dark = scheme.value;
  const bars = shown.lines.length === 1 && shown.buckets <= BARS_AT_MOST;
  const shape = JSON.stringify([shown.lines.map(({ key }) => key), bars, !!shown.previous, shown.height, dark]);

  useEffect(() => {
    const element = holder.current;
    if (!element) return undefined;
    const made = new uPlot(options(latest, element.clientWidth, bars), data(shown), element);
    plot.current = made;
    const watch = new ResizeObserver(() => {
      if (element.clientWidth !== width.peek()) made.setSize({ width: element.clientWidth, height: latest.current.height });
      width.value = element.clientWidth;
    });
    watch.observe(element);
    return () => {
      watch.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [shape]);

  useEffect(() => {
    plot.current?.setData(data(shown));
  });

  return <div class={shown.onPick ? "chart picks" : "chart"} ref={holder} aria-hidden="true" />;
}

function data({ buckets, lines, previous }: Shown): uPlot.AlignedData {
  const rows = lines.map(({ values }) => values);
  return [Array.from({ length: buckets }, (_, at) => at), ...rows, ...(previous ? [previous] : [])] as uPlot.AlignedData;
}

function options(latest: { current: Shown }, width: number, bars: boolean): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(name).trim();
  const palette = colours();
  const { lines, previous, height } = latest.current;
  const font = `11px ${style.getPropertyValue("--text-font")}`;
  const axis = { stroke: colour("--quiet"), font, ticks: { show: false }, grid: { stroke: colour("--rule"), width: 1 } };
  return {
    width: width || 320,
    height,
    padding: [12, 4, 0, 0],
    legend: { show: false },
    cursor: { drag: { x: false, y: false }, points: { show: false }, y: false },
    // Half a bucket on both sides, and zero always in sight: bars that start elsewhere lie.
    scales: {
      x: { time: false, range: (_, min, max) => [(min ?? 0) - 0.6, (max ?? 0) + 0.6] },
      y: { range: (_, min, max) => span(min, max) },
    },
    axes: [
      { ...axis, grid: { show: false }, size: 38, gap: 6, space: 54, incrs: [1, 2, 3, 4, 6, 7, 12, 14, 24, 30, 60, 90, 180, 365], values: (_, splits) => named(splits, latest.current) },
      { ...axis, size: 52, gap: 4, space: 44, values: (_, splits) => splits.map(brief) },
    ],
    series: [
      {},
      ...lines.map((_, at): uPlot.Series => (bars ? barSeries(latest, palette[0] ?? "") : lineSeries(palette[at] ?? colour("--quiet")))),
      ...(previous ? [{ stroke: colour("--ink"), width: 1.5, dash: [4, 3], points: { show: false } }] : []),
    ],
    hooks: {
      drawClear: [(u) => bars || hatchOpen(u, latest.current.open, colour("--rule"))],
      setCursor: [(u) => latest.current.onPoint?.(u.cursor.idx ?? null)],
      ready: [(u) => u.over.addEventListener("click", () => typeof u.cursor.idx === "number" && latest.current.onPick?.(u.cursor.idx))],
    },
  };
}

function named(splits: number[], { tick, buckets }: Shown): string[] {
  const there = splits.map((at) => (Number.isInteger(at) && at >= 0 && at < buckets ? at : undefined));
  return there.map((at, index) => (at === undefined ? "" : tick(at, there.slice(0, index).findLast((before) => before !== undefined))));
}

function span(min: number | null, max: number | null): [number, number] {
  const [low, high] = [Math.min(0, min ?? 0), Math.max(0, max ?? 0)];
  const air = (high - low) * 0.06 || 1;
  return [low < 0 ? low - air : 0, high > 0 || low === 0 ? high + air : 0];
}

function lineSeries(colour: string): uPlot.Series {
  return { stroke: colour, width: 2, points: { show: (u) => (u.data[0]?.length ?? 0) < 40, size: 5, fill: colour }, spanGaps: false };
}

function barSeries(latest: { current: Shown }, colour: string): uPlot.Series {
  const hatch = hatched(colour);
  const paths = uPlot.paths.bars?.({
    size: [0.72, 46],
    radius: 0.08,
    disp: {
      fill: { unit: 3, values: () => latest.current.open.map((is) => (is ? hatch : colour)) as unknown as CanvasRenderingContext2D["fillStyle"][] },
      stroke: { unit: 3, values: () => latest.current.open.map(() => colour) },
    },
  } as uPlot.Series.BarsPathBuilderOpts);
  return { stroke: colour, fill: colour, width: 1, points: { show: false }, ...(paths ? { paths } : {}) };
}

/** Behind lines: the buckets that still fill. */
function hatchOpen(u: uPlot, open: boolean[], colour: string): void {
  open.forEach((is, at) => {
    if (!is) return;
    const [left, right] = [u.valToPos(at - 0.5, "x", true), u.valToPos(at + 0.5, "x", true)];
    u.ctx.fillStyle = hatched(colour) ?? colour;
    u.ctx.fillRect(left, u.bbox.top, right - left, u.bbox.height);
  });
}

function hatched(colour: string): CanvasPattern | null {
  const size = Math.round(6 * devicePixelRatio);
  const tile = document.createElement("canvas");
  tile.width = size;
  tile.height = size;
  const pen = tile.getContext("2d");
  if (!pen) return null;
  pen.strokeStyle = colour;
  pen.lineWidth = Math.max(1, 1.4 * devicePixelRatio);
  for (const shift of [-size, 0, size]) {
    pen.moveTo(shift - 1, size + 1);
    pen.lineTo(shift + size + 1, -1);
  }
  pen.stroke();
  return pen.createPattern(tile, "repeat");
}
