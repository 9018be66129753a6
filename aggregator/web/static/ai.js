// AI by job type, by model level, and by both.

import { bar, el, named } from "./dom.js";
import { add, exact, exactly, percent, words } from "./numbers.js";

const SHOWN = 12;
const ALL = 200;

/** Tables of the drill-down's rows, added up over collections: whole tokens exactly, however many digits. */
export function aiTables(rows) {
  const jobs = grouped(rows, (row) => [row.job_type]);
  const levels = grouped(rows, (row) => [row.model_level]);
  const both = grouped(rows, (row) => [row.job_type, row.model_level]);
  return [
    el("div", { class: "pair" }, block("By job type", ["Job type"], jobs, SHOWN), block("By model level", ["Model level"], levels, SHOWN)),
    el("details", {}, el("summary", {}, `Every combination (${both.length})`), table("AI by job type and model level", ["Job type", "Model level"], both, ALL)),
  ];
}

function grouped(rows, keysOf) {
  const groups = new Map();
  for (const row of rows) {
    const keys = keysOf(row);
    const key = JSON.stringify(keys);
    const group = groups.get(key) ?? { keys, in: 0, out: 0, events: 0 };
    groups.set(key, group);
    group.in = add(group.in, row.tokens_in);
    group.out = add(group.out, row.tokens_out);
    group.events = add(group.events, row.event_count);
  }
  return [...groups.values()].sort((a, b) => (a.in < b.in ? 1 : a.in > b.in ? -1 : 0));
}

function block(title, names, groups, shown) {
  return el("div", {}, el("h3", {}, title), table(`AI ${title.toLowerCase()}`, names, groups, shown));
}

function table(caption, names, groups, shown) {
  const total = groups.reduce((sum, group) => sum + Number(group.in), 0);
  const largest = groups.length ? Number(groups[0].in) : 0;
  const rest = groups.length - shown;
  return el("div", {}, el("table", { class: "ai" },
    el("caption", { class: "unseen" }, caption),
    el("thead", {}, el("tr", {}, ...names.map((name) => el("th", { scope: "col" }, name)), el("td", { class: "bar-cell" }),
      ...["Tokens in", "Share", "Tokens out", "Events"].map((name) => el("th", { scope: "col", class: `number ${name === "Events" || name === "Share" ? "wide" : ""}` }, name)))),
    el("tbody", {}, ...groups.slice(0, shown).map((group) => el("tr", {},
      el("th", { scope: "row" }, named(group.keys[0], "not given")),
      ...group.keys.slice(1).map((key) => el("td", {}, named(key, "not given"))),
      el("td", { class: "bar-cell" }, bar(Number(group.in) / largest)),
      el("td", { class: "number", title: exactly(group.in, "tokens") }, words(group.in, null)),
      el("td", { class: "number wide" }, percent(total ? Number(group.in) / total : NaN)),
      el("td", { class: "number", title: exactly(group.out, "tokens") }, words(group.out, null)),
      el("td", { class: "number wide" }, exact(group.events)))))),
  rest > 0 ? el("p", { class: "note" }, `and ${rest} more`) : null);
}
