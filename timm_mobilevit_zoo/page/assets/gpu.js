// What this device's WebGPU lacks, known before a model is given to it.

/**
 * Why WebGPU cannot run models of a precision here, in words, and "" where it can. `gpu` is the browser's
 * `navigator.gpu`. Files in 16 bits need `shader-f16`, without which the runtime would refuse them in words of its own.
 */
export async function lackOf(gpu, precision) {
  if (!gpu) return "This browser has no WebGPU";
  const adapter = await gpu.requestAdapter().catch(() => null);
  if (!adapter) return "This browser has WebGPU, but this device cannot use it";
  if (precision !== "fp16" || adapter.features.has("shader-f16")) return "";
  return "WebGPU on this device cannot compute in 16 bits (it lacks shader-f16)";
}
