// Totals by resource type, each in its unit, and the change on the window before. Units are never added up.

import { el, named } from "./dom.js";
import { change, count, exactly, quantity, words } from "./numbers.js";

const ARROW = { 1: "▲", 0: "", "-1": "▼" };

export function totalCards(rows, before) {
  return rows.map((row) => {
    const metric = row.unit !== null;
    const value = metric ? row.total_value : row.event_count;
    const unit = metric ? row.unit : row.event_count === 1 ? "event" : "events";
    const [number, scale] = quantity(value, unit);
    const inHeading = scale === unit;
    return el("li", { class: "card" },
      el("div", { class: "of" }, el("h3", {}, named(row.resource_type, "no type")), el("p", {}, unit)),
      el("p", { class: "value", title: exactly(value, unit) }, number, scale && !inHeading ? ` ${scale}` : null),
      changeLine(value, metric ? row.total_value_before : row.event_count_before, unit, before),
      row.secondary_unit ? el("p", { class: "more", title: exactly(row.secondary_value, row.secondary_unit) },
        `${words(row.secondary_value, row.secondary_unit)} out`) : null,
      metric ? el("p", { class: "more" }, count(row.event_count, "event")) : null);
  });
}

function changeLine(value, earlier, unit, before) {
  const moved = change(value, earlier);
  if (moved === null) return el("p", { class: "change" }, "nothing to compare with");
  const compared = `${exactly(earlier, unit)} in ${before}`;
  return el("p", { class: "change", title: compared },
    moved.sign ? el("span", { class: "arrow", "aria-hidden": "true" }, `${ARROW[moved.sign]} `) : null,
    moved.text, el("span", { class: "unseen" }, `, from ${compared}`));
}
