// Evidence maps: decoding, drawing, and the numbers that say how far to trust them.

function decodeGrid(packed) {
  const [image, rows, columns, peak, total, text] = packed;
  const raw = window.atob(text);
  const values = new Float32Array(rows * columns);
  for (let i = 0; i < values.length; i += 1) values[i] = (raw.charCodeAt(i) / 255) * peak;
  return { image, rows, columns, peak, total, values };
}

// RGBA canvas of one pixel per cell; what lies below the limit is left out. Without a limit
// it is opaque.
function gridCanvas(grid, scale, limit) {
  const canvas = document.createElement('canvas');
  canvas.width = grid.columns;
  canvas.height = grid.rows;
  const context = canvas.getContext('2d');
  const picture = context.createImageData(grid.columns, grid.rows);
  for (let i = 0; i < grid.values.length; i += 1) {
    const value = scale > 0 ? clamp(grid.values[i] / scale, 0, 1) : 0;
    const [r, g, b] = cividis(value);
    const alpha = limit === undefined ? 255 : value >= limit ? value * 190 : 0;
    picture.data.set([r, g, b, alpha], i * 4);
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

// Line segments of the level set, in cell centres normalised to [0, 1] (marching squares).
function contourLines(grid, level) {
  const lines = [];
  const at = (r, c) => grid.values[clamp(r, 0, grid.rows - 1) * grid.columns
    + clamp(c, 0, grid.columns - 1)];
  for (let r = -1; r < grid.rows; r += 1) {
    for (let c = -1; c < grid.columns; c += 1) {
      const corners = [at(r, c), at(r, c + 1), at(r + 1, c + 1), at(r + 1, c)];
      const places = [[c, r], [c + 1, r], [c + 1, r + 1], [c, r + 1]];
      const cuts = [];
      for (let k = 0; k < 4; k += 1) {
        const a = corners[k];
        const b = corners[(k + 1) % 4];
        if ((a >= level) === (b >= level)) continue;
        const part = (level - a) / (b - a);
        const [ax, ay] = places[k];
        const [bx, by] = places[(k + 1) % 4];
        cuts.push([(ax + (bx - ax) * part + 0.5) / grid.columns,
          (ay + (by - ay) * part + 0.5) / grid.rows]);
      }
      for (let k = 0; k + 1 < cuts.length; k += 2) lines.push([cuts[k], cuts[k + 1]]);
    }
  }
  return lines;
}

// Centre of the highest cell, moved along each axis to the vertex of the parabola through it and
// its two neighbours; at the border it stays. As engine/trace.py's peak_place.
function peakPlace(grid) {
  let best = 0;
  for (let i = 0; i < grid.values.length; i += 1) if (grid.values[i] > grid.values[best]) best = i;
  const vertex = (index, count, step) => {
    if (index === 0 || index === count - 1) return (index + 0.5) / count;
    const [before, own, after] = [best - step, best, best + step].map((i) => grid.values[i]);
    const bend = before - 2 * own + after;
    return (index + 0.5 + (bend < 0 ? (0.5 * (before - after)) / bend : 0)) / count;
  };
  return [vertex(best % grid.columns, grid.columns, 1),
    vertex(Math.floor(best / grid.columns), grid.rows, grid.columns)];
}

function gridFacts(grid) {
  let sum = 0;
  let border = 0;
  for (let i = 0; i < grid.values.length; i += 1) {
    const row = Math.floor(i / grid.columns);
    const column = i % grid.columns;
    sum += grid.values[i];
    if (row === 0 || column === 0 || row === grid.rows - 1 || column === grid.columns - 1) {
      border += grid.values[i];
    }
  }
  const [x, y] = peakPlace(grid);
  const height = y < 1 / 3 ? 'upper' : y < 2 / 3 ? 'middle' : 'lower';
  const side = x < 1 / 3 ? 'left' : x < 2 / 3 ? 'centre' : 'right';
  return { border: sum > 0 ? border / sum : 0, sum, place: height + ' ' + side, x, y };
}
