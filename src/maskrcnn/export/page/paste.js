// Pixels of a mask: its M x M probabilities, stretched over its box, looked up at each pixel's centre.

const fround = Math.fround;

// The mask within its window, {x, y, width, height, cells}: `probs` of `side` x `side`, `box` x0, y0, x1, y1.
export function crop(probs, side, [x0, y0, x1, y1], height, width, threshold) {
  const left = clamp(Math.floor(x0) - 1, width), right = Math.max(left, Math.min(Math.ceil(x1) + 1, width));
  const top = clamp(Math.floor(y0) - 1, height), bottom = Math.max(top, Math.min(Math.ceil(y1) + 1, height));
  const across = weights(left, right, x0, x1, side), down = weights(top, bottom, y0, y1, side);
  const cells = new Uint8Array((right - left) * (bottom - top)), limit = fround(threshold);
  const at = (row, column) => (row < 0 || column < 0 || row >= side || column >= side ? 0 : probs[row * side + column]);
  let i = 0;
  for (const [row, v] of down) {
    for (const [column, u] of across) {
      const upper = at(row, column) * (1 - u) + at(row, column + 1) * u;
      const lower = at(row + 1, column) * (1 - u) + at(row + 1, column + 1) * u;
      cells[i++] = fround(upper * (1 - v) + lower * v) >= limit ? 1 : 0;
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
    return [cell, at - cell];
  });
}

const clamp = (value, most) => Math.min(Math.max(value, 0), most);
