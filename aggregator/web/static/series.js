// The rows by day as one series for each resource type, each with a unit of its own.

import { daysBetween, isFinite, nextDay } from "./days.js";

const DAY = 86_400_000;
const FILLED = 4000;

/**
 * Series: {type, unit, measure, days, beyond}. ``days`` have no gap; ``beyond`` are days after now and without a date, which
 * have no place on the axis. A type without a metric is measured by its events.
 */
export function seriesOf(rows, totals, view, asOf) {
  const series = new Map();
  for (const row of totals) {
    const unit = row.unit ?? null;
    const measure = unit === null ? "event_count" : "total_value";
    series.set(row.resource_type, { type: row.resource_type, unit: unit ?? "events", measure, days: [], beyond: [] });
  }
  for (const row of rows) {
    const one = series.get(row.resource_type);
    if (one === undefined) continue;
    const day = { day: row.bucket, startsAt: row.starts_at, value: row[one.measure], before: row[`${one.measure}_before`], events: row.event_count };
    const later = !isFinite(day.day) || Date.parse(day.startsAt) > asOf;
    (later ? one.beyond : one.days).push(day);
  }
  const present = [...series.values()];
  const [first, last] = range(present);
  for (const one of present) {
    one.days = filled(one.days, first, last);
    one.beyond = one.beyond.filter((day) => day.events !== 0);
    mark(one.days, view, asOf);
  }
  return present;
}

function range(series) {
  const days = series.flatMap((one) => one.days.map((day) => day.day)).sort();
  return [days[0], days[days.length - 1]];
}

// The server fills; a window without a beginning it cannot.
function filled(days, first, last) {
  if (first === undefined || daysBetween(first, last) > FILLED) return days;
  const known = new Map(days.map((day) => [day.day, day]));
  const all = [];
  for (let day = first; day <= last; day = nextDay(day)) {
    all.push(known.get(day) ?? { day, startsAt: null, value: 0, before: null, events: 0 });
  }
  return all;
}

// The window's first moment has a time of day, and now is never midnight: then these days are not whole.
function mark(days, view, asOf) {
  if (days.length === 0) return;
  const [first, last] = [days[0], days[days.length - 1]];
  first.partial = view.since ? Date.parse(first.startsAt) < Date.parse(view.since) : true;
  const end = view.until ? Math.min(Date.parse(view.until), Infinity) : asOf;
  if (!Number.isNaN(end) && last.startsAt !== null && end < Date.parse(last.startsAt) + DAY) last.partial = true;
}
