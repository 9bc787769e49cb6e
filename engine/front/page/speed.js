// How fast a migration moves data, and whether it is paused.

import { el, say, set, show } from "./dom.js";
import { busy, field, Outcome } from "./form.js";
import * as format from "./format.js";

/** The speed of one group's migration; its form is there for a role that may. */
export class Speed {
  #app;
  #id;
  #line = el("p", { class: "reason" });
  #bytes = field("Bytes a second", { id: "rate-bytes", inputmode: "numeric" }, "Nothing: as it is; 0: no bound.");
  #keys = field("Keys a second", { id: "rate-keys", inputmode: "numeric" }, "While it follows, a command is a key.");
  #set = el("button", { type: "submit" }, "Set rate");
  #pause = el("button", { type: "button", click: () => this.#pauseIt() }, "Pause");
  #continue = el("button", { type: "button", class: "primary", click: () => this.#continueIt() }, "Continue");
  #form = el(
    "form",
    { submit: (event) => this.#setIt(event) },
    this.#bytes.node,
    this.#keys.node,
    el("div", { class: "buttons" }, this.#set, this.#pause, this.#continue),
  );
  #outcome = new Outcome();
  node;

  constructor(app, id) {
    this.#app = app;
    this.#id = id;
    const parts = [this.#line, this.#form, this.#outcome.node];
    this.node = el("section", { class: "card", "aria-label": "Speed" }, el("h3", {}, "Speed"), ...parts);
  }

  /** `migration` and `details` as the feed has them; whether the viewer may act. */
  update(migration, details, may) {
    say(this.#line, words(migration));
    set(this.#line, "data-tone", migration.Paused || migration.Throttled ? "wait" : "plain");
    const byOperator = Boolean(details?.PausedByOperator);
    show(this.#pause, !byOperator);
    show(this.#continue, byOperator);
    show(this.#form, may);
  }

  async #setIt(event) {
    event.preventDefault();
    const given = [["BytesPerSecond", this.#bytes], ["KeysPerSecond", this.#keys]]
      .map(([name, { input }]) => [name, input.value.trim()])
      .filter(([, value]) => value !== "");
    const asked = await busy(this.#set, "Setting…", this.#outcome, () =>
      this.#app.call("SetMigrationRate", [["ReplicationGroupId", this.#id], ...given]),
    );
    if (!asked) return;
    this.#outcome.good("The rate is set.");
    for (const { input } of [this.#bytes, this.#keys]) input.value = "";
  }

  async #pauseIt() {
    const asked = await busy(this.#pause, "Pausing…", this.#outcome, () =>
      this.#app.call("PauseMigration", [["ReplicationGroupId", this.#id]]),
    );
    if (asked) this.#outcome.good("The migration is paused.");
  }

  async #continueIt() {
    const asked = await busy(this.#continue, "Continuing…", this.#outcome, () =>
      this.#app.call("ContinueMigration", [["ReplicationGroupId", this.#id]]),
    );
    if (asked) this.#outcome.good("The migration goes on.");
  }
}

function words(migration) {
  const rate = migration.Rate ?? {};
  const bounds = [];
  if (rate.Bytes) bounds.push(`${format.count(rate.Bytes)} bytes`);
  if (rate.Keys) bounds.push(`${format.count(rate.Keys)} keys`);
  const said = [bounds.length > 0 ? `at most ${bounds.join(" and ")} a second` : "as fast as both ends are"];
  if (migration.Throttled) said.unshift(migration.Throttled);
  if (migration.Paused) said.unshift(migration.Paused);
  return said.join(" · ");
}
