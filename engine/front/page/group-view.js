// One group: its migration that goes on, or what can be done with it.

import { el, say, set, show } from "./dom.js";
import { CutOver } from "./cut-over.js";
import { ask } from "./dialog.js";
import { EventList } from "./event-list.js";
import { Charts, Counters, Keys, Result } from "./figures.js";
import { busy, Outcome } from "./form.js";
import { address, duration, time } from "./format.js";
import { toneOf } from "./group-list.js";
import { Shards } from "./shards.js";
import { Speed } from "./speed.js";
import { StartForm } from "./start-form.js";
import { Track } from "./track.js";
import { GroupVerification } from "./verification.js";

/** A view of the group `id`; `update` is called with each state, and each second. */
export class GroupView {
  #app;
  #name;
  #status = el("span", { class: "badge" });
  #delete = el("button", { type: "button", class: "danger", click: () => this.#deleteIt() }, "Delete…");
  #resume = el("button", { type: "button", class: "primary", click: () => this.#resumeIt() }, "Resume…");
  #unblockButton = el("button", { type: "button", click: () => this.#unblock() }, "Unblock source…");
  #stopClients = el(
    "button",
    { type: "button", click: () => this.#stopDisconnecting() },
    "Stop disconnecting clients",
  );
  #outcome = new Outcome();
  #route = el("p", { class: "route" });
  #since = el("p", { class: "quiet" });
  #track = new Track();
  #reason = el("p", { class: "reason" });
  #keys = new Keys();
  #head;
  #charts = new Charts();
  #counters = new Counters();
  #shards = new Shards();
  #events = new EventList();
  #result = new Result();
  #cutOver;
  #speed;
  #start;
  #verification;
  #reached = null;
  node;

  constructor(app, id) {
    this.#app = app;
    this.id = id;
    this.#name = el("h2", { tabindex: "-1" }, id);
    this.#cutOver = new CutOver(app, id);
    this.#speed = new Speed(app, id);
    this.#start = new StartForm(app, id);
    this.#verification = new GroupVerification(app, id);
    this.#head = el(
      "section",
      { class: "card hero", "aria-label": `Migration of ${id}` },
      el("div", { class: "head" }, this.#name, this.#status, this.#resume, this.#delete),
      this.#outcome.node,
      this.#route,
      this.#since,
      this.#track.node,
      this.#reason,
      this.#keys.node,
    );
    const side = el("div", { class: "side" }, this.#cutOver.node, this.#speed.node, this.#counters.node);
    this.#after = el("div", { class: "buttons" }, this.#unblockButton, this.#stopClients);
    this.#result.node.append(this.#after);
    const left = [this.#result.node, this.#start.node, this.#verification.node, this.#shards.node];
    left.push(this.#charts.node, this.#events.node);
    const columns = el("div", { class: "columns" }, el("div", { class: "wide" }, ...left), side);
    this.node = el("div", { class: "view" }, this.#head, columns);
    this.#side = side;
    this.#events.load(app, id);
  }

  #side;
  #after;

  /** `group` and `events` as the feed has them, `history` its figures, now in ms. */
  update(group, events, history, now) {
    const { Migration: migration = null, Details: details } = group;
    const live = this.#app.live;
    say(this.#status, group.Status);
    set(this.#status, "data-status", toneOf(group));
    const target = address(group.NodeGroups[0].PrimaryEndpoint);
    const source = details ? `${address(details.Source)} → ` : "";
    say(this.#route, `${source}${target}`);
    this.#when(migration, details, now);
    this.#progress(migration, details);
    this.#shards.update(migration && details, now);
    this.#verification.update(group.Verification ?? null, details, this.#app.may("migrate"));
    if (migration) {
      this.#start.clear();
      this.#keys.update(migration);
      this.#counters.update(details);
      this.#cutOver.update(migration, details, this.#app.may("migrate"), live);
      this.#speed.update(migration, details, this.#app.may("migrate"));
    }
    show(this.#keys.node, migration !== null);
    show(this.#side, migration !== null);
    show(this.#start.node, migration === null && this.#app.may("migrate"));
    show(this.#delete, migration === null && this.#app.may("admin"));
    const over = migration === null && Boolean(details?.Status);
    if (over) this.#result.update(details);
    show(this.#result.node, over);
    const may = this.#app.may("migrate");
    show(this.#resume, migration !== null && migration.Workers.length === 0 && may);
    // Also of one that is stopped: where its target came back older, nothing goes on with it.
    const idle = over || (migration !== null && migration.Workers.length === 0);
    show(this.#unblockButton, idle && may && Boolean(details?.SourceBlocked));
    show(this.#stopClients, over && may && Boolean(details.SourceClients?.Disconnecting || details.SourceClients?.UnattendedSince));
    show(this.#after, !this.#unblockButton.hidden || !this.#stopClients.hidden);
    // What ended before it began has no figures.
    const figures = history !== null && (migration !== null || history.length > 2);
    show(this.#charts.node, figures);
    if (figures) this.#charts.update(history, now, migration === null);
    this.#events.update(events, this.id);
  }

  async #resumeIt() {
    const yes = await ask({
      title: `Resume the migration of ${this.id}?`,
      lines: ["A new worker goes on from where the target stands.", this.#reason.textContent],
      yes: "Resume",
    });
    if (!yes) return;
    const asked = await busy(this.#resume, "Resuming…", this.#outcome, () =>
      this.#app.call("ResumeMigration", [["ReplicationGroupId", this.id]]),
    );
    if (asked) this.#outcome.good("The migration goes on.");
  }

  async #unblock() {
    const yes = await ask({
      title: `Unblock the source of ${this.id}?`,
      lines: [
        "The source accepts writes again. They are not replicated to the target, and clients that " +
          "connect to the source are no longer disconnected.",
      ],
      yes: "Unblock source",
      danger: true,
      typed: this.id,
    });
    if (!yes) return;
    const asked = await busy(this.#unblockButton, "Unblocking…", this.#outcome, () =>
      this.#app.call("UnblockSource", [["ReplicationGroupId", this.id]]),
    );
    if (asked) this.#outcome.good("The source accepts writes again.");
  }

  async #stopDisconnecting() {
    const asked = await busy(this.#stopClients, "Stopping…", this.#outcome, () =>
      this.#app.call("DisconnectClients", [
        ["ReplicationGroupId", this.id],
        ["Seconds", "0"],
      ]),
    );
    if (asked) this.#outcome.good("Clients of the source are no longer disconnected.");
  }

  async #deleteIt() {
    const yes = await ask({
      title: `Delete the group ${this.id}?`,
      lines: ["It is forgotten here. Its server stays as it is, with all its data."],
      yes: "Delete",
      danger: true,
      typed: this.id,
    });
    if (!yes) return;
    await busy(this.#delete, "Deleting…", this.#outcome, () =>
      this.#app.call("DeleteReplicationGroup", [["ReplicationGroupId", this.id]]),
    );
  }

  #when(migration, details, now) {
    if (!migration || !details) {
      say(this.#since, "");
      return;
    }
    const began = Date.parse(details.StartTime);
    const how = { replica: "followed as a replica", scan: "scanned, later writes are not followed" };
    const said = [`started ${time(began)}, ${duration((now - began) / 1000)} ago`];
    said.push(how[migration.SourceType] ?? "");
    if (migration.Workers.length > 0) said.push(`worker ${migration.Workers[0].Pid}`);
    say(this.#since, said.filter(Boolean).join(" · "));
  }

  #progress(migration, details) {
    const phase = migration?.Phase ?? details?.Phase ?? null;
    show(this.#track.node, phase !== null);
    show(this.#reason, Boolean(migration?.Reason));
    if (phase === null) return;
    const type = migration?.SourceType ?? details.SourceType;
    if (!["FAILED", "STOPPED"].includes(phase)) this.#reached = phase;
    else if (this.#reached === null) this.#reached = reachedBy(migration, details);
    this.#track.update(phase, type, this.#reached, migration === null);
    if (migration) {
      say(this.#reason, migration.Reason);
      const waiting = ["FOLLOW", "COPIED"].includes(phase) ? "wait" : toneOf({ Migration: migration });
      set(this.#reason, "data-tone", migration.CanComplete ? "good" : waiting);
    }
  }
}

const STEPS = { connect: "CONNECT", snapshot: "SNAPSHOT", wait: "COPIED", follow: "FOLLOW" };

// How far a migration came that had ended, or stood still, when it was first seen.
function reachedBy(migration, details) {
  if (migration) {
    if (migration.AppliedOffset !== null) return "FOLLOW";
    return migration.Keys > 0 ? "SNAPSHOT" : "CONNECT";
  }
  const names = (details.Steps ?? []).map((step) => STEPS[step.Name]).filter(Boolean);
  return names.at(-1) ?? "CONNECT";
}
