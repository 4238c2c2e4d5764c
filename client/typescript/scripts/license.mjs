// The repository's licence, for the package.
import { copyFileSync } from "node:fs";

copyFileSync("../../LICENSE", "LICENSE");
