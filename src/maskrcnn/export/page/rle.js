// COCO's compressed run lengths of a mask, column by column, background first.

// `bitmap`: {x, y, width, height, cells} in a picture of `height` x `width`.
export function encode({ x, y, width: columns, height: rows, cells }, height, width) {
  const counts = [];
  let run = 0, inside = 0, at = 0; // length of the present run, whether it is the mask's, the pixel behind it
  const until = (place, value) => {
    if (value === inside) {
      run += place - at;
    } else if (place > at) {
      counts.push(run);
      run = place - at;
      inside = value;
    }
    at = place;
  };
  for (let column = 0; column < columns; column++) {
    const first = (x + column) * height + y;
    until(first, 0);
    for (let row = 0, i = column, before = cells[i]; row < rows; row++, i += columns) {
      const next = row + 1 < rows ? cells[i + columns] : -1;
      if (next !== before) until(first + row + 1, before); // where a run ends
      before = next;
    }
  }
  until(height * width, 0);
  if (run || !counts.length) counts.push(run);
  return packed(counts);
}

// Groups of five bits, low bits first; from the fourth count on the difference from the one two before.
function packed(counts) {
  let text = "";
  counts.forEach((count, i) => {
    let value = i > 2 ? count - counts[i - 2] : count, more = true;
    while (more) {
      let bits = value & 31;
      value >>= 5;
      more = bits & 16 ? value !== -1 : value !== 0;
      if (more) bits |= 32;
      text += String.fromCharCode(bits + 48);
    }
  });
  return text;
}
