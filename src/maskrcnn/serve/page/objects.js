// Objects of an answer, with their bitmaps, colours, and whether they are shown.

import { bitmapOf, holds, painted } from "./masks.js";

// Hues that stay apart under the common colour blindnesses, after Okabe and Ito, and shades of them.
const HUES = [[0, 150, 230], [240, 150, 0], [0, 175, 125], [230, 90, 175], [240, 225, 50], [225, 85, 20], [130, 110, 235]];
const SHADES = [0, 0.4, -0.3, 0.2, -0.15, 0.55];

function shaded(hue, shade) {
  return hue.map((v) => Math.round(shade < 0 ? v * (1 + shade) : v + (255 - v) * shade));
}

export function classColor(index) {
  return HUES[index % HUES.length];
}

// `order` gives each class its place, so that a class has one hue in all pictures.
export function objectsOf(answer, order) {
  const seen = new Map();
  return answer.instances.map((instance, index) => {
    const place = order(instance.category), count = seen.get(instance.category) ?? 0;
    seen.set(instance.category, count + 1);
    const color = shaded(classColor(place), SHADES[count % SHADES.length]);
    const rle = instance.segmentation && "counts" in instance.segmentation ? instance.segmentation : null;
    const bitmap = rle ? bitmapOf(rle) : null;
    const [, , w, h] = instance.bbox;
    return {
      index, color, bitmap, instance, category: instance.category, score: instance.score, box: instance.bbox,
      area: bitmap ? bitmap.area : w * h, layers: bitmap ? painted(bitmap, color) : null,
    };
  });
}

export function shown(objects, threshold, hiddenClasses) {
  return objects.filter((o) => o.score >= threshold && !hiddenClasses.has(o.category));
}

// The smallest shown object at a point of the picture.
export function objectAt(objects, x, y) {
  let best = null;
  for (const o of objects) {
    const [left, top, w, h] = o.box;
    const hit = o.bitmap ? holds(o.bitmap, x, y) : x >= left && y >= top && x < left + w && y < top + h;
    if (hit && (!best || o.area < best.area)) best = o;
  }
  return best;
}

// Draw objects on a context whose unit is the picture's pixel; `line` is a line's width in these.
export function drawObjects(context, objects, { opacity, line, chosen, texts }) {
  context.imageSmoothingEnabled = false;
  for (const o of [...objects].sort((a, b) => b.area - a.area)) {
    const bold = o === chosen, css = `rgb(${o.color.join(" ")})`;
    if (o.layers) {
      const { x, y, step, width, height } = o.bitmap;
      context.globalAlpha = bold ? Math.min(1, opacity + 0.3) : opacity;
      context.drawImage(o.layers.fill, x, y, width * step, height * step);
      context.globalAlpha = 1;
      context.drawImage(o.layers.rim, x, y, width * step, height * step);
    }
    context.globalAlpha = 1;
    context.strokeStyle = css;
    context.lineWidth = bold ? 3 * line : line;
    context.strokeRect(...o.box);
    drawKeypoints(context, o, 3 * line);
  }
  if (texts) for (const o of [...objects].reverse()) drawText(context, o, line);
}

function drawKeypoints(context, object, radius) {
  const points = object.instance.keypoints ?? [];
  for (let i = 0; i + 2 < points.length; i += 3) {
    if (points[i + 2] < 0.05) continue;
    context.beginPath();
    context.arc(points[i] + 0.5, points[i + 1] + 0.5, radius, 0, 2 * Math.PI);
    context.fillStyle = "white";
    context.fill();
    context.stroke();
  }
}

function drawText(context, object, line) {
  const [x, y, w, h] = object.box, size = 13 * line, text = `${object.category} ${object.score.toFixed(2)}`;
  if (w * h < size * size * 2) return;
  context.font = `${size}px system-ui, sans-serif`;
  const wide = context.measureText(text).width + 6 * line, tall = size * 1.35, top = y >= tall ? y - tall : y;
  const [red, green, blue] = object.color;
  context.fillStyle = `rgb(${object.color.join(" ")})`;
  context.fillRect(x, top, wide, tall);
  context.fillStyle = 0.299 * red + 0.587 * green + 0.114 * blue > 140 ? "black" : "white";
  context.fillText(text, x + 3 * line, top + size * 1.02);
}
