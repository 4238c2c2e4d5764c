/** What tests share: where servers are, and tensors made by a rule. */

import { spawn } from "node:child_process";
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import type { Tensor } from "@attention-service/client";
import { bfloat16, bool, float16, tensor } from "@attention-service/client";

/** A variable that says where something is; tests without it are skipped, and say so. */
export function place(name: string): { readonly value: string; readonly skip: string | false } {
  const value = process.env[name];
  return { value: value ?? "", skip: value === undefined ? `${name} is not set` : false };
}

export const SERVER = place("ATTENTION_TEST_SERVER");
export const BINARY = place("ATTENTION_TEST_SERVER_BINARY");
export const MISBEHAVING = place("ATTENTION_TEST_MISBEHAVING");
export const MISBEHAVING_HTTP = place("ATTENTION_TEST_MISBEHAVING_HTTP");
export const VECTORS = place("ATTENTION_TEST_VECTORS");

/** One of the files of tests/vectors. */
export function vectors<Case>(name: string): Case[] {
  if (VECTORS.skip) return [];
  return (JSON.parse(readFileSync(`${VECTORS.value}/${name}.json`, "utf8")) as { cases: Case[] }).cases;
}

export interface Pattern {
  readonly data_type: string;
  readonly shape: readonly number[];
  readonly seed: number;
}

/** The numbers of tests/vectors/README.md: multiples of 1/64, exact in every type. */
export function fill({ data_type, shape, seed }: Pattern): Tensor {
  const count = shape.reduce((product, length) => product * length, 1);
  const whole = Float64Array.from({ length: count }, (_, i) => {
    const mixed = (BigInt(i) * 2654435761n + BigInt(seed) * 40503n) % 2n ** 32n;
    return (Number(mixed >> 16n) % 255) - 127;
  });
  const numbers = whole.map((value) => value / 64);
  switch (data_type) {
    case "DATA_TYPE_FLOAT32":
      return tensor(Float32Array.from(numbers), shape);
    case "DATA_TYPE_FLOAT16":
      return float16(numbers, shape);
    case "DATA_TYPE_BFLOAT16":
      return bfloat16(numbers, shape);
    case "DATA_TYPE_FLOAT64":
      return tensor(numbers, shape);
    case "DATA_TYPE_BOOL":
      return bool(
        Uint8Array.from(whole, (value) => Math.abs(value % 2)),
        shape,
      );
    default:
      throw new Error(data_type);
  }
}

export function filled(shape: readonly number[], seed: number): Tensor {
  return fill({ data_type: "DATA_TYPE_FLOAT32", shape, seed });
}

export function digest(value: Tensor): string {
  return createHash("sha256").update(value.bytes).digest("hex");
}

/** A server of the test's own. */
export interface OwnServer {
  readonly address: string;
  kill(signal: NodeJS.Signals): Promise<void>;
}

export async function startServer(...flags: string[]): Promise<OwnServer> {
  const listen = flags.some((flag) => flag.startsWith("--listen")) ? [] : ["--listen=127.0.0.1:0"];
  const child = spawn(BINARY.value, [...listen, ...flags], { stdio: ["ignore", "pipe", "ignore"] });
  const exited = new Promise<void>((resolve) =>
    child.once("exit", () => {
      resolve();
    }),
  );
  for await (const line of createInterface(child.stdout)) {
    const found = /^listening on (.+)$/.exec(line);
    if (found) {
      return {
        address: found[1] as string,
        kill: async (signal) => {
          child.kill(signal);
          await exited;
        },
      };
    }
  }
  throw new Error("the server did not start");
}
