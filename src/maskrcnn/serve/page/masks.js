// Masks: COCO's compressed run lengths to small bitmaps, one an object, cut to the object's box.

const MOST = 1_000_000; // cells of a bitmap; of larger masks every second pixel, or third ...

// Run lengths of a compressed text: five bits a character, lowest first, from the third on differences.
export function readCounts(text) {
  const counts = [];
  for (let place = 0; place < text.length;) {
    let value = 0, shift = 0, bits;
    do {
      bits = text.charCodeAt(place++) - 48;
      value += (bits & 31) * 2 ** shift;
      shift += 5;
    } while (bits & 32);
    if (bits & 16) value -= 2 ** shift;
    counts.push(counts.length > 2 ? value + counts[counts.length - 2] : value);
  }
  return counts;
}

// The mask within its own extent: {x, y, step, width, height, cells, area}. Runs go down the columns.
export function bitmapOf(rle) {
  const [height] = rle.size;
  const runs = [];
  let at = 0, area = 0, x0 = Infinity, x1 = 0, y0 = Infinity, y1 = 0;
  readCounts(rle.counts).forEach((count, i) => {
    for (let left = count, from = at; i % 2 && left > 0;) { // columns of a run one by one
      const x = Math.floor(from / height), top = from % height, here = Math.min(left, height - top);
      runs.push([x, top, top + here]);
      x0 = Math.min(x0, x); x1 = Math.max(x1, x + 1); y0 = Math.min(y0, top); y1 = Math.max(y1, top + here);
      area += here; left -= here; from += here;
    }
    at += count;
  });
  if (!area) return { x: 0, y: 0, step: 1, width: 0, height: 0, cells: new Uint8Array(0), area };
  const step = Math.max(1, Math.ceil(Math.sqrt((x1 - x0) * (y1 - y0) / MOST)));
  const columns = Math.ceil((x1 - x0) / step), rows = Math.ceil((y1 - y0) / step);
  const cells = new Uint8Array(columns * rows);
  for (const [x, top, bottom] of runs) {
    if ((x - x0) % step) continue;
    const column = (x - x0) / step;
    for (let row = Math.ceil((top - y0) / step); row * step + y0 < bottom; row++) cells[row * columns + column] = 1;
  }
  return { x: x0, y: y0, step, width: columns, height: rows, cells, area };
}

// Does the mask hold the picture's point (x, y)?
export function holds(bitmap, x, y) {
  const column = Math.floor((x - bitmap.x) / bitmap.step), row = Math.floor((y - bitmap.y) / bitmap.step);
  return column >= 0 && row >= 0 && column < bitmap.width && row < bitmap.height
    && bitmap.cells[row * bitmap.width + column] === 1;
}

// Two canvases of a mask in one colour: what it fills, and its rim.
export function painted(bitmap, [red, green, blue]) {
  const { width, height, cells } = bitmap;
  if (!width) return null;
  const fill = new ImageData(width, height), rim = new ImageData(width, height);
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i++) {
      if (!cells[i]) continue;
      const inside = row && column && row < height - 1 && column < width - 1
        && cells[i - 1] && cells[i + 1] && cells[i - width] && cells[i + width];
      (inside ? fill : rim).data.set([red, green, blue, 255], 4 * i);
      if (!inside) fill.data.set([red, green, blue, 255], 4 * i);
    }
  }
  return { fill: canvasOf(fill), rim: canvasOf(rim) };
}

function canvasOf(pixels) {
  const canvas = document.createElement("canvas");
  canvas.width = pixels.width;
  canvas.height = pixels.height;
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}
