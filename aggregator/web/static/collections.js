// Collections, ranked by one measure at a time: events, or one resource type's value, for units do not add up.

import { write } from "./address.js";
import { bar, byId, el, named, plain } from "./dom.js";
import { add, count, exact, exactly, percent, quantity } from "./numbers.js";

const FIRST = 25;
const MORE = 100;
const SEARCHED = 2000;

/** One entry for each collection: {id, title, events, values: Map of type to value, key for the search}. */
export function collectionsOf(rows) {
  const found = new Map();
  for (const row of rows) {
    let one = found.get(row.collection_id);
    if (one === undefined) {
      const title = row.collection_title;
      one = { id: row.collection_id, title, events: 0, values: new Map() };
      one.key = `${(title ?? "").slice(0, SEARCHED)} ${row.collection_id ?? ""}`.toLowerCase();
      found.set(row.collection_id, one);
    }
    one.events = add(one.events, row.event_count);
    one.values.set(row.resource_type, row.total_value);
  }
  return [...found.values()];
}

/** What a collection is called: its title, its id where it has none, and words for events of none. */
export function collectionName(one) {
  if (one.id === null) return named(null, "no collection");
  return one.title === null || one.title === "" ? el("code", {}, one.id) : named(one.title, one.id);
}

/** Fill the section; ``changed`` is given the view of a new rank or search, ``go`` follows a link. */
export function showCollections(collections, totals, view, { changed, go }) {
  const types = totals.filter((row) => row.unit !== null && row.resource_type !== null);
  const select = byId("rank");
  select.replaceChildren(el("option", { value: "" }, "events"),
    ...types.map((row) => el("option", { value: row.resource_type }, `${plain(row.resource_type, 40)} (${row.unit})`)));
  select.value = types.some((row) => row.resource_type === view.rank) ? view.rank : "";
  const search = byId("search");
  if (search.value !== view.search) search.value = view.search;

  let state = { ...view };
  let shown = FIRST;
  const draw = () => {
    const type = types.find((row) => row.resource_type === select.value);
    byId("ranking").replaceChildren(...ranking(collections, totals, type, state, shown, go, more));
  };
  const more = () => {
    const next = shown;
    shown += MORE;
    draw();
    byId("ranking").querySelectorAll("tbody tr")[next]?.querySelector("a")?.focus();
  };
  const update = () => {
    state = { ...state, rank: select.value || null, search: search.value };
    shown = FIRST;
    changed(state);
    draw();
  };
  select.onchange = update;
  search.oninput = update;
  byId("collections-form").onsubmit = (event) => event.preventDefault();
  draw();
}

function ranking(collections, totals, type, view, shown, go, more) {
  const measure = type ? (one) => one.values.get(type.resource_type) : (one) => one.events;
  const unit = type ? type.unit : "events";
  const ranked = collections.filter((entry) => measure(entry) !== undefined)
    .sort((a, b) => Number(measure(b)) - Number(measure(a)) || compare(a.id, b.id));
  const total = type ? Number(type.total_value) : totals.reduce((sum, row) => sum + Number(row.event_count), 0);
  const largest = ranked.length ? Number(measure(ranked[0])) : 0;
  const wanted = view.search.trim().toLowerCase();
  const rows = ranked.map((entry, index) => ({ entry, rank: index + 1 })).filter(({ entry }) => entry.key.includes(wanted));
  const summary = el("p", { class: "note", role: "status" }, wanted
    ? `${count(rows.length, "collection")} of ${count(ranked.length, "collection")} found`
    : count(ranked.length, "collection"));
  if (rows.length === 0) return [summary];
  const table = el("table", { class: "ranking" },
    el("caption", { class: "unseen" }, `Collections ranked by ${unit}`),
    el("thead", {}, el("tr", {}, el("th", { scope: "col", class: "number" }, "#"), el("th", { scope: "col" }, "Collection"),
      el("td", { class: "bar-cell" }), el("th", { scope: "col", class: "number" }, `${unit[0].toUpperCase()}${unit.slice(1)}`),
      el("th", { scope: "col", class: "number wide" }, "Share"))),
    el("tbody", {}, ...rows.slice(0, shown).map(({ entry, rank }) => {
      const value = measure(entry);
      return el("tr", {}, el("td", { class: "number rank" }, String(rank)), el("th", { scope: "row" }, link(entry, view, go)),
        el("td", { class: "bar-cell" }, bar(Number(value) / largest)),
        el("td", { class: "number", title: exactly(value, unit) }, type ? inColumn(value, unit) : exact(value)),
        el("td", { class: "number wide" }, percent(total ? Number(value) / total : NaN)));
    })));
  if (rows.length <= shown) return [summary, table];
  return [summary, table, el("button", { type: "button", class: "quiet more", click: more },
    `Show ${Math.min(MORE, rows.length - shown)} more`)];
}

// The heading has the unit already, unless the number is scaled in units of its own.
function inColumn(value, unit) {
  const [number, scale] = quantity(value, unit);
  return scale === unit ? number : `${number} ${scale}`;
}

// Events of no collection cannot be asked for by themselves.
function link(entry, view, go) {
  const name = collectionName(entry);
  if (entry.id === null) return name;
  const target = { ...view, collection: entry.id, search: "", rank: null };
  return el("a", { href: write(target), class: "clip", click: (event) => go(event, target) }, name);
}

const compare = (a, b) => (a === b ? 0 : a === null ? 1 : b === null ? -1 : a < b ? -1 : 1);
