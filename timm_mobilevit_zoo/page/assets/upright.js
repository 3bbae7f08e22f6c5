// Photos upright, as their EXIF orientation says. Browsers turn JPEG, PNG and AVIF themselves; WebP is left lying by some.

const ORIENTATION = 0x0112; // the number of that tag
const text = (view, at, length) => String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at, length));

/** The orientation that EXIF's bytes tell, 1 where they tell none. */
function orientationIn(exif) {
  const view = text(exif, 0, 4) === "Exif" ? new DataView(exif.buffer, exif.byteOffset + 6) : exif;
  const little = text(view, 0, 2) === "II";
  const first = view.getUint32(4, little);
  for (let i = 0; i < view.getUint16(first, little); i++) {
    const entry = first + 2 + 12 * i;
    if (view.getUint16(entry, little) === ORIENTATION) return view.getUint16(entry + 8, little);
  }
  return 1;
}

/** Return what to decode instead of an image file, and the orientation that no browser then heeds: 1, but for WebP. */
export async function lying(file) {
  const head = new DataView(await file.slice(0, 12).arrayBuffer());
  if (head.byteLength < 12 || text(head, 0, 4) !== "RIFF" || text(head, 8, 4) !== "WEBP") return [file, 1];
  const view = new DataView(await file.arrayBuffer());
  let orientation = 1;
  for (let at = 12; at + 8 <= view.byteLength; ) {
    const size = view.getUint32(at + 4, true);
    if (text(view, at, 4) === "EXIF") {
      try {
        orientation = orientationIn(new DataView(view.buffer, at + 8));
      } catch {
        // malformed tags do not make the pixels unreadable
      }
      view.setUint8(at, "X".charCodeAt(0)); // a chunk of no known name, which decoders pass over
    }
    at += 8 + size + (size % 2);
  }
  return [new Blob([view.buffer], { type: file.type }), orientation >= 1 && orientation <= 8 ? orientation : 1];
}

/** What a canvas does, `transform(...turn(...))`, so that an image of width x height drawn at 0, 0 stands upright. */
export function turn(orientation, width, height) {
  return {
    1: [1, 0, 0, 1, 0, 0],
    2: [-1, 0, 0, 1, width, 0],
    3: [-1, 0, 0, -1, width, height],
    4: [1, 0, 0, -1, 0, height],
    5: [0, 1, 1, 0, 0, 0],
    6: [0, 1, -1, 0, height, 0],
    7: [0, -1, -1, 0, height, width],
    8: [0, -1, 1, 0, 0, width],
  }[orientation];
}
