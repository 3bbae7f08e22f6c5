// The page itself: what the reader presses, and what is shown for it.
import { Engine } from "./engine.js";
import { lackOf } from "./gpu.js";
import { clarity, drawMap, drawScale, isFlat, range } from "./overlay.js";
import { geometry } from "./preprocess.js";
import { areMixed, drawChart, fillTable, measure, mebi, report } from "./timing.js";
import { lying, turn } from "./upright.js";

const TOP = 5;
const CANVAS = 16e6; // pixels; some phones' canvases end there
const $ = (id) => document.getElementById(id);

/** What is loaded and shown. */
export const state = {
  index: null, // what models/index.json says
  engine: null,
  model: null, // the one of the index that is chosen
  file: null, // its file in the precision that is chosen
  picture: null,
  classes: null, // likeliest first
  maps: null, // all of the picture's
  map: null, // the one that is shown
  isLayerChosen: false,
  report: null, // times
};

const last = (path) => path.split("/").at(-1);
const amount = ({ file, loaded, bytes }) => `${last(file)}: ${mebi(loaded)} of ${mebi(bytes)}`;

function say(message, isError = false) {
  if ($("status").textContent === message) return;
  $("status").textContent = message;
  $("status").classList.toggle("error", isError);
}

function progress({ file, loaded, bytes }) {
  for (const id of ["progress", "loaded"]) $(id).hidden = loaded >= bytes;
  $("progress").value = loaded / bytes;
  $("loaded").textContent = amount({ file, loaded, bytes }); // not read out: it changes often
  if (loaded < bytes) say(`Loading ${last(file)}`);
}

/** Do work whose failure the reader is told. */
async function told(work) {
  try {
    return await work();
  } catch (error) {
    for (const id of ["progress", "loaded"]) $(id).hidden = true;
    say(error.message, true);
  }
}

async function json(file) {
  const response = await fetch(file);
  if (!response.ok) throw new Error(`Cannot load ${file}: the server answered ${response.status}`);
  return response.json();
}

async function start() {
  say("Loading");
  const index = (state.index = await json("models/index.json"));
  const files = index.models.flatMap((model) => model.files);
  for (const file of files) file.manifest = await json(`models/${file.manifest}`);
  $("model").replaceChildren(...index.models.map(({ name }) => new Option(name)));
  $("model-row").hidden = index.models.length === 1;
  const { runtime, versions } = index;
  $("made").textContent = `ONNX Runtime Web ${runtime.version}; timm-mobilevit-zoo ${versions.timm_mobilevit_zoo}`;
  const cores = navigator.hardwareConcurrency || 1;
  $("threads").value = self.crossOriginIsolated ? Math.min(4, cores) : 1;
  $("threads").disabled = !self.crossOriginIsolated;
  $("threads-note").hidden = self.crossOriginIsolated;
  $("camera-note").hidden = Boolean(navigator.mediaDevices);
  state.engine = new Engine(progress);
  await state.engine.call("start", { backend: "wasm", threads: Number($("threads").value), sizes: runtime.files });
  await choose(index.models[0], index.models[0].files[0]);
  for (const id of ["model", "precision", "file", "time"]) $(id).disabled = false;
  $("camera").disabled = !navigator.mediaDevices;
  if (files.some(({ precision }) => precision === "fp16") && !(await lackOf(navigator.gpu, "fp32"))) {
    const lack = await lackOf(navigator.gpu, "fp16");
    $("gpu-note").hidden = !lack;
    $("gpu-note").textContent = `${lack}: fp16 models are timed on WASM only.`;
  }
}

/** What the reader might otherwise expect of a precision. */
const WITH_MAPS = "Attention maps are always computed in fp32.";
const FP16 =
  "Photos are classified on WASM, which has no 16-bit arithmetic: it converts numbers to 32 bits and back, so fp16 is " +
  "a smaller download, but usually no faster.";
const noteOn = (model, { precision }) =>
  [...(precision === "fp16" ? [FP16] : []), ...(precision !== "fp32" && model.maps ? [WITH_MAPS] : [])].join(" ");

/** Load a file of a model and show what it is. */
async function choose(model, file) {
  await state.engine.call("open", file);
  const isOther = model !== state.model;
  Object.assign(state, { model, file });
  $("precision").replaceChildren(
    ...model.files.map(({ precision, bytes }) => new Option(`${precision}, ${mebi(bytes)}`, precision)),
  );
  $("precision").value = file.precision;
  $("precision-row").hidden = model.files.length === 1;
  $("precision-note").textContent = noteOn(model, file);
  $("precision-note").hidden = !$("precision-note").textContent;
  const { input, architecture, labels, output } = file.manifest;
  const [, , H, W] = input.shape;
  const count = output.shape.at(-1);
  $("about").textContent =
    `${architecture}: ${W} × ${H} pixels, ${count} classes${labels ? "" : " (no names)"}, ` +
    `${file.precision}, ${mebi(file.bytes)}${model.random ? "; random weights" : ""}`;
  const maps = model.maps?.outputs ?? [];
  $("attention").hidden = !maps.length;
  $("no-attention").hidden = Boolean(maps.length);
  if (isOther) $("layer").replaceChildren(...maps.map(({ title }) => new Option(title)));
  if (isOther) state.isLayerChosen = false;
  say("Ready");
  if (state.picture) await classify();
}

/** Have a model of the index, in the precision that the reader has chosen, or keep what was there. */
async function pick(model) {
  await told(() => choose(model, model.files[$("precision").selectedIndex]));
  $("model").selectedIndex = state.index.models.indexOf(state.model);
  $("precision").value = state.file.precision;
}

/** The map to begin with: the roll-out, or else the clearest of at least 4 x 4 cells, where any has so many. */
function foremost(maps, values) {
  const ranks = maps.map(({ kind, cells, output }) => {
    const clear = clarity(Array.from(values[output].data), cells);
    return [clear > 0, kind === "roll-out", Math.min(...cells) >= 4, clear].map(Number);
  });
  const isLess = (a, b) => a.map((value, i) => value - b[i]).find((less) => less) < 0;
  return ranks.reduce((best, rank, i) => (isLess(ranks[best], rank) ? i : best), 0);
}

/** Read the pixels of an image or video frame, upright, smaller where a canvas could not hold them. */
function pixelsOf(source, width, height, orientation = 1) {
  const fit = Math.min(1, Math.sqrt(CANVAS / (width * height)));
  const canvas = document.createElement("canvas");
  const sides = [width, height].map((side) => Math.max(1, Math.floor(side * fit)));
  const [across, down] = orientation > 4 ? [sides[1], sides[0]] : sides;
  Object.assign(canvas, { width: across, height: down });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.fillStyle = "white"; // behind what is transparent, as Python's read_image has it
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.transform(...turn(orientation, ...sides));
  context.drawImage(source, 0, 0, ...sides);
  return { canvas, pixels: context.getImageData(0, 0, canvas.width, canvas.height) };
}

async function open(file) {
  stopCamera();
  let bitmap;
  const [content, orientation] = await lying(file);
  try {
    bitmap = await createImageBitmap(content, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Error(`This browser cannot read ${file.name} as an image`);
  }
  state.picture = pixelsOf(bitmap, bitmap.width, bitmap.height, orientation);
  bitmap.close();
  await classify();
}

/** Show the part of the picture that the model sees. */
function showPicture() {
  const { canvas: source } = state.picture;
  const { width, height, crop } = geometry(source.width, source.height, state.file.manifest.input);
  const [across, down] = [source.width / width, source.height / height];
  const [w, h] = [crop.width * across, crop.height * down];
  const canvas = $("picture");
  // A small picture is shown as smooth as the model sees it, not as a few large pixels.
  const scale = Math.max(Math.min(1, 1024 / Math.max(w, h)), crop.width / w);
  Object.assign(canvas, { width: Math.max(1, Math.round(w * scale)), height: Math.max(1, Math.round(h * scale)) });
  canvas.style.aspectRatio = `${crop.width} / ${crop.height}`;
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, crop.left * across, crop.top * down, w, h, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
  $("hint").hidden = true;
  $("stage").classList.add("full");
}

async function classify() {
  showPicture();
  const { file, picture, engine } = state;
  const { data, width, height } = picture.pixels;
  await engine.call("image", { data, width, height });
  const { input, output, labels } = file.manifest;
  const logits = (await engine.call("run", { file: file.file, input }))[output.name].data;
  const highest = logits.reduce((a, b) => Math.max(a, b));
  const exps = Array.from(logits, (logit) => Math.exp(logit - highest));
  const sum = exps.reduce((a, b) => a + b);
  state.classes = exps
    .map((exp, index) => ({ label: String(labels?.[index] ?? index), index, probability: exp / sum }))
    .sort((a, b) => b.probability - a.probability)
    .slice(0, TOP);
  showClasses();
  state.maps = null;
  await showAttention();
  say("Ready");
}

function showClasses() {
  $("no-classes").hidden = true;
  $("classes").replaceChildren(
    ...state.classes.map(({ label, probability }) => {
      const line = document.createElement("li");
      const [name, share, bar] = ["name", "share", "bar"].map((part) => {
        const node = document.createElement("span");
        node.className = part;
        line.append(node);
        return node;
      });
      name.textContent = label;
      share.textContent = `${(100 * probability).toFixed(1)}%`;
      bar.append(document.createElement("span"));
      bar.firstChild.style.width = `${100 * probability}%`;
      return line;
    }),
  );
}

async function showAttention() {
  const { model, file, engine } = state;
  const shown = $("show").checked && state.picture && model.maps;
  $("attention-shown").hidden = !shown;
  $("overlay").hidden = !shown;
  $("picture").classList.toggle("grey", Boolean(shown));
  if (!shown) return;
  if (!state.maps) {
    await engine.call("open", model.maps);
    state.maps = await engine.call("run", { file: model.maps.file, input: file.manifest.input });
    if (!state.isLayerChosen) $("layer").selectedIndex = foremost(model.maps.outputs, state.maps);
  }
  const { output, title, kind, text } = model.maps.outputs[$("layer").selectedIndex];
  const { data, dims } = state.maps[output];
  state.map = { title, kind, values: Array.from(data), height: dims[0], width: dims[1] };
  drawMap($("overlay"), state.map);
  drawScale($("scale"), kind);
  [$("low").textContent, $("high").textContent] = range(state.map.values, kind).map((value) => value.toPrecision(3));
  const flat = isFlat(state.map.values) ? "; in this picture it is the same everywhere" : "";
  $("kind").textContent = `${title}: ${text}${flat}`;
}

async function reshow() {
  if ($("show").checked && !state.maps) say("Computing the attention maps");
  await showAttention();
  say("Ready");
}

// The camera

let stream = null;

function stopCamera() {
  for (const track of stream?.getTracks() ?? []) track.stop();
  stream = null;
  $("camera").setAttribute("aria-pressed", "false");
  $("camera").textContent = "Camera";
  $("classes").setAttribute("aria-live", "polite");
}

async function startCamera() {
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    throw new Error(`Cannot use the camera: ${error.message}`);
  }
  $("camera").setAttribute("aria-pressed", "true");
  $("camera").textContent = "Take a picture";
  $("classes").setAttribute("aria-live", "off"); // or each frame would be read out
  const video = $("video");
  video.srcObject = stream;
  await video.play();
  while (stream) {
    state.picture = pixelsOf(video, video.videoWidth, video.videoHeight);
    await classify();
    await new Promise((next) => setTimeout(next, 50));
  }
}

// Times

let stop = null;

async function time() {
  const [runs, threads] = [Number($("runs").value), Number($("threads").value)];
  const announce = (message) => ($("timing-status").textContent = message);
  stopCamera();
  stop = new AbortController();
  $("time").disabled = true;
  $("stop").hidden = false;
  try {
    const { models, runtime } = state.index;
    const loading = (part) => announce(`Loading ${amount(part)}`);
    const given = { models, sizes: runtime.files, runs, threads, signal: stop.signal };
    const rows = await measure({ ...given, say: announce, progress: loading });
    state.report = report(rows, state.index, runs);
    fillTable($("rows"), rows);
    drawChart($("chart"), rows);
    $("json").value = JSON.stringify(state.report, null, 1);
    $("timings").hidden = false;
    $("to-fp32").hidden = !areMixed(rows);
    announce(
      "Done. “Ratio” compares each time with the first row" +
        (areMixed(rows) ? ", “to fp32” with the fp32 file of the same model on the same backend." : "."),
    );
  } catch (error) {
    announce(error.message);
  } finally {
    $("time").disabled = false;
    $("stop").hidden = true;
  }
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("json").value);
    $("copied").textContent = "Copied";
  } catch {
    document.querySelector("details").open = true;
    $("json").select();
    $("copied").textContent = "This browser does not let the page copy. The text is selected: copy it yourself.";
  }
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) told(() => open(target.files[0]));
  target.value = ""; // so that the same file can be chosen again
});
$("stage").addEventListener("dragover", (event) => {
  event.preventDefault();
  $("stage").classList.add("over");
});
$("stage").addEventListener("dragleave", () => $("stage").classList.remove("over"));
$("stage").addEventListener("drop", (event) => {
  event.preventDefault();
  $("stage").classList.remove("over");
  const [file] = event.dataTransfer.files;
  if (file && state.model) told(() => open(file));
});
// Of another model, the same precision: to compare models, one changes nothing else. All have the same ones.
$("model").addEventListener("change", () => pick(state.index.models[$("model").selectedIndex]));
$("precision").addEventListener("change", () => pick(state.model));
$("show").addEventListener("change", () => told(reshow));
$("strength").addEventListener("input", () => ($("overlay").style.opacity = $("strength").value / 100));
$("layer").addEventListener("change", () => {
  state.isLayerChosen = true;
  told(reshow);
});
$("camera").addEventListener("click", () => told(() => (stream ? stopCamera() : startCamera())));
$("timing").addEventListener("submit", (event) => {
  event.preventDefault();
  time();
});
$("stop").addEventListener("click", () => stop?.abort());
$("copy").addEventListener("click", copy);

told(start);
