// Outlines of a mask along the pixels' edges, holes filled: a polygon [x0, y0, x1, y1, ...] for each part.

// `bitmap`: {x, y, width, height, cells}; corners are left out as long as an outline moves by `tolerance` at most.
export function outlines(bitmap, tolerance) {
  const parts = [];
  for (const loop of loops(bitmap)) {
    const area = signedArea(loop);
    if (area > 0) parts.push([area, simplified(loop, tolerance)]); // a hole's outline runs the other way round
  }
  parts.sort(([a], [b]) => b - a);
  return parts.map(([, loop]) => loop.flatMap(([x, y]) => [x + bitmap.x, y + bitmap.y]));
}

// Closed paths of corners, the mask at their right hand. Pixels that touch at a corner belong to different parts.
function loops({ width, height, cells }) {
  const at = (x, y) => (x >= 0 && y >= 0 && x < width && y < height ? cells[y * width + x] : 0);
  const AHEAD = [[1, 0], [0, 1], [-1, 0], [0, -1]]; // right, down, left, up
  const seen = new Uint8Array((width + 1) * (height + 1)), found = []; // top edges that a path has taken
  for (let y = 0, i = 0; y < height; y++) {
    for (let x = 0; x < width; x++, i++) {
      if (!cells[i] || (y && cells[i - width]) || seen[y * (width + 1) + x]) continue;
      const loop = [];
      let px = x, py = y, way = 0;
      do {
        if (way === 0) seen[py * (width + 1) + px] = 1;
        const [dx, dy] = AHEAD[way];
        px += dx;
        py += dy;
        // Pixels ahead of the new corner, at the left and the right hand.
        const left = at(px + [0, 0, -1, -1][way], py + [-1, 0, 0, -1][way]);
        const right = at(px + [0, -1, -1, 0][way], py + [0, 0, -1, -1][way]);
        const turn = !right ? 1 : left ? 3 : 0;
        if (turn) loop.push([px, py]);
        way = (way + turn) % 4;
      } while (px !== x || py !== y || way !== 0);
      found.push([loop.pop(), ...loop]); // from its first corner by rows on
    }
  }
  return found;
}

function signedArea(loop) {
  return loop.reduce((sum, [x, y], i) => {
    const [nextX, nextY] = loop[(i + 1) % loop.length];
    return sum + (x * nextY - y * nextX) / 2;
  }, 0);
}

// Douglas and Peucker's rule, between the first corner and the one farthest from it.
function simplified(loop, tolerance) {
  const closed = [...loop, loop[0]], kept = new Set([0]);
  const far = (i) => (closed[i][0] - closed[0][0]) ** 2 + (closed[i][1] - closed[0][1]) ** 2;
  const middle = loop.reduce((best, _, i) => (far(i) > far(best) ? i : best), 0);
  kept.add(middle);
  const todo = [[0, middle], [middle, loop.length]];
  while (todo.length) {
    const [a, b] = todo.pop(), [ax, ay] = closed[a], wx = closed[b][0] - ax, wy = closed[b][1] - ay;
    const length = Math.max(Math.hypot(wx, wy), 1e-9);
    let worst = 0, most = tolerance;
    for (let i = a + 1; i < b; i++) {
      const off = Math.abs((closed[i][0] - ax) * wy - (closed[i][1] - ay) * wx) / length;
      if (off > most) [worst, most] = [i, off];
    }
    if (!worst) continue;
    kept.add(worst);
    todo.push([a, worst], [worst, b]);
  }
  return kept.size >= 3 ? loop.filter((_, i) => kept.has(i)) : loop;
}
