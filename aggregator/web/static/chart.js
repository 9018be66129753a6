// Usage by day as small multiples: one chart and one axis for each resource type. The day under the pointer, or under the
// arrow keys, is read out in all of them; each has a table that says the same.

import { dayWords } from "./days.js";
import { el, named, plain, svg } from "./dom.js";
import { ceiling, count, exact, exactly, words } from "./numbers.js";

const HEIGHT = 100;

export function charts(series) {
  const all = [];
  const point = (index) => all.forEach((chart) => chart.point(index));
  for (const one of series) all.push(chart(one, point));
  return all.map((one) => one.figure);
}

function chart(series, point) {
  const { days, unit } = series;
  const values = days.map((day) => Number(day.value));
  const earlier = days.filter((day) => day.before !== null).map((day) => Number(day.before));
  const top = ceiling(Math.max(...values, ...earlier, 0), unit);
  const low = Math.min(...values, ...earlier, 0);
  const bottom = low < 0 ? -ceiling(-low, unit) : 0;
  const y = (value) => HEIGHT * (1 - (value - bottom) / (top - bottom));
  const readout = el("p", { class: "readout", "aria-hidden": "true" });
  const mark = svg("rect", { class: "mark", y: 0, height: HEIGHT, width: 1, visibility: "hidden" });
  const typeWords = series.type === null ? "no type" : plain(series.type, 60);
  const plot = svg("svg", {
    viewBox: `0 0 ${Math.max(1, days.length)} ${HEIGHT}`, preserveAspectRatio: "none", class: "plot", tabindex: days.length ? 0 : null,
    role: "slider", "aria-label": `${typeWords} by day, in ${unit}`, "aria-orientation": "horizontal",
    "aria-valuemin": 1, "aria-valuemax": Math.max(1, days.length),
    pointermove: (event) => point(dayAt(event)), pointerleave: () => point(null), pointerdown: (event) => point(dayAt(event)),
    keydown: (event) => keyed(event), focus: () => point(current ?? days.length - 1), blur: () => point(null),
  },
  mark,
  svg("path", { class: "bars", d: bars(days, (day) => !day.partial, y) }),
  svg("path", { class: "bars partial", d: bars(days, (day) => day.partial, y) }),
  svg("path", { class: "earlier", d: earlierPath(days, y), "vector-effect": "non-scaling-stroke" }),
  svg("line", { class: "zero", x1: 0, x2: Math.max(1, days.length), y1: y(0), y2: y(0), "vector-effect": "non-scaling-stroke" }));
  const years = days.length > 300;
  let current = null;

  function dayAt(event) {
    const box = plot.getBoundingClientRect();
    return Math.max(0, Math.min(days.length - 1, Math.floor(((event.clientX - box.left) / box.width) * days.length)));
  }

  function keyed(event) {
    const last = days.length - 1;
    const at = current ?? last;
    const target = { ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: 0, End: last, PageDown: at - 7, PageUp: at + 7 }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    point(Math.max(0, Math.min(last, target)));
  }

  function show(index) {
    const shown = days[index ?? days.length - 1];
    mark.setAttribute("visibility", index === null ? "hidden" : "visible");
    if (shown === undefined) return;
    if (index !== null) current = index;
    mark.setAttribute("x", index ?? 0);
    plot.setAttribute("aria-valuenow", (index ?? current ?? days.length - 1) + 1);
    plot.setAttribute("aria-valuetext", spoken(days[current ?? days.length - 1], unit));
    readout.replaceChildren(...(index === null ? peak(days, unit)
      : [el("span", {}, `${dayWords(shown.day, true)}${shown.partial ? ", partial" : ""} `), words(shown.value, unit)]));
  }

  show(null);
  const figure = el("figure", { class: "chart" },
    el("figcaption", {}, el("h3", {}, named(series.type, "no type")), readout),
    el("div", { class: "frame" }, plot,
      el("span", { class: "axis top", "aria-hidden": "true" }, words(top, unit)),
      bottom < 0 ? el("span", { class: "axis low", "aria-hidden": "true" }, words(bottom, unit)) : null),
    el("div", { class: "ends", "aria-hidden": "true" },
      ...(days.length ? [el("span", {}, ends(days[0], years)), el("span", {}, days.length > 1 ? ends(days[days.length - 1], years) : "")] : [])),
    beyond(series), table(series, typeWords));
  return { figure, point: show };
}

const ends = (day, year) => dayWords(day.day, true) + (year ? ` ${day.day.slice(0, 4)}` : day.partial ? " (partial)" : "");

function peak(days, unit) {
  const most = days.reduce((a, b) => (Number(b.value) > Number(a.value) ? b : a));
  return [el("span", {}, "most "), words(most.value, unit)];
}

function spoken(day, unit) {
  const before = day.before === null ? "" : `; in the window before ${words(day.before, unit)}`;
  return `${dayWords(day.day)}${day.partial ? ", partial day" : ""}: ${words(day.value, unit)}${before}`;
}

// One path for all days: a year of seven types would be thousands of elements.
function bars(days, wanted, y) {
  const [gap, zero] = [days.length > 120 ? 0 : 0.12, y(0)];
  return days.map((day, index) => {
    const height = y(Number(day.value)) - zero;
    return wanted(day) && height ? `M${index + gap} ${round(zero)}v${round(height)}h${1 - 2 * gap}v${round(-height)}z` : "";
  }).join("");
}

function earlierPath(days, y) {
  // Ticks: a line would hide the bars. None at zero, where there are many that say nothing.
  if (days.length <= 120) {
    return days.map((day, index) => (Number(day.before) ? `M${index + 0.06} ${round(y(Number(day.before)))}h0.88` : "")).join("");
  }
  let pen = "M";
  return days.map((day, index) => {
    if (day.before === null) {
      pen = "M";
      return "";
    }
    const step = `${pen}${index} ${round(y(Number(day.before)))}h1`;
    pen = "L";
    return step;
  }).join("");
}

const round = (number) => Number(number.toFixed(3));

function beyond(series) {
  if (series.beyond.length === 0) return null;
  const events = series.beyond.reduce((sum, day) => sum + day.events, 0);
  return el("p", { class: "note" }, `Beside these, ${count(events, "event")} dated ${dayWords(series.beyond[0].day)}`
    + (series.beyond.length > 1 ? ` to ${dayWords(series.beyond[series.beyond.length - 1].day)}` : ""));
}

// Made when it is opened: a year of tables would double the page.
function table(series, typeWords) {
  const body = el("tbody");
  const details = el("details", {
    toggle: () => details.open && body.childElementCount === 0 && body.append(...rows(series)),
  },
  el("summary", {}, "Table", el("span", { class: "unseen" }, ` of ${typeWords} by day`)),
  el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": `${typeWords} by day, table` },
    el("table", {}, el("thead", {}, el("tr", {}, ...["Day", series.unit, "Events", "Before"].map((name, index) =>
      el("th", { scope: "col", class: index ? "number" : null }, name)))), body)));
  return details;
}

function rows(series) {
  return [...series.days, ...series.beyond].reverse().map((day) => el("tr", {},
    el("th", { scope: "row" }, dayWords(day.day), day.partial ? el("span", { class: "note" }, " partial") : null),
    el("td", { class: "number", title: exactly(day.value, series.unit) }, exact(day.value)),
    el("td", { class: "number" }, exact(day.events)),
    el("td", { class: "number" }, day.before === null ? "–" : exact(day.before))));
}
