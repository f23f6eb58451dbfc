// The exported model: pixels in, detections in the picture's own pixels out, as the service answers them.

import * as ort from "../runtime/ort.wasm.bundle.min.mjs";
import { crop, wholePixelBox } from "./paste.js";
import { outlines } from "./outlines.js";
import { resized, resizeSize } from "./resize.js";
import { encode } from "./rle.js";

const fround = Math.fround;

// {facts, session}: the model's settings and the graph, loaded once.
export const ready = load();
ready.catch(() => {}); // whoever asks is told

async function load() {
  // Threads need a page that is isolated from other sites, by two headers that most static servers do not send.
  ort.env.wasm.numThreads = globalThis.crossOriginIsolated ? Math.min(8, navigator.hardwareConcurrency) : 1;
  ort.env.wasm.wasmPaths = { wasm: new URL("../runtime/ort-wasm-simd-threaded.wasm", import.meta.url).href };
  const [facts, graph] = await Promise.all([fetched("../model.json", "json"), fetched("../model.onnx", "arrayBuffer")]);
  return { facts, session: await ort.InferenceSession.create(new Uint8Array(graph)) };
}

async function fetched(name, as) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name.slice(3)}: the server answered ${response.status}.`);
  return response[as]();
}

// `picture`: {data, width, height}, RGBA.
export async function predict(picture) {
  const { facts, session } = await ready, c = facts.config.input, { width, height } = picture;
  const [h, w] = resizeSize(height, width, c.min_size, c.max_size, c.resize);
  const { images, sizes } = batch(resized(picture, h, w, c.resize), h, w, facts);
  const out = await session.run({
    images: new ort.Tensor("float32", images, sizes),
    image_sizes: new ort.Tensor("int64", imageSizes(h, w, sizes[0]), [sizes[0], 2]),
  });
  const instances = [];
  for (let i = 0; i < Number(out.counts.data[0]); i++) {
    const instance = instanceOf(out, i, [height / h, width / w], height, width, facts.config);
    if (instance) instances.push(instance);
  }
  for (const tensor of Object.values(out)) tensor.dispose();
  return { model: facts.config.name, image_size: [height, width], instances };
}

// Planes of red, green and blue, padded with zeros to what the graph takes; `pixels`: RGB, 0..255.
function batch(pixels, h, w, { config, fixed }) {
  const divisor = config.input.size_divisor, count = fixed.batch ?? 1;
  let height = Math.ceil(h / divisor) * divisor, width = Math.ceil(w / divisor) * divisor;
  if (fixed.size) {
    if (height > fixed.size[0] || width > fixed.size[1]) {
      throw new Error(`the model takes pictures of up to ${fixed.size.join(" x ")} pixels, got ${height} x ${width}.`);
    }
    [height, width] = fixed.size;
  }
  const images = new Float32Array(count * 3 * height * width);
  for (let channel = 0; channel < 3; channel++) {
    for (let y = 0; y < h; y++) {
      const row = (channel * height + y) * width;
      for (let x = 0; x < w; x++) images[row + x] = pixels[3 * (y * w + x) + channel];
    }
  }
  return { images, sizes: [count, 3, height, width] };
}

function imageSizes(h, w, count) {
  const sizes = new BigInt64Array(2 * count).fill(1n);
  sizes.set([BigInt(h), BigInt(w)]);
  return sizes;
}

// Detection `i`, or null if nothing of it is inside the picture.
function instanceOf(out, i, [scaleY, scaleX], height, width, config) {
  const raw = out.boxes.data.subarray(4 * i, 4 * i + 4);
  const box = [...raw].map((v, k) => {
    const scaled = fround(v * fround(k % 2 ? scaleY : scaleX));
    return Math.min(Math.max(scaled, 0), k % 2 ? height : width);
  });
  const [x0, y0, x1, y1] = box;
  if (!(x1 > x0 && y1 > y0)) return null;
  const label = Number(out.labels.data[i]);
  const instance = {
    bbox: [x0, y0, x1 - x0, y1 - y0].map((v) => Math.round(100 * v) / 100),
    score: out.scores.data[i],
    category_id: config.category_ids.length ? config.category_ids[label] : label,
    category: config.class_names[label] ?? `class ${label}`,
  };
  if (out.masks && config.mask_head) {
    const side = out.masks.dims[2], probs = out.masks.data.subarray(i * side * side, (i + 1) * side * side);
    const place = config.rules.paste === "torchvision" ? wholePixelBox(box, side) : box;
    const bitmap = crop(probs, side, place, height, width, config.mask_head.threshold);
    instance.segmentation = { size: [height, width], counts: encode(bitmap, height, width) };
    instance.polygons = outlines(bitmap, 1);
  }
  if (out.keypoints) {
    const length = 3 * out.keypoints.dims[2], points = out.keypoints.data.subarray(i * length, (i + 1) * length);
    instance.keypoints = [...points].map((v, k) => (k % 3 === 2 ? v : v * (k % 3 ? scaleY : scaleX) - 0.5));
  }
  return instance;
}
