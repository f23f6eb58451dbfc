// Pixels of a mask: its M x M probabilities, stretched over its box, looked up at each pixel's centre.

const fround = Math.fround;

// The mask within its window, {x, y, width, height, cells}: `probs` of `side` x `side`, `box` x0, y0, x1, y1.
export function crop(probs, side, [x0, y0, x1, y1], height, width, threshold) {
  const left = clamp(Math.floor(x0) - 1, width), right = Math.max(left, Math.min(Math.ceil(x1) + 1, width));
  const top = clamp(Math.floor(y0) - 1, height), bottom = Math.max(top, Math.min(Math.ceil(y1) + 1, height));
  const across = weights(left, right, x0, x1, side), down = weights(top, bottom, y0, y1, side);
  const columns = Int32Array.from(across, ([column]) => column + 2), shares = Float64Array.from(across, ([, u]) => u);
  const cells = new Uint8Array((right - left) * (bottom - top)), limit = fround(threshold);
  const line = new Float64Array(side + 4); // a row between two of the map's, with zeros around: from cell -2 on
  let i = 0;
  for (const [row, v] of down) {
    for (let c = 0; c < side; c++) {
      const upper = row >= 0 && row < side ? probs[row * side + c] : 0;
      const lower = row >= -1 && row < side - 1 ? probs[(row + 1) * side + c] : 0;
      line[c + 2] = upper * (1 - v) + lower * v;
    }
    for (let x = 0; x < columns.length; x++, i++) {
      const at = columns[x];
      if (fround(line[at] * (1 - shares[x]) + line[at + 1] * shares[x]) >= limit) cells[i] = 1;
    }
  }
  return { x: left, y: top, width: right - left, height: bottom - top, cells };
}

// Box that torchvision pastes a map of `side` cells to: grown by a cell, cut to whole pixels, less that cell.
export function wholePixelBox([x0, y0, x1, y1], side) {
  const grown = (low, high) => {
    const middle = (low + high) / 2, half = ((high - low) / 2) * ((side + 2) / side);
    const first = Math.trunc(fround(middle - half)), last = Math.trunc(fround(middle + half));
    const extent = Math.max(1, last - first + 1), cell = extent / (side + 2);
    return [fround(first + cell), fround(first + extent - cell)];
  };
  const [left, right] = grown(x0, x1), [top, bottom] = grown(y0, y1);
  return [left, top, right, bottom];
}

// Of each pixel from `start` to `stop` the cell before its centre, and the next cell's weight.
function weights(start, stop, low, high, side) {
  return Array.from({ length: stop - start }, (_, k) => {
    const place = fround(fround((fround(start + k + 0.5 - low) / fround(high - low)) * 2 - 1) + 1);
    const at = fround((fround(place * side) - 1) / 2), cell = Math.floor(at);
    return [clamp(cell + 2, side + 2) - 2, at - cell]; // beyond one cell around the map it is zero anyway
  });
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);
