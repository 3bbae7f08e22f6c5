// An image as a model takes it: what timm's evaluation transform computes with Pillow, to the bit. (Pillow 13 takes the
// height before the width where it shrinks far more, as happens to what is squashed: there single pixels differ.)

const cubic = (x) => {
  x = Math.abs(x);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
};
const FILTERS = {
  bilinear: { support: 1, weight: (x) => Math.max(0, 1 - Math.abs(x)) },
  bicubic: { support: 2, weight: cubic },
};
const BITS = 22; // of the weights behind the point; Pillow computes in whole numbers

/** Round halves to the even number, as Python does. */
function roundEven(x) {
  const whole = Math.round(x);
  return whole - x === 0.5 && whole % 2 ? whole - 1 : whole;
}

/**
 * Where the model's square lies: the image is resized to `width` x `height`, and of that `crop` is kept.
 * `input` is that of a manifest.
 */
export function geometry(width, height, input) {
  const [H, W] = input.shape.slice(2);
  const [down, across] = [H, W].map((side) => Math.floor(side / input.crop_pct));
  let resized;
  if (input.crop_mode === "squash") {
    resized = [across, down];
  } else if (down !== across) {
    const ratio = Math.min(height / down, width / across);
    resized = [roundEven(width / ratio), roundEven(height / ratio)];
  } else {
    const long = Math.floor((down * Math.max(width, height)) / Math.min(width, height));
    resized = width <= height ? [down, long] : [long, down];
  }
  const [left, top] = [roundEven((resized[0] - W) / 2), roundEven((resized[1] - H) / 2)];
  return { width: resized[0], height: resized[1], crop: { left, top, width: W, height: H } };
}

/** The source cells of each of `count` results from `first` on, where `from` cells become `to`, with their weights. */
function taps(from, to, first, count, filter) {
  const scale = from / to;
  const stretch = Math.max(scale, 1); // antialiased: a smaller image averages over what it leaves out
  const support = filter.support * stretch;
  return Array.from({ length: count }, (_, i) => {
    const centre = (first + i + 0.5) * scale;
    const start = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = Array.from({ length: end - start }, (_, k) => filter.weight((start + k - centre + 0.5) / stretch));
    const sum = weights.reduce((total, weight) => total + weight, 0);
    const whole = weights.map((weight) => {
      const scaled = (weight / sum) * 2 ** BITS;
      return Math.trunc(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
    });
    return { start, weights: Int32Array.from(whole) };
  });
}

/** Weighted sums along one side. Cell (line, k) of the source begins at `line * lineStep + k * step`. */
function pass(source, lines, lineStep, step, found, channels, target, targetLine, targetStep) {
  for (let line = 0; line < lines; line++) {
    for (let i = 0; i < found.length; i++) {
      const { start, weights } = found[i];
      for (let c = 0; c < channels; c++) {
        let sum = 1 << (BITS - 1);
        let at = line * lineStep + start * step + c;
        for (let k = 0; k < weights.length; k++, at += step) sum += source[at] * weights[k];
        target[line * targetLine + i * targetStep + c] = sum >> BITS; // a clamped array: below 0 and above 255 too
      }
    }
  }
}

/** Channels side by side, without alpha: 3, or 1 with the weights that Pillow gives red, green and blue. */
function packed({ data, width, height }, channels) {
  const pixels = new Uint8ClampedArray(width * height * channels);
  for (let i = 0, at = 0; i < data.length; i += 4) {
    if (channels === 1) pixels[at++] = (data[i] * 19595 + data[i + 1] * 38470 + data[i + 2] * 7471 + 0x8000) >> 16;
    else for (let c = 0; c < 3; c++) pixels[at++] = data[i + c];
  }
  return pixels;
}

/** The model's square of an image, in whole numbers, channels last. `image` is an ImageData. */
export function resample(image, input) {
  const channels = input.shape[1];
  const filter = FILTERS[input.interpolation];
  const { width, height, crop } = geometry(image.width, image.height, input);
  const across = taps(image.width, width, crop.left, crop.width, filter);
  const down = taps(image.height, height, crop.top, crop.height, filter);
  const source = packed(image, channels);
  const narrow = new Uint8ClampedArray(image.height * crop.width * channels);
  const row = crop.width * channels;
  pass(source, image.height, image.width * channels, channels, across, channels, narrow, row, channels);
  const square = new Uint8ClampedArray(crop.height * row);
  pass(narrow, crop.width, channels, row, down, channels, square, channels, row);
  return square;
}

/** What the model takes, `(1, C, H, W)` in float32, normalised. */
export function prepare(image, input) {
  const [, channels, H, W] = input.shape;
  const square = resample(image, input);
  const x = new Float32Array(channels * H * W);
  for (let c = 0; c < channels; c++) {
    for (let i = 0; i < H * W; i++) x[c * H * W + i] = (square[i * channels + c] / 255 - input.mean[c]) / input.std[c];
  }
  return x;
}
