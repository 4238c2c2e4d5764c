// Compiles the tests and runs them: all, or the files named. The package has to be built.
import { spawnSync } from "node:child_process";
import { readdirSync, rmSync } from "node:fs";
import { basename } from "node:path";
import { build } from "esbuild";

const names = process.argv.slice(2);
const files = readdirSync("test")
  .filter((name) => name.endsWith(".test.ts"))
  .filter((name) => names.length === 0 || names.includes(name.replace(".test.ts", "")));
rmSync("build/test", { recursive: true, force: true });
await build({
  entryPoints: files.map((name) => `test/${name}`),
  outdir: "build/test",
  bundle: true,
  platform: "node",
  format: "esm",
  target: "node20",
  sourcemap: true,
  // The package itself is tested as others import it.
  packages: "external",
});
const built = files.map((name) => `build/test/${basename(name, ".ts")}.js`);
const { status } = spawnSync(process.execPath, ["--enable-source-maps", "--expose-gc", "--test", ...built], {
  stdio: "inherit",
});
process.exit(status ?? 1);
