import js from "@eslint/js";
import tseslint from "typescript-eslint";

export default tseslint.config(
  { ignores: ["node_modules/", "src/gen/", "dist/", "docs/", "build/"] },
  js.configs.recommended,
  {
    files: ["src/**/*.ts", "test/**/*.ts"],
    extends: [tseslint.configs.strictTypeChecked, tseslint.configs.stylisticTypeChecked],
    languageOptions: {
      parserOptions: { project: "./tsconfig.test.json", tsconfigRootDir: import.meta.dirname },
    },
    rules: {
      "@typescript-eslint/consistent-type-imports": "error",
      "@typescript-eslint/explicit-module-boundary-types": "error",
      // Arithmetic on lengths of shapes, which are there.
      "@typescript-eslint/non-nullable-type-assertion-style": "off",
      // An index signature is read as one: tsconfig wants it.
      "@typescript-eslint/dot-notation": "off",
    },
  },
  {
    files: ["test/**/*.ts"],
    rules: {
      // describe() and it() are not waited for.
      "@typescript-eslint/no-floating-promises": "off",
    },
  },
  {
    files: ["scripts/*.mjs", "examples/*.js", "eslint.config.js"],
    languageOptions: {
      globals: {
        process: "readonly",
        console: "readonly",
        URL: "readonly",
        Buffer: "readonly",
        fetch: "readonly",
        performance: "readonly",
        AbortSignal: "readonly",
      },
    },
  },
);
