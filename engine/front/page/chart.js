// A small chart of figures over time, in SVG: an area and a line for each series, the newest value
// in its head, and under the pointer the value of that moment.

import { el, say, set, svg } from "./dom.js";
import { time } from "./format.js";

const HEIGHT = 132;
const LEFT = 4;
const RIGHT = 4;
const TOP = 14;
const BOTTOM = 18;
const COLUMN = 2; // pixels that share a point

/** A chart; `series` are {name, tone}, `format` writes a value, `least` is the smallest full scale. */
export class Chart {
  #series;
  #format;
  #least;
  #title;
  #lines;
  #svg = svg("svg", { class: "plot", role: "img", height: HEIGHT, preserveAspectRatio: "none" });
  #width = 0;
  #shown = null;
  #pointer = null;

  constructor(title, series, format, least) {
    this.#title = title;
    this.#series = series;
    this.#format = format;
    this.#least = least;
    this.#lines = series.map(({ name, tone }) => {
      const value = el("strong", {}, "–");
      const label = el("span", { class: "series" }, name);
      return { value, node: el("span", { class: "legend", "data-tone": tone }, value, label) };
    });
    const legends = el("span", { class: "legends" }, ...this.#lines.map((line) => line.node));
    this.moment = el("span", { class: "moment" });
    const head = el("figcaption", {}, el("span", { class: "title" }, title), this.moment, legends);
    this.node = el("figure", { class: "chart" }, head, this.#svg);
    this.#svg.addEventListener("pointermove", (event) => this.#point(event.offsetX));
    this.#svg.addEventListener("pointerleave", () => this.#point(null));
    new ResizeObserver(([entry]) => {
      this.#width = Math.round(entry.contentRect.width);
      this.#draw();
    }).observe(this.#svg);
  }

  /**
   * Draw points ([[{t, v}]], one list a series) from `from` to `to` (ms since the epoch). Once it is
   * over there is no "now", and only the pointer tells values.
   */
  update(points, from, to, over = false) {
    this.#shown = { points, from, to, over };
    this.#draw();
  }

  #point(x) {
    this.#pointer = x;
    this.#draw();
  }

  #draw() {
    if (this.#shown === null || this.#width === 0) return;
    const { points, from, to, over } = this.#shown;
    const values = points.flat().filter((point) => point.v !== null);
    const most = ceiling(Math.max(this.#least, ...values.map((point) => point.v)));
    const inner = this.#width - LEFT - RIGHT;
    const x = (t) => LEFT + (inner * (t - from)) / (to - from);
    const y = (v) => TOP + (HEIGHT - TOP - BOTTOM) * (1 - v / most);
    const drawn = [0, 0.5, 1].map((share) => this.#line(y(most * share)));
    points.forEach((list, i) => drawn.push(...plotted(list, x, y, this.#series[i].tone)));
    drawn.push(...this.#marks(most, x, y, from, to));
    const at = this.#pointer === null ? to : from + ((this.#pointer - LEFT) / inner) * (to - from);
    if (this.#pointer !== null) {
      drawn.push(svg("line", { class: "cursor", x1: x(at), x2: x(at), y1: TOP, y2: HEIGHT - BOTTOM }));
    }
    set(this.#svg, "viewBox", `0 0 ${this.#width} ${HEIGHT}`);
    this.#svg.replaceChildren(...drawn);
    say(this.moment, this.#pointer === null ? "" : time(at));
    const said = points.map((list, i) => {
      const silent = over && this.#pointer === null;
      const value = this.#format(silent ? null : valueAt(list, at));
      say(this.#lines[i].value, value);
      return `${this.#series[i].name} ${value}`;
    });
    if (this.#pointer === null) {
      set(this.#svg, "aria-label", `${this.#title}, now: ${said.join(", ")}`);
    }
  }

  #line(at) {
    return svg("line", { class: "grid", x1: LEFT, x2: this.#width - RIGHT, y1: at, y2: at });
  }

  *#marks(most, x, y, from, to) {
    for (const share of [0.5, 1]) {
      const at = y(most * share) - 3;
      yield svg("text", { class: "mark", x: LEFT, y: at }, this.#format(most * share));
    }
    const places = this.#width < 300 ? [0, 1] : [0, 0.5, 1];
    for (const share of places) {
      const anchor = share === 0 ? "start" : share === 1 ? "end" : "middle";
      const at = from + share * (to - from);
      const label = svg("text", { class: "mark", x: x(at), y: HEIGHT - 4, "text-anchor": anchor });
      label.textContent = time(at);
      yield label;
    }
  }
}

function* plotted(list, x, y, tone) {
  for (const run of runs(thinned(list, x))) {
    const line = run.map((p) => `${x(p.t).toFixed(1)},${y(p.v).toFixed(1)}`).join("L");
    const [first, last] = [run[0], run.at(-1)];
    const ground = y(0).toFixed(1);
    const area = `M${x(first.t).toFixed(1)},${ground}L${line}L${x(last.t).toFixed(1)},${ground}Z`;
    yield svg("path", { class: "area", "data-tone": tone, d: area });
    yield svg("path", { class: "line", "data-tone": tone, d: `M${line}` });
  }
}

// The lists between the gaps.
function* runs(list) {
  let run = [];
  for (const point of list) {
    if (point.v !== null) run.push(point);
    else if (run.length > 0) {
      yield run;
      run = [];
    }
  }
  if (run.length > 0) yield run;
}

// Of the points of one column of pixels the highest: a short peak is what a reader looks for.
function thinned(list, x) {
  const kept = [];
  let column = null;
  for (const point of list) {
    const here = Math.floor(x(point.t) / COLUMN);
    const last = kept.at(-1);
    if (here !== column || last === undefined || point.v === null || last.v === null) {
      kept.push(point);
      column = here;
    } else if (point.v > last.v) kept[kept.length - 1] = point;
  }
  return kept;
}

function valueAt(list, t) {
  let found = null;
  for (const point of list) {
    if (point.t > t) break;
    found = point.v;
  }
  return found;
}

// The next of 1, 2, 5, 10, 20 …
function ceiling(v) {
  const power = 10 ** Math.floor(Math.log10(v));
  const found = [1, 2, 5, 10].find((step) => step * power >= v * 0.9999);
  return found * power;
}
