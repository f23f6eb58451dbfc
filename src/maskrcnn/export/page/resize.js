// The resize of test time, pixel for pixel as in Python: Pillow's, OpenCV's and torchvision's bilinear filters.

const fround = Math.fround;

// Height and width that the network sees, by each original's rounding.
export function resizeSize(height, width, minSize, maxSize, resize) {
  if (resize !== "pillow") {
    const scale = Math.min(maxSize / Math.max(height, width), minSize / Math.min(height, width));
    const half = resize === "opencv" ? 0.5 : 0;
    return [Math.max(1, Math.floor(height * scale + half)), Math.max(1, Math.floor(width * scale + half))];
  }
  const scale = minSize / Math.min(height, width);
  let [h, w] = height < width ? [minSize, scale * width] : [scale * height, minSize];
  const longest = Math.max(h, w);
  if (longest > maxSize) [h, w] = [h * (maxSize / longest), w * (maxSize / longest)];
  return [Math.max(1, Math.floor(h + 0.5)), Math.max(1, Math.floor(w + 0.5))];
}

// RGB, h x w x 3, of a picture {data, width, height} in RGBA.
export function resized({ data, width, height }, h, w, resize) {
  const rgb = new Uint8Array(3 * width * height);
  for (let i = 0, j = 0; j < rgb.length; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  if (h === height && w === width) return rgb;
  if (resize === "opencv") return opencv(rgb, height, width, h, w);
  if (resize === "torchvision") {
    const rows = interpolated(rgb, height, h, { outer: 1, inner: 3 * width });
    return interpolated(rows, width, w, { outer: h, inner: 3 });
  }
  const columns = w === width ? rgb : pillow(rgb, width, w, { outer: height, inner: 3 });
  return h === height ? columns : pillow(columns, height, h, { outer: 1, inner: 3 * w });
}

// Pillow's antialiased bilinear filter along one axis of an array (outer, length, inner), with its 22 bits.
function pillow(pixels, length, newLength, { outer, inner }) {
  const scale = length / newLength, support = Math.max(1, scale);
  const kernels = Array.from({ length: newLength }, (_, n) => {
    const center = (n + 0.5) * scale, first = Math.max(0, Math.trunc(center - support + 0.5));
    const count = Math.min(length, Math.trunc(center + support + 0.5)) - first;
    const weights = Array.from({ length: count }, (_, k) => {
      return Math.max(0, 1 - Math.abs((k + first - center + 0.5) * (1 / support)));
    });
    const sum = weights.reduce((a, b) => a + b, 0);
    return { first, whole: Int32Array.from(weights, (weight) => Math.trunc(0.5 + (weight / sum) * 2 ** 22)) };
  });
  const out = new Uint8Array(outer * newLength * inner);
  for (let o = 0, to = 0; o < outer; o++) {
    for (const { first, whole } of kernels) {
      const from = (o * length + first) * inner;
      for (let i = 0; i < inner; i++) {
        let total = 2 ** 21;
        for (let k = 0, at = from + i; k < whole.length; k++, at += inner) total += pixels[at] * whole[k];
        out[to++] = Math.min(255, total / 2 ** 22);
      }
    }
  }
  return out;
}

// PyTorch's `interpolate` along one axis of an array (outer, length, inner): two neighbours, in float32.
function interpolated(pixels, length, newLength, { outer, inner }) {
  const scale = fround(length / newLength), out = new Float32Array(outer * newLength * inner);
  const pairs = Array.from({ length: newLength }, (_, n) => {
    const place = fround(Math.max(0, (n + 0.5) * scale - 0.5)), first = Math.trunc(place), weight = fround(place - first);
    return [first, Math.min(first + 1, length - 1), fround(1 - weight), weight];
  });
  for (let o = 0, to = 0; o < outer; o++) {
    for (const [first, next, rest, weight] of pairs) {
      const a = (o * length + first) * inner, b = (o * length + next) * inner;
      for (let i = 0; i < inner; i++) out[to++] = fround(pixels[a + i] * rest) + fround(pixels[b + i] * weight);
    }
  }
  return out;
}

// OpenCV's INTER_LINEAR, with its 11 bits; exact halving is the rounded mean of two by two pixels.
function opencv(rgb, height, width, h, w) {
  const out = new Uint8Array(3 * h * w);
  if (height === 2 * h && width === 2 * w) {
    for (let y = 0, j = 0; y < h; y++) {
      for (let x = 0; x < 3 * w; x++, j++) {
        const i = 6 * y * width + 6 * Math.trunc(x / 3) + x % 3;
        out[j] = (rgb[i] + rgb[i + 3] + rgb[i + 3 * width] + rgb[i + 3 * width + 3] + 2) >> 2;
      }
    }
    return out;
  }
  const across = places(width, w, true), down = places(height, h, false), rows = new Int32Array(height * 3 * w);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < w; x++) {
      const [left, right, a, b] = across[x];
      for (let c = 0; c < 3; c++) {
        rows[(y * w + x) * 3 + c] = (rgb[(y * width + left) * 3 + c] * a + rgb[(y * width + right) * 3 + c] * b) >> 4;
      }
    }
  }
  for (let y = 0; y < h; y++) {
    const [upper, lower, a, b] = down[y];
    for (let i = 0; i < 3 * w; i++) {
      const above = Math.floor(rows[upper * 3 * w + i] * a / 65536), below = Math.floor(rows[lower * 3 * w + i] * b / 65536);
      out[y * 3 * w + i] = (above + below + 2) >> 2;
    }
  }
  return out;
}

// Of each new pixel the two old ones and their weights. Columns outside the picture take its border; so do rows, but
// by their index: their weights round apart.
function places(length, newLength, border) {
  const scale = 1 / (newLength / length);
  return Array.from({ length: newLength }, (_, n) => {
    const place = fround((n + 0.5) * scale - 0.5), first = Math.floor(place);
    const weight = border && (first < 0 || first >= length - 1) ? 0 : fround(place - first);
    const inside = (i) => Math.min(Math.max(i, 0), length - 1);
    return [inside(first), inside(first + 1), rint(fround(1 - weight) * 2048), rint(weight * 2048)];
  });
}

function rint(value) { // halves to even
  const low = Math.floor(value), rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2) ? low + 1 : low;
}
