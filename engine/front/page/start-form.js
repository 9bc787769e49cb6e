// TestMigration and StartMigration: where the data comes from.

import { textOf } from "./api.js";
import { el, show } from "./dom.js";
import { busy, field, Outcome, tick } from "./form.js";

const TAKE_OVER =
  "Take the target over from another migration: every key on the target is removed, also those that " +
  "others have written since. If it had keys before that migration, none is removed.";
const WORDS = { pass: "passed", warn: "warning", fail: "failed" };

/** The form for one group; `app.call(action, parameters)` asks the API. */
export class StartForm {
  #app;
  #id;
  #host = field("Source address", { id: "source-host", name: "host", required: true });
  #port = field("Port", {
    id: "source-port",
    name: "port",
    value: "6379",
    inputmode: "numeric",
    required: true,
  });
  #auto = tick("Cut over by itself as soon as it is in sync", { id: "auto", name: "auto" });
  #skip = field(
    "Checks to skip",
    { id: "skip-checks", name: "skip" },
    "Names as the test shows them, with commas between; usually none.",
  );
  #retry = field(
    "Retry for (seconds)",
    { id: "retry-for", name: "retry", inputmode: "numeric" },
    "How long what passes by itself is waited for without progress; empty: 6 hours.",
  );
  #take = tick(TAKE_OVER, {
    id: "take-over",
    name: "take",
  });
  #test = el("button", { type: "button", click: () => this.#testIt() }, "Test");
  #start = el("button", { type: "submit", class: "primary" }, "Start migration");
  #outcome = new Outcome();
  #checks = el("ul", { class: "gates checks" });

  constructor(app, id) {
    this.#app = app;
    this.#id = id;
    const ends = el("div", { class: "ends" }, this.#host.node, this.#port.node);
    const buttons = el("div", { class: "buttons" }, this.#test, this.#start);
    const form = el(
      "form",
      {
        submit: (event) => {
          event.preventDefault();
          this.#startIt();
        },
      },
      ends,
      this.#skip.node,
      this.#retry.node,
      this.#auto.node,
      this.#take.node,
      buttons,
      this.#outcome.node,
      this.#checks,
    );
    const told =
      "The source's data is only read. The server knows its credentials by host; none are given here.";
    const afterwards =
      "After the cut-over the source refuses writes (NOREPLICAS), and its clients are disconnected, " +
      "again for ten minutes if they come back, until the source is unblocked.";
    this.node = el(
      "section",
      { class: "card", "aria-label": "Start a migration" },
      el("h3", {}, "Start a migration"),
      el("p", { class: "quiet" }, told),
      el("p", { class: "quiet" }, afterwards),
      form,
    );
    show(this.#checks, false);
  }

  /** A migration goes on: what was said before it is old. */
  clear() {
    this.#outcome.clear();
    show(this.#checks, false);
  }

  #parameters() {
    const member = "CustomerNodeEndpointList.member.1";
    const names = this.#skip.input.value.split(",").map((name) => name.trim());
    const skipped = names.filter((name) => name).map((name, n) => [`SkipChecks.member.${n + 1}`, name]);
    return [
      ["ReplicationGroupId", this.#id],
      [`${member}.Address`, this.#host.input.value.trim()],
      [`${member}.Port`, this.#port.input.value.trim()],
      ...skipped,
      ...(this.#take.input.checked ? [["TakeOver", "true"]] : []),
    ];
  }

  async #testIt() {
    show(this.#checks, false);
    await busy(this.#test, "Testing…", this.#outcome, async () => {
      const answer = await this.#app.call("TestMigration", this.#parameters());
      const checks = answer.getElementsByTagNameNS("*", "Checks")[0];
      this.#checks.replaceChildren(...Array.from(checks?.children ?? [], checkRow));
      show(this.#checks, this.#checks.children.length > 0);
      this.#outcome.good("Nothing stands in the way of a migration.");
    });
  }

  async #startIt() {
    show(this.#checks, false);
    await busy(this.#start, "Starting…", this.#outcome, async () => {
      const auto = this.#auto.input.checked ? [["AutoCutover", "true"]] : [];
      const seconds = this.#retry.input.value.trim();
      const retry = seconds ? [["RetryFor", seconds]] : [];
      await this.#app.call("StartMigration", [...this.#parameters(), ...auto, ...retry]);
      this.#outcome.good("The migration has been started.");
    });
  }
}

function checkRow(check) {
  const outcome = textOf(check, "outcome");
  const remedy = textOf(check, "remedy");
  return el(
    "li",
    { "data-open": outcome },
    el("span", { class: "gate" }, textOf(check, "name")),
    el("span", { class: "unseen" }, `${WORDS[outcome] ?? outcome}: `),
    el("span", { class: "figure" }, textOf(check, "figure"), remedy ? ` – ${remedy}` : ""),
  );
}
