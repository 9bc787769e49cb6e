// The shards of a migration with a cluster at an end: totals, and a row each, the slowest first.

import { el, keep, say, set, show } from "./dom.js";
import * as format from "./format.js";
import { phaseName } from "./track.js";

const HEADS = ["From", "To", "Slots", "Phase", "Keys", "Lag", "Rate"];
const LEAST_MS = 900; // a rate is taken over so long

/** `update(details, now)`: the rows as the server orders them, now in ms. Hidden without any. */
export class Shards {
  #totals = el("p", { class: "quiet" });
  #rows = el("tbody", {});
  #rates = new Rates();
  node;

  constructor() {
    const heads = HEADS.map((head) => el("th", { scope: "col" }, head));
    const table = el("table", { class: "shards" }, el("thead", {}, el("tr", {}, ...heads)), this.#rows);
    const box = el("div", { class: "scrolled", tabindex: "0", role: "group", "aria-label": "Each shard" }, table);
    this.node = el("section", { class: "card", "aria-label": "Shards", hidden: true }, this.#totals, box);
    this.node.prepend(el("h3", {}, "Shards"));
  }

  update(details, now) {
    const shards = details?.Shards ?? [];
    show(this.node, shards.length > 0);
    const shown = shards.map((each) => ({ ...each, rate: this.#rates.of(each, now) }));
    say(this.#totals, totals(shown));
    keep(this.#rows, shown, (each) => each.Name, row);
  }
}

// Commands a second of each shard, between two of its states.
class Rates {
  #seen = new Map();

  of(shard, now) {
    const seen = this.#seen.get(shard.Name);
    if (seen === undefined || shard.Commands < seen.commands) {
      this.#seen.set(shard.Name, { at: now, commands: shard.Commands, rate: null });
      return null;
    }
    const past = now - seen.at;
    if (past >= LEAST_MS) {
      seen.rate = ((shard.Commands - seen.commands) * 1000) / past;
      seen.at = now;
      seen.commands = shard.Commands;
    }
    return seen.rate;
  }
}

function totals(shards) {
  const phases = new Map();
  for (const { Phase: phase } of shards) phases.set(phase, (phases.get(phase) ?? 0) + 1);
  const said = Array.from(phases, ([phase, n]) => `${format.count(n)} × ${phaseName(phase)}`);
  const lanes = `${format.count(shards.length)} ${shards.length === 1 ? "lane" : "lanes"}`;
  const parts = [`${lanes}: ${said.join(", ")}`];
  const lag = sum(shards, "LagBytes");
  if (lag !== null) parts.push(`${format.bytes(lag)} behind`);
  const rate = sum(shards.filter((each) => each.Phase === "SNAPSHOT"), "KeysPerSecond");
  if (rate) parts.push(`${format.brief(rate)} keys/s`);
  const commands = sum(shards, "rate");
  if (commands) parts.push(`${format.brief(commands)} commands/s`);
  return parts.join(" · ");
}

// The sum; null where one is not known.
function sum(shards, member) {
  let found = 0;
  for (const each of shards) {
    if (each[member] === null || each[member] === undefined) return null;
    found += each[member];
  }
  return shards.length ? found : null;
}

function row(first) {
  const cells = HEADS.map((head) => el("td", { "data-head": head }));
  const node = el("tr", {}, ...cells);
  const update = (shard) => {
    const [from, to, slots, phase, keys, lag, rate] = cells;
    say(from, shard.Source);
    say(to, shard.Target);
    say(slots, shard.Slots);
    say(phase, phaseName(shard.Phase));
    set(phase, "title", shard.Reason || null);
    const of = shard.TotalKeys ? ` · ${format.percent(shard.Keys, shard.TotalKeys)} %` : "";
    say(keys, `${format.count(shard.Keys)}${shard.Phase === "SNAPSHOT" ? of : ""}`);
    const known = shard.LagBytes !== null;
    say(lag, known ? `${format.bytes(shard.LagBytes)}, ${format.duration(shard.LagSeconds)}` : "–");
    const copying = shard.Phase === "SNAPSHOT";
    say(rate, copying ? `${format.brief(shard.KeysPerSecond)} keys/s` : `${format.brief(shard.rate)} commands/s`);
    set(node, "data-tone", { FAILED: "bad", STOPPED: "bad" }[shard.Phase] ?? (shard.Link === "down" ? "bad" : null));
  };
  update(first);
  return { node, update };
}
