// Elements by hand. Whatever comes from the server goes in as text, never as markup.

const SVG = "http://www.w3.org/2000/svg";

/** An element; attributes that are functions listen, `true` is an empty one, false or null none. */
export function el(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

/** Set a node's text, if it is another one: a screen reader speaks what is set anew. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Show or hide. */
export function show(node, shown) {
  if (node.hidden === shown) node.hidden = !shown;
}

/** Set an attribute, or remove it (null). */
export function set(node, name, value) {
  if (value === null) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

/** Keep a list's children in step with items, by key; what stays is updated, and keeps its focus. */
export function keep(list, items, keyOf, make) {
  const there = new Map(Array.from(list.children, (node) => [node.dataset.key, node]));
  let at = list.firstChild;
  for (const item of items) {
    const key = String(keyOf(item));
    let node = there.get(key);
    if (node === undefined) {
      const made = make(item);
      node = made.node;
      node.dataset.key = key;
      node.update = made.update;
    }
    there.delete(key);
    node.update?.(item);
    if (node === at) at = at.nextSibling;
    else list.insertBefore(node, at);
  }
  for (const gone of there.values()) gone.remove();
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") node.addEventListener(name, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
