// Elements, and text that others wrote. Nothing is ever parsed as HTML, and nothing is styled inline: the policy forbids both.

const SVG = "http://www.w3.org/2000/svg";
const SHOWN = 160;
const HINTED = 600;

export const byId = (id) => document.getElementById(id);

/** Make an element: attributes that are null or false are left out, children are nodes or text. */
export function el(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

export function svg(name, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(key, value);
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** Cut a text that may be a megabyte long, never inside a surrogate pair. */
export function clip(text, length = SHOWN) {
  if (text.length <= length) return text;
  const cut = text.charCodeAt(length - 1) >= 0xd800 && text.charCodeAt(length - 1) < 0xdc00 ? length - 1 : length;
  return `${text.slice(0, cut)}…`;
}

/** The same for attributes and options, where no <bdi> can go: direction marks out, and isolated by characters. */
export function plain(text, length = SHOWN) {
  return `\u2068${clip(text, length).replace(/[\u0000-\u001f\u202a-\u202e\u2066-\u2069]/g, " ")}\u2069`;
}

/** Somebody's text, isolated so that its direction does not turn its neighbours. */
function foreign(text) {
  const long = text.length > 24;
  return el("bdi", { dir: "auto", class: "clip", title: long ? plain(text, HINTED) : null }, clip(text));
}

/** A name, or words for a missing one. */
export function named(text, missing) {
  return text === null || text === "" ? el("span", { class: "missing" }, missing) : foreign(text);
}

/** A horizontal bar of a share within [0, 1]; its number stands beside it. */
export function bar(share) {
  const width = `${(Math.max(0, Math.min(1, share || 0)) * 100).toFixed(2)}%`;
  return svg("svg", { class: "bar", "aria-hidden": "true", focusable: "false" },
    svg("rect", { class: "track", width: "100%", height: "100%", rx: 3 }),
    svg("rect", { class: "fill", width, height: "100%", rx: 3 }));
}
