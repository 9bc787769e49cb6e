// The feed: server-sent events, read by fetch, because EventSource cannot sign.
//
// connecting ─▶ live ─▶ lost ─▶ connecting …     Lost is told at once, and tried again with growing
//     └─▶ denied                                 pauses; denied is the server's word on our key.
//
// A stream that the server ends in good order (it does after an hour) is opened again without a
// word; only if that fails, it is lost.

import { signedFetch } from "./api.js";

const QUIET_MS = 12_000; // the server says something each 5 s
const CONNECT_MS = 10_000;
const PAUSES_MS = [500, 1000, 2000, 4000, 8000];
const BUFFER_MOST = 32 << 20; // characters of one event

/**
 * Watches with `key` until `stop`. Calls `on.status({kind, error, role, retryAt})` and, for each
 * event, `on.event(name, data)`.
 */
export class Feed {
  #key;
  #on;
  #stopped = false;
  #controller = null;
  #wake = () => {};
  #live = false;

  constructor(key, on) {
    this.#key = key;
    this.#on = on;
    globalThis.addEventListener("online", this.retry);
    globalThis.addEventListener("offline", this.#offline);
    this.#run();
  }

  /** Do not wait for the next try. */
  retry = () => this.#wake();

  stop() {
    this.#stopped = true;
    globalThis.removeEventListener("online", this.retry);
    globalThis.removeEventListener("offline", this.#offline);
    this.#controller?.abort();
    this.#wake();
  }

  #offline = () => {
    if (this.#live) this.#controller?.abort(new Error("This device is offline."));
  };

  async #run() {
    let failures = 0;
    while (!this.#stopped) {
      if (failures > 0 || !this.#live) this.#tell({ kind: "connecting", again: failures > 0 });
      const began = performance.now();
      let error = null;
      try {
        await this.#watch(() => {
          failures = 0;
        });
      } catch (raised) {
        error = raised;
      }
      if (this.#stopped) return;
      if (refused(error)) {
        this.#live = false;
        this.#tell({ kind: "denied", error });
        return;
      }
      if (error === null && this.#live && performance.now() - began > 2000) continue;
      this.#live = false;
      const pause = PAUSES_MS[Math.min(failures, PAUSES_MS.length - 1)] * (0.8 + 0.4 * Math.random());
      failures += 1;
      this.#tell({ kind: "lost", error: told(error), retryAt: Date.now() + pause });
      await this.#sleep(pause);
    }
  }

  async #watch(onLive) {
    const controller = new AbortController();
    this.#controller = controller;
    const silent = () => controller.abort(new Error("The server has fallen silent."));
    let timer = setTimeout(silent, CONNECT_MS);
    try {
      const response = await signedFetch("GET", "/watch", this.#key, {
        headers: { Accept: "text/event-stream" },
        signal: controller.signal,
      });
      const role = response.headers.get("X-Startmigration-Role") ?? "read";
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      const parse = events(this.#on.event);
      for (;;) {
        clearTimeout(timer);
        timer = setTimeout(silent, QUIET_MS);
        const { done, value } = await reader.read();
        if (done) return;
        if (parse(value) && !this.#live && !this.#stopped) {
          this.#live = true;
          onLive();
          this.#tell({ kind: "live", role });
        }
      }
    } catch (error) {
      throw controller.signal.aborted ? controller.signal.reason : error;
    } finally {
      clearTimeout(timer);
      controller.abort();
    }
  }

  #tell(status) {
    if (!this.#stopped) this.#on.status(status);
  }

  #sleep(ms) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, ms);
      this.#wake = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }
}

/** A reader of server-sent events: give it text as it comes; it tells whether an event came. */
export function events(onEvent) {
  let buffer = "";
  return (chunk) => {
    buffer += chunk;
    if (buffer.length > BUFFER_MOST) throw new Error("The server's event has no end.");
    const blocks = buffer.split("\n\n");
    buffer = blocks.pop();
    let any = false;
    for (const block of blocks) {
      const lines = block.split("\n");
      const of = (field) =>
        lines.filter((line) => line.startsWith(`${field}: `)).map((l) => l.slice(field.length + 2));
      const data = of("data").join("\n");
      if (data === "") continue; // a comment: it keeps the connection
      any = true;
      onEvent(of("event")[0] ?? "message", JSON.parse(data));
    }
    return any;
  };
}

function refused(error) {
  return error?.status >= 400 && error.status < 500 && error.code !== "Throttling";
}

function told(error) {
  if (error === null) return new Error("The server has ended the connection.");
  // What fetch raises says no more than "network error", in each browser's own words.
  return error instanceof TypeError ? new Error("The server does not answer.") : error;
}
