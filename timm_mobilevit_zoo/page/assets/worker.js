// One ONNX Runtime with one setting: how many threads it has is fixed by its first use, so each setting gets a worker.
import { lackOf } from "./gpu.js";
import { prepare } from "./preprocess.js";

const BUILDS = { wasm: ["ort.wasm.min.mjs", ""], webgpu: ["ort.webgpu.min.mjs", ".asyncify"] };

let ort, provider, image;
const sessions = new Map();

/** Read a file and say how far it is; `bytes` is its size where the server's header does not tell. */
async function download(file, bytes) {
  const response = await fetch(new URL(file, import.meta.url));
  if (!response.ok) throw new Error(`Cannot load ${file}: the server answered ${response.status}`);
  const parts = [];
  let loaded = 0;
  for (const reader = response.body.getReader(); ; ) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    loaded += value.length;
    postMessage({ progress: { file, loaded, bytes } });
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

const calls = {
  /** Start the runtime; return how many threads it has. `sizes` are those of its files. */
  async start({ backend, threads, sizes }) {
    await need(backend);
    const [module, kind] = BUILDS[backend];
    ort = await import(`./runtime/${module}`);
    const wasm = `ort-wasm-simd-threaded${kind}.wasm`;
    ort.env.logLevel = "error";
    ort.env.wasm.numThreads = threads;
    ort.env.wasm.wasmPaths = new URL("runtime/", import.meta.url).href;
    ort.env.wasm.wasmBinary = (await download(`runtime/${wasm}`, sizes[wasm])).buffer;
    provider = backend;
  },

  async open({ file, bytes, precision }) {
    if (sessions.has(file)) return;
    await need(provider, precision);
    const content = await download(`models/${file}`, bytes);
    // It would warn of each 16-bit operator that it computes in 32 bits.
    const options = { executionProviders: [provider], logSeverityLevel: 3 };
    sessions.set(file, await ort.InferenceSession.create(content, options));
  },

  image(pixels) {
    image = pixels;
  },

  /** Return each output of a model for the image, values and shape by name. */
  async run({ file, input }) {
    const found = await sessions.get(file).run({ [input.name]: tensor(prepare(image, input), input) });
    return Object.fromEntries(Object.entries(found).map(([name, { data, dims }]) => [name, { data, dims }]));
  },

  /** Return what a model makes of noise. */
  async check({ file, input, output }) {
    return (await sessions.get(file).run({ [input.name]: noise(input) }))[output.name].data;
  },

  /** Run a model on noise; return milliseconds, the result's way back included. */
  async time({ file, input }) {
    const feeds = { [input.name]: noise(input) };
    const began = performance.now();
    await sessions.get(file).run(feeds);
    return performance.now() - began;
  },

  threads: () => ort.env.wasm.numThreads,
};

/** Fail in words where the device has not what a back end needs. */
async function need(backend, precision) {
  const lack = backend === "webgpu" ? await lackOf(navigator.gpu, precision) : "";
  if (lack) throw new Error(lack);
}

const tensor = (values, input) => new ort.Tensor("float32", values, input.shape);

/** The same numbers in -1..1 each time, so that what comes out can be compared. */
function noise(input) {
  let seed = 1;
  const next = () => ((seed = (Math.imul(seed, 1664525) + 1013904223) | 0) / 2 ** 31);
  return tensor(Float32Array.from({ length: input.shape.reduce((a, b) => a * b) }, next), input);
}

let queue = Promise.resolve(); // one at a time: a session runs one image
onmessage = ({ data: { id, call, args } }) => {
  queue = queue.then(async () => {
    try {
      postMessage({ id, result: await calls[call](args) });
    } catch (error) {
      postMessage({ id, error: String(error?.message ?? error) });
    }
  });
};
