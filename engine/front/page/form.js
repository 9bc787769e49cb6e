// Forms: labelled fields, one thing at a time, and what the API said to it.

import { el, show } from "./dom.js";

/** A labelled input; `hint` stands below it. */
export function field(label, attributes, hint = null) {
  const input = el("input", { autocapitalize: "off", spellcheck: "false", ...attributes });
  const parts = [el("label", { for: attributes.id }, label), input];
  if (hint !== null) {
    const id = `${attributes.id}-hint`;
    input.setAttribute("aria-describedby", id);
    parts.push(el("p", { class: "hint", id }, hint));
  }
  return { input, node: el("div", { class: "field" }, ...parts) };
}

/** A labelled checkbox. */
export function tick(label, attributes) {
  const input = el("input", { type: "checkbox", ...attributes });
  return { input, node: el("label", { class: "tick" }, input, el("span", {}, label)) };
}

/** Where the outcome of what was asked is told: an error as the API gives it, or a good word. */
export class Outcome {
  #text = el("p", {});
  node = el("div", { class: "outcome", role: "alert", hidden: true }, this.#text);

  clear() {
    show(this.node, false);
  }

  good(text) {
    this.#say("good", text);
  }

  bad(error) {
    this.#say("bad", String(error));
  }

  #say(tone, text) {
    this.node.dataset.tone = tone;
    this.#text.textContent = text;
    show(this.node, true);
  }
}

/**
 * Do something with a button out of use and saying so meanwhile; errors go to `outcome`. Returns
 * whether it was done.
 */
export async function busy(button, words, outcome, action) {
  if (button.getAttribute("aria-busy") === "true") return false;
  const before = button.textContent;
  outcome.clear();
  button.setAttribute("aria-busy", "true");
  button.setAttribute("aria-disabled", "true");
  button.textContent = words;
  try {
    await action();
    return true;
  } catch (error) {
    outcome.bad(error);
    return false;
  } finally {
    button.textContent = before;
    button.removeAttribute("aria-busy");
    button.removeAttribute("aria-disabled");
  }
}
