// The page: the sign-in, what the feed says, and which group is looked at.
//
// The secret lives in sessionStorage (this tab, until it is closed) and in memory, and goes nowhere:
// every request is signed with it here.

import { call } from "./api.js";
import { el, say, set, show } from "./dom.js";
import { EventList } from "./event-list.js";
import { Feed } from "./feed.js";
import { Outcome } from "./form.js";
import { percent, time } from "./format.js";
import { GroupList, ordered } from "./group-list.js";
import { GroupView } from "./group-view.js";
import { History } from "./history.js";
import { RegisterForm } from "./register-form.js";
import { phaseName } from "./track.js";

const STORED = "startmigration.key";
const ROLES = ["read", "migrate", "admin"];
const byId = (id) => document.getElementById(id);

class App {
  live = false;
  #key = stored();
  #role = null;
  #feed = null;
  #status = { kind: "connecting" };
  #state = null;
  #heardAt = 0;
  #asking = false; // whether the viewer is asked to sign in
  #histories = new Map();
  #phases = new Map();
  #view = null;
  #signInOutcome = new Outcome();
  #groups = new GroupList();
  #register = new RegisterForm(this, (id) => {
    location.hash = encodeURIComponent(id);
  });
  #all = new EventList();
  #none = el("section", { class: "card" }, el("h2", {}, "No replication groups"));

  start() {
    byId("host").textContent = location.host;
    byId("sign-in-form").append(this.#signInOutcome.node);
    byId("sign-in-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#signIn();
    });
    byId("sign-out").addEventListener("click", () => this.#signOut(null));
    byId("again").addEventListener("click", () => this.#feed?.retry());
    byId("side").append(this.#groups.node, this.#register.node);
    this.#none.append(el("p", { class: "quiet" }, "A group is the target of a migration. None is registered."));
    globalThis.addEventListener("hashchange", () => this.#draw(true));
    setInterval(() => this.#tick(), 1000);
    this.#watch();
  }

  /** Whether the viewer's role is enough. */
  may(needed) {
    return ROLES.indexOf(this.#role) >= ROLES.indexOf(needed);
  }

  /** Ask the API for an action. */
  call(action, parameters) {
    return call(action, parameters, this.#key, AbortSignal.timeout(90_000));
  }

  // --- The caller ---

  #signIn() {
    const form = new FormData(byId("sign-in-form"));
    this.#key = { id: String(form.get("id")).trim(), secret: String(form.get("secret")).trim() };
    this.#signInOutcome.clear();
    if (!this.#key.id || !this.#key.secret) {
      this.#signInOutcome.bad("Both the ID and the secret are needed.");
      return;
    }
    set(byId("sign-in-button"), "aria-busy", "true");
    this.#watch();
  }

  #signOut(error) {
    this.#feed?.stop();
    this.#feed = null;
    this.#role = null;
    this.#state = null;
    this.#histories.clear();
    this.#phases.clear();
    this.live = false;
    sessionStorage.removeItem(STORED);
    // The first look is without a key: a server that wants none is just there.
    const first = this.#key === null;
    this.#key = null;
    this.#asking = true;
    byId("secret").value = "";
    this.#signInOutcome.clear();
    if (error !== null && !(first && error.code === "MissingAuthenticationToken")) {
      this.#signInOutcome.bad(error);
    }
    set(byId("sign-in-button"), "aria-busy", null);
    this.#show();
    (error === null || first ? byId("key-id") : byId("secret")).focus();
  }

  // --- The feed ---

  #watch() {
    this.#feed?.stop();
    this.#feed = new Feed(this.#key, {
      status: (status) => this.#told(status),
      event: (name, data) => this.#heard(name, data),
    });
  }

  #told(status) {
    if (status.kind === "denied") {
      this.#signOut(status.error);
      return;
    }
    const was = this.#status;
    this.#status = status;
    this.live = status.kind === "live";
    if (this.live) {
      set(byId("sign-in-button"), "aria-busy", null);
      this.#role = status.role;
      if (this.#key !== null) sessionStorage.setItem(STORED, JSON.stringify(this.#key));
      byId("secret").value = "";
      if (was.kind !== "live" && was.again) announce("The connection is back.");
    } else if (this.#asking && status.kind === "lost") {
      this.#signInOutcome.bad(status.error.message);
    }
    this.#show();
    this.#draw();
  }

  #heard(name, data) {
    const now = Date.now();
    this.#heardAt = now;
    if (name === "history") {
      for (const [id, rows] of Object.entries(data)) this.#history(id).load(rows);
    } else if (name === "state") {
      this.#state = data;
      this.#asking = false;
      for (const group of data.groups) {
        // One that has ended stays readable in `Migration`; here that is the one that goes on.
        if (group.Status !== "migrating") group.Migration = null;
        this.#note(group, now);
      }
      this.#draw();
    }
  }

  #note(group, now) {
    const id = group.ReplicationGroupId;
    const { Migration: migration, Details: details } = group;
    if (migration) {
      const began = details?.StartTime ?? null;
      // The history of the migration before this one is not its own.
      if ((this.#histories.get(id)?.began ?? began) !== began) this.#histories.delete(id);
      const history = this.#history(id);
      history.began = began;
      history.add(migration, now);
    }
    const phase = migration?.Phase ?? details?.Phase ?? null;
    const before = this.#phases.get(id);
    this.#phases.set(id, phase);
    if (before !== undefined && phase !== null && before !== phase) {
      announce(`${id}: ${phaseName(phase)}`);
    }
  }

  #history(id) {
    if (!this.#histories.has(id)) this.#histories.set(id, new History());
    return this.#histories.get(id);
  }

  // --- What is seen ---

  #tick() {
    if (this.live && this.#state !== null) {
      // While the feed lives, no news is that nothing has changed.
      for (const group of this.#state.groups) this.#note(group, Date.now());
      this.#draw();
    }
    this.#show();
  }

  #show() {
    const { kind, error, retryAt, again } = this.#status;
    const watching = this.#state !== null;
    const pill = byId("connection");
    show(pill, watching);
    say(pill, this.live ? "Live" : kind === "lost" ? "Lost" : "Connecting");
    set(pill, "data-kind", kind);
    say(byId("clock"), watching ? time(this.live ? Date.now() : this.#heardAt) : "");
    show(byId("who"), watching && this.#key !== null);
    show(byId("open"), watching && this.#key === null);
    say(byId("key"), this.#key?.id ?? "");
    say(byId("role"), this.#role ?? "");
    show(byId("watch"), watching);
    show(byId("sign-in"), this.#asking);
    const lost = !this.live && (kind === "lost" || again === true) && !this.#asking;
    show(byId("lost"), lost);
    if (lost) {
      say(byId("lost-why"), error?.message ?? byId("lost-why").textContent);
      const shown = `The figures below are those of ${time(this.#heardAt)}, and do not move.`;
      say(byId("lost-age"), watching ? shown : "");
      const left = Math.max(0, Math.ceil(((retryAt ?? 0) - Date.now()) / 1000));
      say(byId("lost-next"), kind === "lost" && left > 0 ? `Next try in ${left} s.` : "Trying now …");
    }
    set(document.body, "data-connection", kind);
  }

  #draw(chosen = false) {
    if (this.#state === null) return;
    const { events } = this.#state;
    const groups = ordered(this.#state.groups);
    const ids = groups.map((group) => group.ReplicationGroupId);
    const asked = decoded(location.hash.slice(1));
    const id = ids.includes(asked) ? asked : (ids[0] ?? null);
    this.#groups.update(groups, id);
    show(this.#groups.node, groups.length > 0);
    show(this.#register.node, this.may("admin"));
    if (id === null ? !this.#none.isConnected : this.#view?.id !== id) {
      this.#view = id === null ? null : new GroupView(this, id);
      byId("detail").replaceChildren(...(id === null ? [this.#none, this.#all.node] : [this.#view.node]));
      if (id === null) this.#register.node.open = true; // the one thing to do
      if (chosen) this.#view?.node.querySelector("h2").focus({ preventScroll: false });
    }
    const group = groups.find((each) => each.ReplicationGroupId === id);
    const now = this.live ? Date.now() : this.#heardAt;
    if (group) this.#view.update(group, events, this.#histories.get(id) ?? null, now);
    else this.#all.update(events, null);
    document.title = this.#titleOf(group);
  }

  #titleOf(group) {
    if (!this.live) return "Connection lost · startmigration";
    const migration = group?.Migration;
    if (!migration) return group ? `${group.ReplicationGroupId} · startmigration` : "startmigration";
    const share = migration.Phase === "SNAPSHOT" ? ` ${percent(migration.Keys, migration.TotalKeys)} %` : "";
    return `${phaseName(migration.Phase)}${share} · ${group.ReplicationGroupId}`;
  }
}

function announce(text) {
  byId("said").textContent = text;
}

function stored() {
  try {
    const { id, secret } = JSON.parse(sessionStorage.getItem(STORED));
    return typeof id === "string" && typeof secret === "string" ? { id, secret } : null;
  } catch {
    return null;
  }
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return "";
  }
}

new App().start();
