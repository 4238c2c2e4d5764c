/** float16 and bfloat16, which most JavaScript engines have no arrays of. */

const scratch = new DataView(new ArrayBuffer(4));

function bitsOf(value: number): number {
  scratch.setFloat32(0, value);
  return scratch.getUint32(0);
}

function numberOf(bits: number): number {
  scratch.setUint32(0, bits);
  return scratch.getFloat32(0);
}

/** Rounds a double to float16, to nearest, ties to even. */
function float16Bits(value: number): number {
  if (Number.isNaN(value)) return 0x7e00;
  const sign = value < 0 || Object.is(value, -0) ? 0x8000 : 0;
  const magnitude = Math.abs(value);
  if (magnitude >= 65520) return sign | 0x7c00;
  // The step between numbers of float16 here: 2^-24 below the smallest normal one.
  const exponent = magnitude < 2 ** -14 ? -14 : Math.floor(Math.log2(magnitude));
  // log2 may round up to the next power of two.
  const scale = 2 ** ((2 ** exponent > magnitude && exponent > -14 ? exponent - 1 : exponent) - 10);
  const steps = magnitude / scale;
  let rounded = Math.floor(steps);
  const rest = steps - rounded;
  if (rest > 0.5 || (rest === 0.5 && rounded % 2 === 1)) rounded += 1;
  // A carry goes on into the exponent, as it should.
  const biased = Math.round(Math.log2(scale)) + 10 + 15;
  return sign | (rounded < 1024 && biased === 1 ? rounded : ((biased - 1) << 10) + rounded);
}

/** Rounds a double to bfloat16, to nearest, ties to even. */
function bfloat16Bits(value: number): number {
  if (Number.isNaN(value)) return 0x7fc0;
  // A double is rounded once: float32 first would round twice.
  const bits = bitsOf(value);
  const single = numberOf(bits);
  const upper = bits >>> 16;
  const lower = bits & 0xffff;
  if (lower > 0x8000) return upper + 1;
  if (lower < 0x8000) return upper;
  // A tie in float32 is one in truth only where float32 was exact.
  const beyond = Math.abs(value) - Math.abs(single);
  if (beyond !== 0) return beyond > 0 ? upper + 1 : upper;
  return upper + (upper & 1);
}

/** The bits of numbers in float16, rounded to nearest, ties to even. */
export function float32ToFloat16(values: ArrayLike<number>): Uint16Array {
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < values.length; ++i) bits[i] = float16Bits(values[i] as number);
  return bits;
}

/** The numbers that float16 bits are, exactly. */
export function float16ToFloat32(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  for (let i = 0; i < bits.length; ++i) {
    const half = bits[i] as number;
    const sign = half & 0x8000 ? -1 : 1;
    const exponent = (half >> 10) & 0x1f;
    const fraction = half & 0x3ff;
    if (exponent === 31) values[i] = fraction ? NaN : sign * Infinity;
    else if (exponent === 0) values[i] = sign * fraction * 2 ** -24;
    else values[i] = sign * (1024 + fraction) * 2 ** (exponent - 25);
  }
  return values;
}

/** The bits of numbers in bfloat16, rounded to nearest, ties to even. */
export function float32ToBfloat16(values: ArrayLike<number>): Uint16Array {
  const bits = new Uint16Array(values.length);
  for (let i = 0; i < values.length; ++i) bits[i] = bfloat16Bits(values[i] as number);
  return bits;
}

/** The numbers that bfloat16 bits are, exactly. */
export function bfloat16ToFloat32(bits: Uint16Array): Float32Array {
  const values = new Float32Array(bits.length);
  const words = new Uint32Array(values.buffer);
  for (let i = 0; i < bits.length; ++i) words[i] = (bits[i] as number) << 16;
  return values;
}
