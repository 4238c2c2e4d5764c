// Generates the messages' modules from ../../proto and compiles everything to dist/.
import { execFileSync } from "node:child_process";
import { existsSync, rmSync } from "node:fs";

const run = (program, ...args) => execFileSync(`node_modules/.bin/${program}`, args, { stdio: "inherit" });

if (existsSync("../../proto")) run("buf", "generate");
rmSync("dist", { recursive: true, force: true });
run("tsc", "-p", "tsconfig.json");
