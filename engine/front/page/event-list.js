// Events, newest first.

import { el, keep, show } from "./dom.js";
import { time } from "./format.js";

const BAD = /failed|refused|gone|killed|lost|not carried|cannot|could not/i;
const GOOD = /^migration completed/;

/** A list of events; `update(events, groupId)`: oldest first, of one group, or of all (null). */
export class EventList {
  #list = el("ol", { class: "events" });
  #none = el("p", { class: "quiet" }, "Nothing has happened yet.");
  node = el("section", { class: "card", "aria-label": "Events" }, el("h3", {}, "Events"));

  constructor() {
    this.node.append(this.#none, this.#list);
  }

  update(events, groupId) {
    const shown = events.filter((each) => groupId === null || each.SourceIdentifier === groupId);
    // Two of the same moment and wording are told apart by their number.
    const seen = new Map();
    const keyed = shown.map((each) => {
      const key = `${each.Date} ${each.SourceIdentifier} ${each.Message}`;
      const n = (seen.get(key) ?? 0) + 1;
      seen.set(key, n);
      return { ...each, key: `${key} ${n}`, named: groupId === null };
    });
    show(this.#none, keyed.length === 0);
    keep(this.#list, keyed.reverse(), (each) => each.key, row);
  }
}

function row(event) {
  const tone = GOOD.test(event.Message) ? "good" : BAD.test(event.Message) ? "bad" : "plain";
  const at = new Date(event.Date);
  const when = el("time", { datetime: event.Date, title: at.toString() }, time(at));
  const name = event.named ? el("strong", {}, `${event.SourceIdentifier} `) : null;
  return { node: el("li", { "data-tone": tone }, when, el("span", {}, name, event.Message)) };
}
