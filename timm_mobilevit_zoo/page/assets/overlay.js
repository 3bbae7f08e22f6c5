// Attention over a picture, in colours: shares from dark to light, gates around 0 from blue to red.

const SHARES = ["440154", "482878", "3e4a89", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"];
const GATES = ["2166ac", "92c5de", "f7f7f7", "f4a582", "b2182b"];

const channels = (hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16));

/** The colour of a number in 0..1. */
function colour(stops, x) {
  const at = Math.min(Math.max(x, 0), 1) * (stops.length - 1);
  const below = Math.min(Math.floor(at), stops.length - 2);
  const [low, high] = [channels(stops[below]), channels(stops[below + 1])];
  return low.map((value, i) => Math.round(value + (at - below) * (high[i] - value)));
}

/** The range that the colours span. Differences below a hundredth are not worth all of them. */
export function range(values, kind) {
  const limit = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  const least = values.reduce((less, value) => Math.min(less, value), Infinity);
  return kind === "gate" ? [-limit, limit] : [Math.min(least, 0.99 * limit), limit];
}

/** Whether the cells of a map differ by no more than rounding. */
export function isFlat(values) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  return high - low <= 1e-5 * Math.max(Math.abs(low), Math.abs(high));
}

/**
 * How much a person sees in a map: the standard deviation as a part of the largest value, times the square root of the
 * number of cells that are the layer's own, of which one may fill many of the map's. Python's `maps` computes the same.
 */
export function clarity(values, cells) {
  if (isFlat(values)) return 0;
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length;
  const variance = values.reduce((sum, value) => sum + (value - mean) ** 2, 0) / values.length;
  const limit = values.reduce((most, value) => Math.max(most, Math.abs(value)), 0);
  return (Math.sqrt(variance) / limit) * Math.sqrt(cells[0] * cells[1]);
}

/** Draw a map `{ values, height, width, kind }` into a canvas, a pixel a cell. */
export function drawMap(canvas, { values, height, width, kind }) {
  const [low, high] = range(values, kind);
  const stops = kind === "gate" ? GATES : SHARES;
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d");
  const pixels = context.createImageData(width, height);
  values.forEach((value, i) => pixels.data.set([...colour(stops, (value - low) / (high - low || 1)), 255], 4 * i));
  context.putImageData(pixels, 0, 0);
}

/** Draw the bar that tells the colours. */
export function drawScale(canvas, kind) {
  const steps = Array.from({ length: 64 }, (_, i) => (kind === "gate" ? i / 31.5 - 1 : i / 63));
  drawMap(canvas, { values: steps, height: 1, width: steps.length, kind: kind === "gate" ? "gate" : "scale" });
}
