// Every key of a group compared with its source: asked for here, and what it has come to.

import { el, keep, say, set, show } from "./dom.js";
import { busy, Outcome } from "./form.js";
import * as format from "./format.js";

/** The verification of one group; buttons are there for a role that may. */
export class GroupVerification {
  #app;
  #id;
  #line = el("p", { class: "reason" });
  #list = el("ul", { class: "lost" });
  #begin = el("button", { type: "button", click: () => this.#ask(this.#begin, "Starting…") }, "Compare every key");
  #resume = el("button", { type: "button", click: () => this.#ask(this.#resume, "Resuming…", ["Resume", "true"]) }, "Go on comparing");
  #stop = el("button", { type: "button", click: () => this.#ask(this.#stop, "Stopping…", ["Stop", "true"]) }, "Stop comparing");
  #buttons = el("div", { class: "buttons" }, this.#begin, this.#resume, this.#stop);
  #outcome = new Outcome();
  node;

  constructor(app, id) {
    this.#app = app;
    this.#id = id;
    const parts = [this.#line, this.#list, this.#buttons, this.#outcome.node];
    this.node = el("section", { class: "card", "aria-label": "Verification" }, el("h3", {}, "Verification"), ...parts);
  }

  /** `found` and `details` as the feed has them; whether the viewer may act. */
  update(found, details, may) {
    const running = found?.Status === "running";
    const source = found !== null || Boolean(details?.Source);
    show(this.node, found !== null || (source && may));
    show(this.#begin, source && !running);
    show(this.#resume, ["stopped", "gone", "failed"].includes(found?.Status));
    show(this.#stop, running);
    show(this.#buttons, may);
    show(this.#line, found !== null);
    if (found === null) return;
    say(this.#line, running ? runningWords(found) : `${found.Reason} ${when(found)}`);
    const tones = { equal: "good", different: "bad" };
    set(this.#line, "data-tone", running ? "plain" : (tones[found.Outcome] ?? "wait"));
    const rows = found.Differences.map(rowWords);
    const more = (found.Different ?? 0) - rows.length;
    if (rows.length > 0 && more > 0) rows.push(`and ${format.count(more)} more, in the report`);
    show(this.#list, rows.length > 0);
    keep(this.#list, rows, (each) => each, (text) => ({ node: el("li", {}, text) }));
  }

  async #ask(button, words, ...parameters) {
    await busy(button, words, this.#outcome, () =>
      this.#app.call("VerifyReplicationGroup", [["ReplicationGroupId", this.#id], ...parameters]),
    );
  }
}

function runningWords(found) {
  const said = [found.Step ?? "starting"];
  if (found.TotalKeys) said.push(`${format.count(found.Keys)} of about ${format.count(found.TotalKeys)} keys of both ends`);
  if (found.SecondsLeft !== null) said.push(`${format.duration(found.SecondsLeft)} left`);
  if (found.Different > 0) said.push(`${format.count(found.Different)} differ`);
  return said.join(" · ");
}

function when(found) {
  return found.EndTime ? `(${format.time(found.EndTime)})` : "";
}

function rowWords({ Db: db, Key: key, Kinds: kinds }) {
  return `${db === 0 ? key : `${key} (db ${db})`}: ${kinds.join(", ")}`;
}
