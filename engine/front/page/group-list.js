// The groups: one line each, with where it stands.

import { el, keep, say, set } from "./dom.js";
import { percent } from "./format.js";
import { phaseName } from "./track.js";

/** The list; a group is chosen by its link. `update(groups, chosen)`. */
export class GroupList {
  #list = el("ul", { class: "groups" });
  #chosen = null;
  node = el("nav", { class: "card", "aria-label": "Replication groups" }, this.#list);

  update(groups, chosen) {
    this.#chosen = chosen;
    keep(this.#list, groups, (group) => group.ReplicationGroupId, () => this.#row());
  }

  #row() {
    const name = el("span", { class: "name" });
    const phase = el("span", { class: "standing" });
    const status = el("span", { class: "badge" });
    const link = el("a", {}, name, status, phase);
    const update = (group) => {
      const id = group.ReplicationGroupId;
      set(link, "href", `#${encodeURIComponent(id)}`);
      set(link, "aria-current", id === this.#chosen ? "true" : null);
      say(name, id);
      say(status, group.Status);
      set(status, "data-status", toneOf(group));
      say(phase, standing(group));
      set(phase, "data-tone", group.Details?.Status === "failed" ? "bad" : null);
    };
    return { node: el("li", {}, link), update };
  }
}

/** A group's status as a tone: going on, in trouble, or at rest. */
export function toneOf({ Migration: migration }) {
  if (!migration) return "rest";
  return migration.Workers.length === 0 && troubled(migration) ? "bad" : "going";
}

/** The groups in the order in which an operator looks for them: what goes on, what failed, the rest. */
export function ordered(groups) {
  const rank = (group) => (group.Migration ? 0 : group.Details?.Status === "failed" ? 1 : 2);
  return [...groups].sort((a, b) => rank(a) - rank(b)); // by name within, as they come
}

function troubled(migration) {
  return migration.Phase === "STOPPED" || /is gone/.test(migration.Reason);
}

function standing(group) {
  const { Migration: migration, Details: details } = group;
  if (!migration) {
    return details?.Status ? `last migration ${details.Status}` : "no migration yet";
  }
  if (migration.CanComplete) return `${phaseName(migration.Phase)} · ready to complete`;
  const share = migration.Phase === "SNAPSHOT" ? ` · ${percent(migration.Keys, migration.TotalKeys)} %` : "";
  return `${phaseName(migration.Phase)}${share}`;
}
