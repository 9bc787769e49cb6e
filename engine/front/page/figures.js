// The figures of a migration: keys and what is left, the charts, and the counters.

import { Chart } from "./chart.js";
import { el, keep, say, set, show } from "./dom.js";
import * as format from "./format.js";

const WINDOWS = [
  ["5 min", 300_000],
  ["15 min", 900_000],
  ["1 h", 3_600_000],
];
const LEAST_MS = 30_000;

/** Keys that have arrived, of how many, and when the rest will have. */
export class Keys {
  #bar = el("div", { class: "fill" });
  #track = el(
    "div",
    { class: "bar", role: "progressbar", "aria-label": "Keys", "aria-valuemin": 0, "aria-valuemax": 100 },
    this.#bar,
  );
  #done = el("strong", {});
  #total = el("span", { class: "quiet" });
  #eta = el("span", { class: "eta" });
  node = el(
    "div",
    { class: "keys" },
    el("p", {}, this.#done, " ", this.#total, this.#eta),
    this.#track,
  );

  update(migration) {
    const known = migration.TotalKeys !== null;
    const none = migration.CanComplete ? 100 : 0;
    const share = migration.TotalKeys ? format.percent(migration.Keys, migration.TotalKeys) : none;
    say(this.#done, format.count(migration.Keys));
    const of = known ? `of about ${format.count(migration.TotalKeys)} keys · ${share} %` : "keys";
    say(this.#total, known ? of : `${of}, of how many is not known yet`);
    const eta = migration.Phase === "SNAPSHOT" ? migration.EtaSeconds : null;
    say(this.#eta, eta === null ? "" : `${format.duration(eta)} left`);
    set(this.#track, "aria-valuenow", known ? share : null);
    this.#bar.style.width = `${share}%`;
  }
}

/** The charts of one group. */
export class Charts {
  #throughput = new Chart(
    "Throughput",
    [
      { name: "keys/s", tone: "a" },
      { name: "commands/s", tone: "b" },
    ],
    format.brief,
    10,
  );
  #volume = new Chart(
    "Volume",
    [
      { name: "snapshot", tone: "a" },
      { name: "stream", tone: "b" },
    ],
    format.rate,
    1000,
  );
  #lagBytes = new Chart("Lag", [{ name: "behind", tone: "c" }], format.bytes, 1000);
  #lagSeconds = new Chart("Lag in time", [{ name: "behind", tone: "c" }], format.duration, 1);
  #window = WINDOWS[0][1];
  #choice;
  node;

  constructor() {
    this.#choice = WINDOWS.map(([name, ms]) =>
      el("button", { type: "button", "aria-pressed": String(ms === this.#window), click: () => this.#choose(ms) }, name),
    );
    const choice = el("div", { class: "choice", role: "group", "aria-label": "Time shown" }, ...this.#choice);
    const charts = [this.#throughput, this.#volume, this.#lagBytes, this.#lagSeconds];
    this.node = el(
      "section",
      { class: "card", "aria-label": "Figures over time" },
      el("div", { class: "head" }, el("h3", {}, "Over time"), choice),
      el("div", { class: "charts" }, ...charts.map((chart) => chart.node)),
    );
  }

  /**
   * Draw a history up to `now` (ms since the epoch), or all of it up to its end, if the migration is
   * over. One that is younger than the window fills it.
   */
  update(history, now, over) {
    const [first, last] = history.span ?? [now, now];
    const to = over ? last : now;
    const from = to - Math.min(this.#window, Math.max(to - first, LEAST_MS));
    const draw = (chart, ...series) => chart.update(series, from, to, over);
    draw(this.#throughput, history.rate("keys", from), history.rate("commands", from));
    draw(this.#volume, history.rate("bytes", from), history.rate("applied", from));
    draw(this.#lagBytes, history.series("lagBytes", from));
    draw(this.#lagSeconds, history.series("lagSeconds", from));
    this.#last = [history, now, over];
  }

  #last = null;

  #choose(ms) {
    this.#window = ms;
    this.#choice.forEach((button, i) => set(button, "aria-pressed", WINDOWS[i][1] === ms));
    if (this.#last) this.update(...this.#last);
  }
}

/** Counters, as the server lists them. */
export class Counters {
  #list = el("dl", { class: "counters" });
  node = el("section", { class: "card", "aria-label": "Counters" }, el("h3", {}, "Counters"), this.#list);

  update(details) {
    const rows = (details?.Counters ?? []).map(({ Name: name, Value: value, Form: form, Worry: worry }) => [
      name,
      form === "bytes" ? format.bytes(value) : format.count(value),
      worry,
    ]);
    keep(this.#list, rows, ([name]) => name, pair);
  }
}

function pair([name]) {
  const figure = el("dd", {});
  const node = el("div", {}, el("dt", {}, name), figure);
  const update = ([, value, worry]) => {
    say(figure, value);
    set(node, "data-worry", worry ? "true" : null);
  };
  return { node, update };
}

/** What a migration that is over came to. */
export class Result {
  #title = el("h3", {});
  #line = el("p", {});
  #steps = el("ul", { class: "steps" });
  #lost = el("ul", { class: "lost" });
  #lostHead = el("h4", {}, "Not carried");
  #clients = new SourceClients();
  #verified = new Verified();
  node = el(
    "section",
    { class: "card", "aria-label": "Last migration" },
    this.#title,
    this.#line,
    this.#verified.node,
    this.#steps,
    this.#clients.node,
    this.#lostHead,
    this.#lost,
  );

  update(details) {
    const words = { done: "completed", forced: "aborted", failed: "failed" };
    say(this.#title, `Last migration: ${words[details.Status] ?? details.Status}`);
    const said = [`ended ${format.time(details.EndTime)}`];
    if (details.Keys !== undefined) {
      said.push(`${format.count(details.Keys)} keys`, format.bytes(details.Bytes));
      said.push(`${format.count(details.Commands)} commands`, `in ${format.duration(details.Seconds)}`);
    }
    if (details.FenceSeconds) said.push(`writes blocked for ${format.duration(details.FenceSeconds)}`);
    const errors = details.Errors?.length ? ` – ${details.Errors.join("; ")}` : "";
    say(this.#line, said.join(" · ") + errors);
    this.#verified.update(details.Verification ?? null);
    set(this.node, "data-tone", { done: "good", forced: "wait" }[details.Status] ?? "bad");
    keep(this.#steps, details.Steps ?? [], (each) => `${each.Name} ${each.Shard ?? ""}`, stepRow);
    const lost = details.NotCarriedKeys ?? [];
    const more = (details.NotCarried ?? 0) - lost.length;
    const byReason = new Map();
    for (const { Db: db, Key: key, Reason: reason } of lost) {
      byReason.set(reason, [...(byReason.get(reason) ?? []), db === 0 ? key : `${key} (db ${db})`]);
    }
    const rows = Array.from(byReason, ([reason, keys]) => `${reason}: ${keys.join(", ")}`);
    rows.push(...(details.CarriedWithLoss ?? []), ...(details.LeftOut ?? []));
    if (details.LostWrites) rows.push(details.LostWrites);
    if (more > 0) rows.push(`and ${format.count(more)} more`);
    this.#clients.update(details.SourceClients ?? null);
    show(this.#lostHead, rows.length > 0);
    keep(this.#lost, rows, (each) => each, (text) => ({ node: el("li", {}, text) }));
  }
}

/** What the comparison of both ends has shown. */
class Verified {
  #line = el("p", { class: "verified" });
  #list = el("ul", { class: "lost" });
  node = el("div", {}, el("h4", {}, "Verification"), this.#line, this.#list);

  update(found) {
    const words = found === null ? "Both ends were not compared." : found.Reason;
    say(this.#line, words);
    set(this.#line, "data-tone", found === null ? "wait" : found.Ok ? "good" : "bad");
    const rows = (found?.NotCompared ?? []).map(({ Type: type, Keys: keys }) =>
      `${format.count(keys)} keys of the type ${type} were not compared`,
    );
    for (const each of found?.Differences ?? []) rows.push(keyRow("differs", each));
    for (const each of found?.OverBudget ?? []) rows.push(keyRow("not compared at the end", each));
    rows.push(...(found?.LostLibraries ?? []));
    show(this.#list, rows.length > 0);
    keep(this.#list, rows, (each) => each, (text) => ({ node: el("li", {}, text) }));
  }
}

function keyRow(what, { Db: db, Key: key, Reason: reason }) {
  return `${what}: ${db === 0 ? key : `${key} (db ${db})`}: ${reason}`;
}

/** The clients that still come to the source behind the cut-over. */
class SourceClients {
  #line = el("p", {});
  #list = el("ul", { class: "lost" });
  node = el("div", {}, el("h4", {}, "Clients at the source"), this.#line, this.#list);

  update(found) {
    show(this.node, found !== null);
    if (found === null) return;
    const now = found.Connected === null ? "not known how many are there" : `${format.count(found.Connected)} at the last look`;
    const said = [now, `${format.count(found.Disconnected)} disconnected since the cut-over`];
    if (found.Kept > 0) said.push(`${format.count(found.Kept)} kept`);
    if (found.Writes > 0) said.push(`${format.count(found.Writes)} commands that write run there since`);
    if (found.Scripts > 0) said.push(`${format.count(found.Scripts)} scripts run there since, not refused`);
    if (found.LastSeen) said.push(`last seen ${format.time(found.LastSeen)}`);
    if (found.UnattendedSince) said.push(found.Reason);
    else if (found.Disconnecting) said.push(`disconnected again until ${format.time(found.Until)}`);
    else said.push(`no longer disconnected: ${found.Reason || "the time set for it is over"}`);
    if (found.Disconnecting && found.Reason) said.push(found.Reason);
    say(this.#line, said.join(" · "));
    keep(this.#list, found.Addresses, clientKey, (each) => clientRow(each));
  }
}

function clientKey(each) {
  return JSON.stringify([each.Address, each.Library, each.User, each.Disconnected]);
}

function clientRow(each) {
  const words = [each.Address, each.Library ?? "unknown library"];
  if (each.User) words.push(`user ${each.User}`);
  words.push(`${format.count(each.Disconnected)} times, last ${format.time(each.LastSeen)}`);
  return { node: el("li", {}, words.join(", ")) };
}

function stepRow(step) {
  const seconds = el("strong", {}, format.duration(step.Seconds));
  const name = step.Shard ? `${step.Name}, ${step.Shard}` : step.Name;
  return { node: el("li", {}, el("span", {}, name), seconds) };
}
