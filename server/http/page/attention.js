// Attention of one head in float64, step by step: the rules of attention.proto.
// Matrices are arrays of rows.

/**
 * options: scale, softcap, causal ("none", "top_left", "bottom_right"),
 * left, right (window; null is unbounded), chunk (0: none), valid (null: all
 * keys), slope (ALiBi), sink (null: none), hidden (rows that a mask hides).
 */
function offsetOf(options, S, T) {
  const keys = options.valid ?? T;
  if (options.causal === "bottom_right") return keys - S;
  return options.valid == null ? 0 : keys - S;
}

/** Why query i does not see key j; null if it does. */
function hiddenBy(options, i, j, S, T) {
  const offset = offsetOf(options, S, T);
  const p = i + offset;
  if (options.valid != null && j >= options.valid) {
    return `key ${j} is padding: only ${options.valid} keys are valid`;
  }
  if ((options.hidden ?? []).includes(i)) return `the mask hides all keys from query ${i}`;
  const causal = options.causal ?? "none";
  if (causal !== "none" && j > p) {
    return offset === 0 ? `key ${j} is later than query ${i}`
                        : `key ${j} is later than position ${i} ${signed(offset)} = ${p}`;
  }
  if (options.left != null && j < p - options.left) {
    return `key ${j} is more than ${options.left} before position ${p}`;
  }
  if (options.right != null && j > p + options.right) {
    return `key ${j} is more than ${options.right} after position ${p}`;
  }
  if (options.chunk && Math.floor(j / options.chunk) !== Math.floor(p / options.chunk)) {
    return `key ${j} is in chunk ${Math.floor(j / options.chunk)}, position ${p} in chunk ${Math.floor(p / options.chunk)}`;
  }
  return null;
}

const signed = (n) => (n < 0 ? `\u2212 ${-n}` : `+ ${n}`);

function attend(q, k, v, options = {}) {
  const S = q.length, T = k.length, D = q[0].length;
  const scale = options.scale ?? 1 / Math.sqrt(D);
  const softcap = options.softcap || 0;
  const offset = offsetOf(options, S, T);
  const slope = options.slope || 0;
  const dots = q.map((row) => k.map((key) =>
    row.reduce((sum, x, d) => sum + x * key[d], 0)));
  const raw = dots.map((row) => row.map((s) => scale * s));
  const capped = raw.map((row) => row.map((s) =>
    softcap > 0 ? softcap * Math.tanh(s / softcap) : s));
  const biased = capped.map((row, i) => row.map((s, j) =>
    hiddenBy(options, i, j, S, T) ? -Infinity
                                  : s - slope * Math.abs(i + offset - j)));
  const sink = options.sink ?? -Infinity;
  const maxima = biased.map((row) => Math.max(sink, ...row));
  const exps = biased.map((row, i) => row.map((s) =>
    s === -Infinity ? 0 : Math.exp(s - maxima[i])));
  const sums = exps.map((row, i) => row.reduce((a, b) => a + b, 0) +
    (sink === -Infinity ? 0 : Math.exp(sink - maxima[i])));
  const weights = exps.map((row, i) =>
    row.map((e) => (sums[i] === 0 ? 0 : e / sums[i])));
  const sinkWeights = sums.map((sum, i) =>
    sink === -Infinity ? 0 : Math.exp(sink - maxima[i]) / sum);
  // A hidden key adds nothing, whatever its value.
  const output = weights.map((row, i) => v[0].map((_, c) =>
    row.reduce((sum, w, j) => (biased[i][j] === -Infinity ? sum : sum + w * v[j][c]), 0)));
  const logSumExp = maxima.map((m, i) => m + Math.log(sums[i]));
  return {S, T, D, scale, softcap, offset, slope, dots, raw, capped, biased,
          weights, sinkWeights, output, logSumExp, sums, maxima};
}

/** Numbers in [-1, 1), the same in every browser (mulberry32). */
function randomNumbers(seed) {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t = (t + Math.imul(t ^ (t >>> 7), t | 61)) ^ t;
    return fround(((t ^ (t >>> 14)) >>> 0) / 2 ** 31 - 1);
  };
}

const randomMatrix = (rows, columns, next, factor = 1) =>
  Array.from({length: rows}, () =>
    Array.from({length: columns}, () => fround(factor * next())));
