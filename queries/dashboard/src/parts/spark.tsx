// Small drawings without axes, for a glance; the number beside them says it exactly.

const WIDTH = 120;
const HEIGHT = 28;

/** A line that starts at zero, newest at the right. */
export function SparkLine({ values, label }: { values: number[]; label: string }) {
  const top = Math.max(1, ...values);
  const step = WIDTH / Math.max(1, values.length - 1);
  const points = values.map((value, at) => `${(at * step).toFixed(1)},${(HEIGHT - 2 - (value / top) * (HEIGHT - 4)).toFixed(1)}`);
  return (
    <svg class="spark" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {points.length > 1 && <polyline points={points.join(" ")} />}
    </svg>
  );
}

/** Bars from zero; the last may be open. */
export function SparkBars({ values, open, label }: { values: number[]; open: boolean[]; label: string }) {
  const top = Math.max(0, ...values);
  const bottom = Math.min(0, ...values);
  const scale = (HEIGHT - 2) / (top - bottom || 1);
  const step = WIDTH / Math.max(1, values.length);
  return (
    <svg class="spark bars" viewBox={`0 0 ${WIDTH} ${HEIGHT}`} preserveAspectRatio="none" role="img" aria-label={label}>
      {values.map((value, at) => (
        <rect key={at} class={open[at] ? "open" : ""} x={at * step + step * 0.12} width={step * 0.76}
          y={1 + (top - Math.max(value, 0)) * scale} height={Math.max(0.6, Math.abs(value) * scale)} />
      ))}
    </svg>
  );
}
