import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig } from "vite";

export default defineConfig({
  plugins: [svelte()],
  build: { target: "es2022", sourcemap: false },
  // For `npm run dev` beside a running `make demo`.
  server: { proxy: { "/api": "http://127.0.0.1:8080" } },
});
