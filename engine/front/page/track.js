// The phases of a migration as a track, and where it stands on it.

import { el, say, set } from "./dom.js";

const FOLLOWED = ["CONNECT", "SNAPSHOT", "CATCH_UP", "FOLLOW", "CUT_OVER", "DONE"];
const SCANNED = ["CONNECT", "SNAPSHOT", "COPIED", "CUT_OVER", "DONE"];
const WORDS = {
  CONNECT: "Connect",
  SNAPSHOT: "Snapshot",
  CATCH_UP: "Catch up",
  FOLLOW: "Follow",
  COPIED: "Copied",
  CUT_OVER: "Cut over",
  DONE: "Done",
  FAILED: "Failed",
  STOPPED: "Stopped",
};

/** A phase in words. */
export function phaseName(phase) {
  return WORDS[phase] ?? phase;
}

/**
 * The track; `update(phase, sourceType, reached, ended)`: `reached` is the last phase before an end;
 * `ended` says that nothing goes on any more, whatever the last phase was.
 */
export class Track {
  #list = el("ol", { class: "track", "aria-label": "Phases" });
  #made = null;
  node = this.#list;

  update(phase, sourceType, reached = phase, ended = false) {
    const phases = sourceType === "scan" ? SCANNED : FOLLOWED;
    if (this.#made !== phases) {
      this.#made = phases;
      this.#list.replaceChildren(...phases.map((each) => step(each)));
    }
    const at = phases.indexOf(phases.includes(phase) ? phase : reached);
    const done = phase === "DONE";
    const broken = !done && (ended || !phases.includes(phase));
    const here = ended ? "(ended here)" : broken ? "(stopped here)" : "(now)";
    phases.forEach((each, i) => {
      const node = this.#list.children[i];
      const past = i < at || (done && i === at);
      set(node, "data-state", past ? "past" : i > at ? "ahead" : broken ? "broken" : "now");
      set(node, "aria-current", i === at && !broken ? "step" : null);
      say(node.lastChild, past ? "(done)" : i === at ? here : "");
    });
  }
}

function step(phase) {
  const label = el("span", { class: "label" }, phaseName(phase));
  return el("li", {}, el("span", { class: "dot", "aria-hidden": "true" }), label, unseen());
}

function unseen() {
  return el("span", { class: "unseen" });
}
