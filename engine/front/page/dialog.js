// A question before something that cannot be taken back.

import { el } from "./dom.js";

/**
 * Ask; true if the answer is yes. With `typed` that text must be written first. `lines` explain.
 */
export function ask({ title, lines, yes, danger = false, typed = null }) {
  return new Promise((resolve) => {
    const confirm = el(
      "button",
      { type: "submit", class: danger ? "danger" : "primary", disabled: typed !== null },
      yes,
    );
    const cancel = el("button", { type: "button", click: () => dialog.close() }, "Cancel");
    const form = el("form", { novalidate: true }, el("h2", { id: "question" }, title));
    form.append(...lines.map((line) => el("p", {}, line)));
    if (typed !== null) form.append(field(typed, confirm));
    form.append(el("div", { class: "buttons" }, cancel, confirm));
    const dialog = el("dialog", { "aria-labelledby": "question" }, form);
    let answer = false;
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (confirm.disabled) return;
      answer = true;
      dialog.close();
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(answer);
    });
    document.body.append(dialog);
    dialog.showModal();
    if (typed === null) cancel.focus();
  });
}

function field(wanted, confirm) {
  const input = el("input", {
    id: "typed",
    name: "typed",
    autocomplete: "off",
    autocapitalize: "off",
    spellcheck: "false",
    input: () => {
      confirm.disabled = input.value !== wanted;
    },
  });
  const label = el("label", { for: "typed" }, "Type ", el("code", {}, wanted), " to confirm");
  return el("div", { class: "field" }, label, input);
}
