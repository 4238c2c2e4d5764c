// @ts-check
// Tensors filled by the rule of tests/vectors/README.md, and digests of answers.
import { createHash } from "node:crypto";
import { bfloat16, tensor } from "@attention-service/client";

/**
 * @param {number[]} shape
 * @param {number} seed
 */
function numbers(shape, seed) {
  const count = shape.reduce((product, length) => product * length, 1);
  return Float32Array.from({ length: count }, (_, i) => {
    const mixed = (Math.imul(i, 2654435761) + Math.imul(seed, 40503)) >>> 16;
    return ((mixed % 255) - 127) / 64;
  });
}

/**
 * @param {number[]} shape
 * @param {number} seed
 */
export const filled = (shape, seed) => tensor(numbers(shape, seed), shape);

/**
 * @param {number[]} shape
 * @param {number} seed
 */
export const filledBfloat16 = (shape, seed) => bfloat16(numbers(shape, seed), shape);

/** @param {import("@attention-service/client").Tensor} value */
export const digest = (value) => createHash("sha256").update(value.bytes).digest("hex");
