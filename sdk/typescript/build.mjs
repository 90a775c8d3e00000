// Builds dist/esm and dist/cjs with tsc, each with its types: node build.mjs [folder in place of dist]
import { spawnSync } from "node:child_process";
import { mkdirSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { dirname, join, resolve } from "node:path";
import { fileURLToPath } from "node:url";

const here = dirname(fileURLToPath(import.meta.url));
const dist = resolve(process.argv[2] ?? join(here, "dist"));
const tsc = createRequire(import.meta.url).resolve("typescript/bin/tsc");

rmSync(dist, { recursive: true, force: true });
// The package says of its files that they are modules; those of dist/cjs are not.
for (const [name, type, options] of [
  ["esm", "module", []],
  ["cjs", "commonjs", ["--module", "CommonJS", "--moduleResolution", "Node10", "--ignoreDeprecations", "5.0"]],
]) {
  const folder = join(dist, name);
  const done = spawnSync(process.execPath, [tsc, "--project", here, "--outDir", folder, ...options], { stdio: "inherit" });
  if (done.status !== 0) process.exit(done.status ?? 1);
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, "package.json"), JSON.stringify({ type }) + "\n");
}
