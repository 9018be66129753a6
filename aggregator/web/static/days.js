// Days and moments in words. A day is a local date of the reporting zone, as text; it is never moved into the viewer's zone.

const DAY = 86_400_000;

const format = (options) => new Intl.DateTimeFormat("en-GB", { timeZone: "UTC", ...options });
const SHORT = format({ day: "numeric", month: "short" });
const LONG = format({ weekday: "short", day: "numeric", month: "short", year: "numeric" });
const CLOCK = new Intl.DateTimeFormat("en-GB", { hour: "2-digit", minute: "2-digit" });
const MOMENT = new Intl.DateTimeFormat("en-GB", { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short" });

export const isFinite = (day) => !day.endsWith("infinity");

const midnight = (day) => new Date(`${day}T00:00:00Z`);

export function dayWords(day, short = false) {
  if (day === "-infinity") return "before the year 1";
  if (day === "infinity") return "after the year 9999";
  return (short ? SHORT : LONG).format(midnight(day));
}

export const nextDay = (day) => new Date(midnight(day).getTime() + DAY).toISOString().slice(0, 10);

export const daysBetween = (from, to) => Math.round((midnight(to) - midnight(from)) / DAY);

/** 14:03 where it was in the last day, else with its date; the viewer's clock. */
export function momentWords(instant, now = new Date()) {
  return Math.abs(now - instant) < DAY / 2 ? CLOCK.format(instant) : MOMENT.format(instant);
}

export function ageWords(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  for (const [size, one] of [[86_400, "day"], [3600, "hour"], [60, "minute"]]) {
    const number = Math.round(seconds / size);
    if (seconds >= size * 1.5 || number === 1 && seconds >= size) return `${number} ${one}${number === 1 ? "" : "s"}`;
  }
  return `${seconds} second${seconds === 1 ? "" : "s"}`;
}
