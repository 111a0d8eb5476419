// Opens reports in a headless Chromium and fails on an error in the console, a request for anything but the file itself, or a
// page that is wider than its window. Needs Node 18 and Chromium, no packages and no network.
//
//     node tests/report/browser.mjs report.html ...               checks
//     node tests/report/browser.mjs --shots DIR report.html ...   and keeps pictures: light, dark, narrow
//
// CHROMIUM names the program where it is not on the path.
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, writeFileSync } from "node:fs";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";

const LOOKS = [
  { name: "light", width: 1200, scheme: "light" },
  { name: "dark", width: 1200, scheme: "dark" },
  { name: "narrow", width: 400, scheme: "light" },
];
const NAMES = ["chromium-headless-shell", "chromium", "chromium-browser", "google-chrome"];

function chromium() {
  const named = process.env.CHROMIUM ? [process.env.CHROMIUM] : NAMES;
  const found = named.find((name) => spawnSync(name, ["--version"]).status === 0);
  if (!found) throw new Error(`no browser: tried ${named.join(", ")}; set CHROMIUM`);
  return found;
}

// The DevTools protocol over two pipes: one JSON message after another, each ended by a zero byte.
class Browser {
  constructor(program) {
    const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
      "--remote-debugging-pipe"];
    this.process = spawn(program, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
    this.waiting = new Map();
    this.events = [];
    this.next = 1;
    let rest = Buffer.alloc(0);
    this.process.stdio[4].on("data", (bytes) => {
      rest = Buffer.concat([rest, bytes]);
      for (let end = rest.indexOf(0); end >= 0; end = rest.indexOf(0)) {
        this.receive(JSON.parse(rest.subarray(0, end)));
        rest = rest.subarray(end + 1);
      }
    });
  }

  receive(message) {
    if (!message.id) return void this.events.push(message);
    const [done, failed] = this.waiting.get(message.id);
    this.waiting.delete(message.id);
    if (message.error) failed(new Error(message.error.message));
    else done(message.result);
  }

  send(method, params = {}, sessionId = undefined) {
    const id = this.next++;
    this.process.stdio[3].write(JSON.stringify({ id, method, params, sessionId }) + "\0");
    return new Promise((done, failed) => this.waiting.set(id, [done, failed]));
  }

  async event(method) {
    for (let tries = 0; tries < 6000; tries++) {
      if (this.events.some((event) => event.method === method)) return;
      await new Promise((done) => setTimeout(done, 50));
    }
    throw new Error(`${method}: nothing in five minutes`);
  }
}

function complaints(events, url) {
  const found = [];
  for (const { method, params } of events) {
    if (method === "Runtime.exceptionThrown") found.push(`exception: ${params.exceptionDetails.text}`);
    if (method === "Log.entryAdded" && params.entry.level !== "verbose") found.push(`console: ${params.entry.text}`);
    if (method === "Runtime.consoleAPICalled") found.push(`console: ${params.type}`);
    if (method === "Network.requestWillBeSent") {
      const asked = params.request.url;
      if (asked !== url && !asked.startsWith("data:")) found.push(`request: ${asked}`);
    }
  }
  return found;
}

async function check(browser, file, look, shots) {
  const url = pathToFileURL(resolve(file)).href;
  const { targetId } = await browser.send("Target.createTarget", { url: "about:blank" });
  const { sessionId } = await browser.send("Target.attachToTarget", { targetId, flatten: true });
  const send = (method, params) => browser.send(method, params, sessionId);
  await send("Emulation.setEmulatedMedia", { features: [{ name: "prefers-color-scheme", value: look.scheme }] });
  await send("Emulation.setDeviceMetricsOverride",
    { width: look.width, height: 900, deviceScaleFactor: 1, mobile: look.width < 600 });
  for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(`${domain}.enable`);
  browser.events.length = 0;
  await send("Page.navigate", { url });
  await browser.event("Page.loadEventFired");
  const expression = "JSON.stringify({wide: document.documentElement.scrollWidth, blank: !document.querySelector('h1'),"
    + " broken: [...document.images].filter((i) => !i.naturalWidth).length})";
  const { result } = await send("Runtime.evaluate", { expression });
  const found = complaints(browser.events, url);
  const { wide, blank, broken } = JSON.parse(result.value);
  if (wide > look.width) found.push(`${wide} pixels wide in a window of ${look.width}`);
  if (blank) found.push("no heading");
  if (broken) found.push(`${broken} pictures that cannot be shown`);
  if (shots) {
    const { data } = await send("Page.captureScreenshot", { captureBeyondViewport: true });
    const name = `${basename(file, ".html")}-${look.name}.png`;
    writeFileSync(join(shots, name), Buffer.from(data, "base64"));
  }
  await browser.send("Target.closeTarget", { targetId });
  return found.map((text) => `${file} (${look.name}): ${text}`);
}

const files = process.argv.slice(2);
const shots = files[0] === "--shots" ? files.splice(0, 2)[1] : undefined;
if (shots) mkdirSync(shots, { recursive: true });
const missing = files.filter((file) => !existsSync(file));
if (!files.length || missing.length) throw new Error(`expected reports that exist, got [${files}], missing [${missing}]`);
const browser = new Browser(chromium());
const found = [];
for (const file of files) for (const look of LOOKS) found.push(...(await check(browser, file, look, shots)));
browser.process.kill();
found.forEach((text) => console.error(text));
console.log(`${files.length} reports in ${LOOKS.length} looks: ${found.length} complaints`);
process.exit(found.length ? 1 : 0);
