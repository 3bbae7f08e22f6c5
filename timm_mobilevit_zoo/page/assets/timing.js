// How long each model takes here, on each back end.
import { Engine } from "./engine.js";

const WARM_UP = 5;
const GPU = "WebGPU";

/** The settings to try: `{ backend, threads, name }`. */
export function backends(threads) {
  const several = self.crossOriginIsolated && threads > 1;
  return [
    { backend: "wasm", threads: 1, name: "WASM, 1 thread" },
    ...(several ? [{ backend: "wasm", threads, name: `WASM, ${threads} threads` }] : []),
    { backend: "webgpu", threads: 1, name: GPU },
  ];
}

/** The value below which a share of the sorted times lies. */
function quantile(sorted, share) {
  const at = share * (sorted.length - 1);
  const below = Math.floor(at);
  return sorted[below] + (at - below) * ((sorted[below + 1] ?? sorted[below]) - sorted[below]);
}

/**
 * Time models' files on one back end, in turns, so that a device that grows warm slows all of them. Return rows with
 * `times` and `logits`, or an `error`. `say` is called with what is being done, `signal` stops it.
 */
async function measureOne(setting, files, sizes, runs, say, progress, signal) {
  const rows = files.map(({ model, precision, bytes }) => ({ model, precision, bytes, times: [] }));
  const told = files.map(({ file, manifest: { input, output } }) => ({ file, input, output }));
  const engine = new Engine(progress);
  const abort = () => engine.close();
  signal.addEventListener("abort", abort);
  const guarded = async (row, work) => {
    try {
      if (!row.error) await work();
    } catch (error) {
      row.error = error.message;
    }
  };
  try {
    say(`${setting.name}: starting`);
    await engine.call("start", { ...setting, sizes });
    for (const [i, row] of rows.entries()) {
      say(`${setting.name}: loading ${row.model} (${row.precision})`);
      await guarded(row, async () => {
        await engine.call("open", files[i]);
        row.threads = await engine.call("threads");
        row.logits = await engine.call("check", told[i]);
      });
    }
    for (let run = -WARM_UP; run < runs && !signal.aborted; run++) {
      say(`${setting.name}: ${run < 0 ? "warming up" : `run ${run + 1} of ${runs}`}`);
      for (const [i, row] of rows.entries()) {
        await guarded(row, async () => {
          const time = await engine.call("time", told[i]);
          if (run >= 0) row.times.push(time);
        });
      }
    }
  } catch (error) {
    for (const row of rows) row.error ??= error.message;
  } finally {
    signal.removeEventListener("abort", abort);
    engine.close();
  }
  const rest = files.map(({ manifest }) => ({ size: manifest.input.shape.slice(2), tolerance: manifest.tolerance }));
  return rows.map((row, i) => ({ ...row, backend: setting.name, ...rest[i] }));
}

/** How far logits are from others, in standard deviations of those: the largest difference, in 8 bits the mean one. */
function distance(found, expected, precision) {
  const mean = expected.reduce((a, b) => a + b) / expected.length;
  const deviation = Math.sqrt(expected.reduce((sum, value) => sum + (value - mean) ** 2, 0) / expected.length);
  const differences = Array.from(found, (value, i) => Math.abs(value - expected[i]));
  const most = differences.reduce((a, b) => Math.max(a, b), 0);
  const usual = Math.sqrt(differences.reduce((sum, value) => sum + value ** 2, 0) / expected.length);
  return (precision === "int8" ? usual : most) / deviation;
}

/**
 * Time `models`, each of their files, on all back ends; return rows with `median`, `q1` and `q3` in ms, `ratio` to the
 * first that ran, `ratioToFp32`, to the same model's fp32 on the same back end where that ran, and how far the logits
 * are `off` those of the first back end that ran the file.
 */
export async function measure({ models, sizes, runs, threads, say, progress, signal }) {
  const rows = [];
  const all = models.flatMap(({ name, files }) => files.map((file) => ({ ...file, model: name })));
  for (const setting of backends(threads)) {
    rows.push(...(await measureOne(setting, all, sizes, runs, say, progress, signal)));
    if (signal.aborted) throw new Error("Stopped");
  }
  for (const row of rows) {
    if (row.error) continue;
    const sorted = [...row.times].sort((a, b) => a - b);
    Object.assign(row, { q1: quantile(sorted, 0.25), median: quantile(sorted, 0.5), q3: quantile(sorted, 0.75) });
  }
  const ran = rows.filter((row) => !row.error);
  for (const row of ran) {
    const same = ran.filter(({ model }) => model === row.model);
    const whole = same.find(({ backend, precision }) => backend === row.backend && precision === "fp32");
    row.ratio = row.median / ran[0].median;
    row.ratioToFp32 = whole ? row.median / whole.median : null;
    row.off = distance(row.logits, same.find(({ precision }) => precision === row.precision).logits, row.precision);
  }
  for (const row of rows) delete row.logits;
  return rows;
}

/** What a reader may send on: the rows, and the device and settings that they hold for. */
export function report(rows, index, runs) {
  const { userAgent, hardwareConcurrency, deviceMemory = null } = navigator;
  const device = { userAgent, hardwareConcurrency, deviceMemory, crossOriginIsolated: self.crossOriginIsolated };
  const versions = { "onnxruntime-web": index.runtime.version, ...index.versions };
  return { date: new Date().toISOString(), device, versions, batch: 1, warmUp: WARM_UP, runs, unit: "ms", rows };
}

const node = (tag, attributes = {}, children = [], space = "http://www.w3.org/1999/xhtml") => {
  const made = document.createElementNS(space, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
};
const shape = (tag, attributes, children) => node(tag, attributes, children, "http://www.w3.org/2000/svg");
export const mebi = (bytes) => `${(bytes / 2 ** 20).toFixed(1)} MiB`;
const short = (time) => (time < 100 ? time.toPrecision(3) : time.toFixed(0));

/** Whether rows compare precisions. */
export const areMixed = (rows) => rows.some(({ precision }) => precision !== rows[0].precision);

/** Fill the body of a table, whose last column is there where rows compare precisions. */
export function fillTable(body, rows) {
  const isMixed = areMixed(rows);
  body.replaceChildren(
    ...rows.map((row) => {
      const head = node("th", { scope: "row" }, [row.model]);
      head.append(node("span", {}, [`${row.precision}, ${mebi(row.bytes)}`]), node("span", {}, [row.backend]));
      const isWrong = !row.error && !(row.off <= row.tolerance); // NaN is not
      const text = `logits off by ${row.off?.toFixed(3)} standard deviations from the first backend’s`;
      if (isWrong) head.append(node("span", { class: "error" }, [text]));
      const whole = { colspan: isMixed ? 4 : 3, class: "error" };
      if (row.error) return node("tr", {}, [head, node("td", whole, [row.error])]);
      const cells = [short(row.median), `${short(row.q1)}–${short(row.q3)}`, row.ratio.toFixed(2)];
      if (isMixed) cells.push(row.ratioToFp32?.toFixed(2) ?? "–");
      return node("tr", {}, [head, ...cells.map((cell) => node("td", {}, [cell]))]);
    }),
  );
}

/** Draw a bar for each row that ran: as long as the median, with a line from quartile to quartile. */
export function drawChart(chart, rows) {
  const ran = rows.filter((row) => !row.error);
  const most = Math.max(...ran.map((row) => row.q3));
  const share = (time) => `${(100 * time) / most}%`;
  chart.replaceChildren(
    ...ran.map((row) => {
      const bar = shape("rect", { height: 14, width: share(row.median), class: row.backend === GPU ? "gpu" : "bar" });
      const spread = shape("line", { y1: 7, y2: 7, x1: share(row.q1), x2: share(row.q3) });
      const label = node("p", {}, [`${row.model}, ${row.precision}, ${row.backend}: ${short(row.median)} ms`]);
      return node("div", {}, [label, shape("svg", { width: "100%", height: 14 }, [bar, spread])]);
    }),
  );
}
