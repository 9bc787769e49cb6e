// The cut-over: its gates with their figures, and the operator's word.

import { el, keep, say, set, show } from "./dom.js";
import { ask } from "./dialog.js";
import { busy, Outcome } from "./form.js";

const OPEN = new Map([
  [true, ["pass", "open"]],
  [false, ["fail", "closed"]],
  [null, ["wait", "not yet known"]],
]);

const FOLLOWED =
  "Writes to the source are blocked for a moment, the rest is applied, and both ends are compared. " +
  "If they differ, or it takes too long, nothing is changed and following goes on. Afterwards the " +
  "source refuses writes (NOREPLICAS), unless the migration was started with source_after=resume.";
const SCANNED =
  "Both ends are compared; if they differ, the cut-over is refused. What was written to the source " +
  "after the scan had passed is not migrated.";

const UNVERIFIED =
  "Writes to the source are blocked for a moment and the rest is applied, and the source " +
  "refuses writes afterwards. Both ends are not compared: a difference between them is not found.";
const UNVERIFIED_SCAN =
  "Both ends are not compared: a difference between them is not found. What was written to the source " +
  "after the scan had passed is not migrated.";

/** The gates of one group's migration; buttons are there for a role that may. */
export class CutOver {
  #app;
  #id;
  #gates = el("ul", { class: "gates" });
  #verdict = el("p", { class: "verdict" });
  #complete = el("button", { type: "button", class: "primary", click: () => this.#ask("complete") });
  #unverified = el(
    "button",
    { type: "button", class: "danger", click: () => this.#ask("unverified") },
    "Complete without verification…",
  );
  #force = el("button", { type: "button", class: "danger", click: () => this.#ask("force") }, "Abort (Force)…");
  #buttons = el("div", { class: "buttons" }, this.#complete, this.#unverified, this.#force);
  #outcome = new Outcome();
  #standing = "";
  #stood = "";
  #ready = false;
  #scanned = false;

  constructor(app, id) {
    this.#app = app;
    this.#id = id;
    this.#complete.textContent = "Complete…";
    this.#verdict.id = "verdict";
    this.#complete.setAttribute("aria-describedby", "verdict");
    this.node = el(
      "section",
      { class: "card", "aria-label": "Cut-over" },
      el("h3", {}, "Cut-over"),
      this.#gates,
      this.#verdict,
      this.#buttons,
      this.#outcome.node,
    );
  }

  /** `migration` and `details` as the feed has them; whether the viewer may act, now. */
  update(migration, details, may, live) {
    keep(this.#gates, details?.Gates ?? [], (gate) => gate.Name, gateRow);
    const under = migration.Phase === "CUT_OVER";
    // What was refused was refused as things stood then.
    const standing = `${migration.Phase} ${migration.CanComplete}`;
    if (standing !== this.#stood && this.#stood !== "") this.#outcome.clear();
    this.#stood = standing;
    this.#ready = migration.CanComplete;
    this.#scanned = migration.SourceType === "scan";
    const reason = migration.Reason || "not in sync yet";
    const auto = details?.AutoCutOver && !under ? " It cuts over by itself once all are open." : "";
    const open = under ? "A cut-over is under way" : this.#ready ? "Can be completed" : "Not now";
    say(this.#verdict, `${open}: ${reason}.${auto}`);
    set(this.#verdict, "data-tone", this.#ready ? "good" : under ? "plain" : "wait");
    show(this.#buttons, may);
    for (const button of [this.#complete, this.#unverified])
      set(button, "aria-disabled", this.#ready && live ? null : "true");
    set(this.#force, "aria-disabled", live ? null : "true");
    this.#standing = reason;
  }

  /** `word`: "complete", "unverified" or "force". */
  async #ask(word) {
    const [button, question, parameter] = {
      complete: [this.#complete, () => this.#completed(), []],
      unverified: [this.#unverified, () => this.#withoutVerification(), [["SkipVerification", "true"]]],
      force: [this.#force, () => this.#forced(), [["Force", "true"]]],
    }[word];
    if (button.getAttribute("aria-disabled") === "true") {
      if (word !== "force") this.#outcome.bad(`Not now: ${this.#standing}`);
      return;
    }
    if (!(await ask(question()))) return;
    const asked = await busy(button, "Asking…", this.#outcome, () =>
      this.#app.call("CompleteMigration", [["ReplicationGroupId", this.#id], ...parameter]),
    );
    if (asked) this.#outcome.good(word === "force" ? "Asked to abort." : "Asked for the cut-over.");
  }

  #completed() {
    return {
      title: `Complete the migration of ${this.#id}?`,
      lines: [this.#scanned ? SCANNED : FOLLOWED, "Afterwards clients belong to the target."],
      yes: "Complete",
    };
  }

  #withoutVerification() {
    return {
      title: `Complete the migration of ${this.#id} without verification?`,
      lines: [
        this.#scanned ? UNVERIFIED_SCAN : UNVERIFIED,
        `It stands so: ${this.#standing}.`,
        "Afterwards clients belong to the target.",
      ],
      yes: "Complete without verification",
      danger: true,
      typed: this.#id,
    };
  }

  #forced() {
    return {
      title: `Abort the migration of ${this.#id}?`,
      lines: [
        "Force aborts: nothing is cut over. The source keeps accepting writes, and " +
          "the target stays as it is now. What has not arrived by then does not arrive.",
        `It stands so: ${this.#standing}.`,
      ],
      yes: "Abort",
      danger: true,
      typed: this.#id,
    };
  }
}

function gateRow() {
  const name = el("span", { class: "gate" });
  const word = el("span", { class: "unseen" });
  const figure = el("span", { class: "figure" });
  const node = el("li", {}, name, word, figure);
  const update = (gate) => {
    const [state, spoken] = OPEN.get(gate.Open ?? null);
    set(node, "data-open", state);
    say(name, gate.Name);
    say(word, `${spoken}: `);
    say(figure, gate.Figure);
  };
  return { node, update };
}
