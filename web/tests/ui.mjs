// The page in a real browser against a real server of one node: sign in, add, refuse, protect, search, remove.
// Usage: SERVER=path/to/outputguard-server [SCREENSHOT=file.png] node tests/ui.mjs
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { mkdtemp, readFile, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { chromium } from "playwright-core";

const START_DEADLINE_MS = 30_000;
const server = process.env.SERVER;
assert.ok(server, "set SERVER to the path of outputguard-server");

const directory = await mkdtemp(join(tmpdir(), "outputguard-ui-"));
const [api, feed, raft] = await Promise.all([freePort(), freePort(), freePort()]);
const config = join(directory, "server.yml");
const tokenFile = join(directory, "admin.token");
await writeFile(
  config,
  `node: { name: ui-test, data_dir: "${directory}/data" }
listen: { api: "127.0.0.1:${api}", feed: "127.0.0.1:${feed}", raft: "127.0.0.1:${raft}" }
cluster: { advertise: "127.0.0.1:${raft}" }
auth: { admin_token_file: "${tokenFile}" }
resolver: { upstreams: ["127.0.0.1:9"] }
`,
);
const child = spawn(server, ["--config", config], { stdio: ["ignore", "pipe", "pipe"] });
let log = "";
for (const stream of [child.stdout, child.stderr]) stream.on("data", (data) => (log += data));

let browser;
let passed = 0;
try {
  const base = `http://127.0.0.1:${api}`;
  await until("the server is ready", async () => (await fetch(`${base}/readyz`)).ok);
  const token = (await until("the admin token is written", () => readFile(tokenFile, "utf8"))).trim();

  browser = await chromium.launch({
    executablePath: "/usr/bin/chromium",
    args: [
      "--headless",
      "--no-sandbox",
      "--disable-gpu",
      "--disable-quic",
      "--no-first-run",
      "--disable-background-networking",
      "--disable-component-update",
      "--disable-sync",
    ],
  });
  const page = await browser.newPage({ viewport: { width: 1280, height: 900 } });
  const faults = [];
  page.on("pageerror", (error) => faults.push(String(error)));
  page.on("dialog", (dialog) => dialog.accept());
  const row = (target) => page.locator("tbody tr", { hasText: target });

  await step("a wrong token is refused with words", async () => {
    await page.goto(base);
    await page.getByLabel("API token").fill("og_admin_" + "0".repeat(64));
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByRole("alert").waitFor();
  });
  await step("the admin token signs in", async () => {
    await page.getByLabel("API token").fill(token);
    await page.getByRole("button", { name: "Sign in" }).click();
    await page.getByText("Nothing is allowed yet.").waitFor();
    assert.match(await page.getByTestId("summary").innerText(), /leader ui-test/);
  });
  await step("an added address appears with its ports", async () => {
    await add(page, "93.184.216.34", "tcp/443", "payment provider");
    await row("93.184.216.34").getByText("tcp/443").waitFor();
  });
  await step("a private address is refused with the reason", async () => {
    await add(page, "10.0.0.1", "", "");
    assert.match(await page.getByTestId("add-problem").innerText(), /10\.0\.0\.0\/8/);
    assert.equal(await row("10.0.0.1").count(), 0);
    await page.getByLabel("Target").fill("");
  });
  await step("text is shown as text, never as markup", async () => {
    await add(page, "api.example.test", "", "<img src=x onerror=window.hurt=1>");
    await row("api.example.test").getByText("<img").waitFor();
    assert.equal(await page.evaluate(() => window.hurt), undefined);
  });
  await step("a domain says how its lookups go", async () => {
    const state = row("api.example.test").getByTestId("name-state");
    await state.locator("summary").click();
    await state.getByText("last answer: none yet").waitFor();
    await state.getByText("last error: 127.0.0.1:9").waitFor();
    await state.getByText("asked again: ").waitFor();
    if (process.env.SCREENSHOT_NAMES) await page.screenshot({ path: process.env.SCREENSHOT_NAMES });
    await state.locator("summary").click();
  });
  await step("the search narrows the list", async () => {
    await page.getByLabel("Search").fill("payment");
    await until("one row is left", async () => (await row("api.example.test").count()) === 0);
    assert.equal(await row("93.184.216.34").count(), 1);
    await page.getByLabel("Search").fill("");
    await row("api.example.test").waitFor();
  });
  await step("a protected entry can no longer be removed", async () => {
    await page.getByRole("button", { name: "Protect 93.184.216.34" }).click();
    await row("93.184.216.34").getByText("protected").waitFor();
    assert.equal(await page.getByRole("button", { name: "Remove 93.184.216.34" }).count(), 0);
  });
  await step("an entry can be given an end, which is shown", async () => {
    await page.getByLabel("Ends").selectOption("ends in a week");
    await add(page, "93.184.216.36", "", "for a week");
    await row("93.184.216.36").getByTestId("ends").waitFor();
    assert.equal(await page.getByLabel("Ends").inputValue(), "");
  });
  await step("a removal says what stays open because of others", async () => {
    await add(page, "93.184.216.0/24", "", "");
    await row("93.184.216.0/24").waitFor();
    let said = "";
    page.once("dialog", (dialog) => (said = dialog.message()));
    await page.getByRole("button", { name: "Remove 93.184.216.36" }).click();
    await until("its row is gone", async () => (await row("93.184.216.36").count()) === 0);
    assert.match(said, /0 of its 1 .* stay open because of 93\.184\.216\.0\/24/);
  });
  await step("a removed entry disappears", async () => {
    await page.getByRole("button", { name: "Remove api.example.test" }).click();
    await until("its row is gone", async () => (await row("api.example.test").count()) === 0);
  });
  await step("nodes and gateways are shown", async () => {
    await row("ui-test").first().waitFor();
    await page.getByText("No gateway is connected.").waitFor();
  });
  await step("what was denied is shown, and allowing it fills in the form", async () => {
    await page.getByText("Nothing was denied.").waitFor();
    // A gateway would tell of this; the page has to bring it from there to the form.
    const seen = {
      gateway: "gw-1",
      packets: 3,
      first_seen: "2026-01-31T13:00:00Z",
      last_seen: "2026-01-31T13:05:00Z",
    };
    const entry = { id: "1", target: "93.184.216.34", ports: ["tcp/443"] };
    const denied = [
      {
        ...seen,
        source: "10.1.2.3",
        destination: "93.184.216.35",
        protocol: "tcp",
        port: 8443,
        listed: false,
        entries: [],
        other_ports: [],
      },
      {
        ...seen,
        source: "10.1.2.3",
        destination: "93.184.216.34",
        protocol: "tcp",
        port: 80,
        listed: false,
        entries: [],
        other_ports: [entry],
      },
      {
        ...seen,
        source: null,
        destination: null,
        protocol: "0",
        port: null,
        listed: false,
        entries: [],
        other_ports: [],
      },
    ];
    const nodes = [
      { name: "ui-test", answered: true },
      { name: "server-9", answered: false },
    ];
    let asked = "";
    await page.route("**/api/v1/denied?*", (route) => {
      asked = new URL(route.request().url()).searchParams.get("source");
      return route.fulfill({ json: { denied, next_cursor: null, complete: false, nodes } });
    });
    await page.getByLabel("Denied source").fill("10.1.2.3");
    const table = page.getByTestId("denied");
    await table.getByText("tcp/8443").waitFor();
    assert.equal(asked, "10.1.2.3");
    assert.match(await table.innerText(), /other ports only: 93\.184\.216\.34 tcp\/443/);
    await page.getByText("server-9 did not answer").waitFor();
    await page.getByRole("button", { name: "Allow 93.184.216.35" }).click();
    assert.equal(await page.getByLabel("Target").inputValue(), "93.184.216.35");
    assert.equal(await page.getByLabel("Ports").inputValue(), "tcp/8443");
    assert.match(await page.getByLabel("Comment").inputValue(), /10\.1\.2\.3 by gw-1/);
    await page.getByRole("button", { name: "Add", exact: true }).click();
    await page.getByRole("button", { name: "Remove 93.184.216.35" }).waitFor();
    await page.unroute("**/api/v1/denied?*");
  });
  await step("top talkers are shown by host and by entry", async () => {
    const card = page.getByTestId("traffic");
    await card.getByText("No traffic was reported in this time.").waitFor();
    // No gateway is connected: what one would have reported is put into the server's answer.
    const moved = { packets_out: 1, bytes_out: 40, packets_in: 2, bytes_in: 1_500_000_000 };
    const rows = { source: "10.0.0.7", entry: "<b>api.example.test</b>" };
    await page.route("**/api/v1/traffic/top*", async (route) => {
      const answer = await (await route.fetch()).json();
      assert.deepEqual(answer.rows, []);
      const other = answer.by === "source" ? "entry" : "source";
      const part = { name: rows[other], entry: null, bytes: 999_499 };
      const row = { name: rows[answer.by], entry: null, ...moved, gateways: ["gw-1"], with: [part] };
      await route.fulfill({ json: { ...answer, rows: [row], total: moved } });
    });
    await card.getByLabel("over the last").selectOption("1h");
    await card.getByRole("cell", { name: "10.0.0.7" }).waitFor();
    await card.getByRole("cell", { name: "1.5 GB" }).waitFor();
    await card.getByLabel("Sum up").selectOption("entry");
    await card.getByRole("columnheader", { name: "Mostly from" }).waitFor();
    await card.getByText("<b>api.example.test</b>").waitFor();
    await card.getByText("999 kB").waitFor();
  });
  if (process.env.SCREENSHOT) await page.screenshot({ path: process.env.SCREENSHOT, fullPage: true });
  await step("signing out ends the session", async () => {
    await page.getByRole("button", { name: "Sign out" }).click();
    await page.getByLabel("API token").waitFor();
    await page.reload();
    await page.getByLabel("API token").waitFor();
  });
  assert.deepEqual(faults, [], "the page threw");
} catch (error) {
  console.error(log.split("\n").slice(-20).join("\n"));
  throw error;
} finally {
  await browser?.close();
  child.kill("SIGTERM");
  await rm(directory, { recursive: true, force: true });
}
console.log(`ui: ${passed} passed, 0 failed`);

async function add(page, target, ports, comment) {
  await page.getByLabel("Target").fill(target);
  await page.getByLabel("Ports").fill(ports);
  await page.getByLabel("Comment").fill(comment);
  await Promise.all([
    page.waitForResponse((response) => response.request().method() === "POST"),
    page.getByRole("button", { name: "Add", exact: true }).click(),
  ]);
}

async function step(name, body) {
  await body();
  passed += 1;
  console.log(`ok  ui: ${name}`);
}

async function until(what, probe) {
  const deadline = Date.now() + START_DEADLINE_MS;
  for (;;) {
    try {
      const value = await probe();
      if (value) return value;
    } catch {
      // Not yet.
    }
    assert.ok(Date.now() < deadline, `timed out: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, 50));
  }
}

function freePort() {
  return new Promise((resolve, reject) => {
    const probe = createServer();
    probe.once("error", reject);
    probe.listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });
}
