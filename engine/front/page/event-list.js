// Events, newest first.

import { textOf } from "./api.js";
import { el, keep, show } from "./dom.js";
import { time } from "./format.js";

const BAD = /failed|refused|gone|killed|lost|not carried|cannot|could not/i;
const GOOD = /^migration completed/;
const REFUSAL = /^(completion|cut-over|start) refused/;

const OWN_MOST = 500; // events of one group that are shown
const PAGE = "100";
const DAYS = 14 * 24 * 60; // minutes; the server keeps them no longer

/**
 * A list of events; `update(events, groupId)`: oldest first, of one group, or of all (null).
 * The feed has the newest of all groups; `load(app, groupId)` asks for a group's own ones.
 */
export class EventList {
  #list = el("ol", { class: "events" });
  #own = [];
  #none = el("p", { class: "quiet" }, "Nothing has happened yet.");
  node = el("section", { class: "card", "aria-label": "Events" }, el("h3", {}, "Events"));

  constructor() {
    this.node.append(this.#none, this.#list);
  }

  async load(app, groupId) {
    const found = [];
    let marker = "";
    try {
      do {
        const answer = await app.call("DescribeEvents", [
          ["SourceType", "replication-group"],
          ["SourceIdentifier", groupId],
          ["Duration", String(DAYS)],
          ["MaxRecords", PAGE],
          ...(marker ? [["Marker", marker]] : []),
        ]);
        for (const each of answer.getElementsByTagNameNS("*", "Event")) {
          found.push({
            Date: textOf(each, "Date"),
            SourceIdentifier: textOf(each, "SourceIdentifier"),
            Message: textOf(each, "Message"),
          });
        }
        marker = answer.getElementsByTagNameNS("*", "Marker")[0]?.textContent ?? "";
      } while (marker);
    } catch {
      return; // the feed's events are there all the same
    }
    this.#own = found.slice(-OWN_MOST);
  }

  update(events, groupId) {
    const shown = groupId === null ? [...events] : merged(this.#own, events, groupId);
    // Two of the same moment and wording are told apart by their number.
    const seen = new Map();
    const keyed = shown.map((each) => {
      const key = `${each.Date} ${each.SourceIdentifier} ${each.Message}`;
      const n = (seen.get(key) ?? 0) + 1;
      seen.set(key, n);
      return { ...each, key: `${key} ${n}`, named: groupId === null };
    });
    show(this.#none, keyed.length === 0);
    // A refusal is in red until something comes behind it: what it told of may be mended.
    for (const each of keyed) each.old = REFUSAL.test(each.Message) && behind(each, keyed);
    keep(this.#list, keyed.reverse(), (each) => `${each.key} ${each.old}`, row);
  }
}

// The group's own events, and behind them those of the feed that came since.
function merged(own, events, groupId) {
  const known = new Set(own.map(identity));
  const since = events.filter((each) => each.SourceIdentifier === groupId && !known.has(identity(each)));
  return [...own, ...since].sort((a, b) => Date.parse(a.Date) - Date.parse(b.Date));
}

function identity(event) {
  return `${Date.parse(event.Date)} ${event.Message}`;
}

function behind(event, events) {
  const at = events.indexOf(event);
  return events.some((each, n) => n > at && each.SourceIdentifier === event.SourceIdentifier);
}

function row(event) {
  const bad = BAD.test(event.Message) && !event.old;
  const tone = GOOD.test(event.Message) ? "good" : bad ? "bad" : "plain";
  const at = new Date(event.Date);
  const when = el("time", { datetime: event.Date, title: at.toString() }, time(at));
  const name = event.named ? el("strong", {}, `${event.SourceIdentifier} `) : null;
  return { node: el("li", { "data-tone": tone }, when, el("span", {}, name, event.Message)) };
}
