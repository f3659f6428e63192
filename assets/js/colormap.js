// Cividis (Nunez, Anderton and Renslow 2018, doi:10.1371/journal.pone.0199239): perceptually
// even and the same for colour-blind readers. Eleven support points, linear between.

const CIVIDIS = [
  [0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 92, 109], [112, 113, 115], [138, 134, 120],
  [165, 156, 116], [194, 180, 107], [225, 204, 85], [243, 220, 69], [254, 232, 56],
];

function cividis(value) {
  const place = clamp(value, 0, 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(place), CIVIDIS.length - 2);
  const part = place - low;
  return [0, 1, 2].map((c) => CIVIDIS[low][c] * (1 - part) + CIVIDIS[low + 1][c] * part);
}
