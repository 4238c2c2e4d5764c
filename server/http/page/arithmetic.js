// The kernel's FLOAT32 arithmetic (docs/numerics.md), operation by operation,
// so that a row has the kernel's bits: blocks of 256 keys by position, partials
// that merge along the tree of block numbers.

const KEY_BLOCK = 256;
const SUM_LANES = 16;
const fround = Math.fround;

const wide = new Float64Array(1);
const wideBits = new BigInt64Array(wide.buffer);
const narrow = new Float32Array(1);
const narrowBits = new Uint32Array(narrow.buffer);

/** The 32 bits of a FLOAT32 number, as an unsigned integer. */
function bitsOf(x) {
  narrow[0] = x;
  return narrowBits[0];
}

/** a * b + c of FLOAT32 numbers with one rounding. */
function fma32(a, b, c) {
  const product = a * b;  // exact: 48 bits at most
  const sum = product + c;
  const part = sum - product;
  const error = (product - (sum - part)) + (c - part);
  if (error === 0 || !(Math.abs(sum) < Infinity)) return fround(sum);
  // The sum is inexact. Rounded to odd, it rounds to FLOAT32 as the exact one
  // does.
  wide[0] = sum;
  if ((wideBits[0] & 1n) === 0n) {
    wideBits[0] += (error > 0) === (sum > 0) ? 1n : -1n;
  }
  return fround(wide[0]);
}

const LOG2E = 0x1715476 * 2 ** -24;
const LN2_HIGH = 0x162e43 * 2 ** -21;
const LN2_LOW = -0x105c61 * 2 ** -49;
const ROUNDER = 1.5 * 2 ** 23;
const EXP_TERMS = [1.38145986467e-3, 8.36871687973e-3, 4.16683880453e-2,
                   1.66665206317e-1, 4.99999934478e-1, 1].map(fround);

/** exp(x) for x <= 0; 0 below -87. */
function exp32(x) {
  if (x < -87) return 0;
  const r = fround(fma32(x, LOG2E, ROUNDER) - ROUNDER);
  let g = fma32(-r, LN2_HIGH, x);
  g = fma32(-r, LN2_LOW, g);
  let h = EXP_TERMS[0];
  for (let i = 1; i < EXP_TERMS.length; ++i) h = fma32(h, g, EXP_TERMS[i]);
  return fround(fma32(h, g, 1) * 2 ** r);
}

/** exp(x - reference); 0 where x is -inf. */
function expDifference(x, reference) {
  return x === -Infinity ? 0 : exp32(fround(x - reference));
}

/** scale * dot(query, key): one chain of fused multiply-adds. */
function score32(query, key, scale) {
  let sum = fround(query[0] * key[0]);
  for (let d = 1; d < query.length; ++d) sum = fma32(query[d], key[d], sum);
  return fround(sum * scale);
}

/**
 * The partial of keys [begin, end): the largest score, the sum of
 * exp(score - max), and the same weights times the values. keyAt(j) and
 * valueAt(j) give rows of FLOAT32 numbers.
 */
function partialOf(query, scale, begin, end, keyAt, valueAt) {
  const scores = [];
  for (let j = begin; j < end; ++j) {
    scores.push(score32(query, keyAt(j), scale));
  }
  const max = scores.reduce((a, b) => (a < b ? b : a), -Infinity);
  const weights = scores.map((s) => exp32(fround(s - max)));
  const lanes = new Float32Array(SUM_LANES);
  // Lanes count from the block's beginning.
  const shift = begin % KEY_BLOCK;
  weights.forEach((w, i) => { lanes[(shift + i) % SUM_LANES] += w; });
  for (let width = SUM_LANES / 2; width >= 1; width /= 2) {
    for (let i = 0; i < width; ++i) lanes[i] += lanes[i + width];
  }
  const output = Array.from(valueAt(begin), (v) => fround(v * weights[0]));
  for (let i = 1; i < weights.length; ++i) {
    const value = valueAt(begin + i);
    for (let c = 0; c < output.length; ++c) {
      output[c] = fma32(weights[i], value[c], output[c]);
    }
  }
  return {max, sum: lanes[0], output, begin, end};
}

/** Two partials as one. Not associative in floating point. */
function merge32(left, right) {
  const max = left.max < right.max ? right.max : left.max;
  const a = expDifference(left.max, max);
  const b = expDifference(right.max, max);
  return {
    max,
    sum: fma32(right.sum, b, fround(left.sum * a)),
    output: left.output.map((o, c) =>
      fma32(right.output[c], b, fround(o * a))),
    begin: left.begin,
    end: right.end,
    children: [left, right],
  };
}

/** The smallest subtree that holds blocks a and b has 2^joinLevel blocks. */
const joinLevel = (a, b) => 32 - Math.clz32(a ^ b);

/** Open partials while blocks come in ascending order, as the kernel's. */
class PartialStack {
  constructor() {
    this.open = [];  // {partial, last}: last is its last block
  }
  push(partial, block) {
    while (this.open.length >= 2) {
      const [left, right] = this.open.slice(-2);
      const joined = joinLevel(left.last, right.last);
      if (joined >= joinLevel(right.last, block)) break;
      this.mergeTop();
    }
    this.open.push({partial, last: block});
  }
  mergeTop() {
    const right = this.open.pop();
    const left = this.open.pop();
    this.open.push({partial: merge32(left.partial, right.partial),
                    last: right.last});
  }
  fold() {
    while (this.open.length >= 2) this.mergeTop();
    return this.open[0].partial;
  }
}

/** A partial's weighted sum divided by its sum of weights. */
function outputOf(partial) {
  return partial.output.map((o) => fround(o / partial.sum) + 0);
}

/** One row over `count` keys. Returns the tree's root and its leaves. */
function attendRow32(query, count, scale, keyAt, valueAt) {
  const stack = new PartialStack();
  const leaves = [];
  for (let begin = 0, block = 0; begin < count; begin += KEY_BLOCK, ++block) {
    const end = Math.min(begin + KEY_BLOCK, count);
    leaves.push(partialOf(query, scale, begin, end, keyAt, valueAt));
    stack.push(leaves[block], block);
  }
  return {root: stack.fold(), leaves};
}

/** The textbook's way: softmax of each part by itself, then one merge. */
function attendInTwoParts32(query, count, scale, cut, keyAt, valueAt) {
  const parts = [[0, cut], [cut, count]].filter(([a, b]) => a < b);
  return parts
    .map(([a, b]) => partialOf(query, scale, a, b, keyAt, valueAt))
    .reduce(merge32);
}
