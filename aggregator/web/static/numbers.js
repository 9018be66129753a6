// Numbers as the server gave them: no digit is lost on the way in, and a hint holds them all on the way out.

const SAFE = 2n ** 53n;
const BYTES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const SCALE = [["T", 1e12], ["G", 1e9], ["M", 1e6], ["k", 1e3]];
const TOKEN = /"(?:[^"\\]+|\\.)*"|-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?/g;
// PostgreSQL's text never holds NUL, so no string of the server's begins with it.
const MARK = "\u0000";

/** Parse JSON; integers beyond 2^53 become BigInt. */
export function parse(text) {
  if (!/\d{16}/.test(text)) return JSON.parse(text);
  const marked = text.replace(TOKEN, (token) => (/^-?\d{16,}$/.test(token) ? `"\\u0000${token}"` : token));
  return JSON.parse(marked, (_, value) => (typeof value === "string" && value[0] === MARK ? big(value.slice(1)) : value));
}

function big(digits) {
  const value = BigInt(digits);
  return value < SAFE && value > -SAFE ? Number(value) : value;
}

/** Add integers of either kind exactly. */
export function add(a, b) {
  if (typeof a === "number" && typeof b === "number" && Number.isSafeInteger(a + b)) return a + b;
  return BigInt(a) + BigInt(b);
}

/** All digits: 1,234,567,890,123,456,789; a fraction as the shortest text that is the same double. */
export function exact(value) {
  if (value === null) return "none";
  if (typeof value === "bigint" || Number.isInteger(value)) return BigInt(value).toLocaleString("en");
  const [whole, fraction] = String(value).split(".");
  if (fraction === undefined || /e/.test(fraction)) return String(value);
  return `${whole.startsWith("-") ? "-" : ""}${BigInt(whole.replace("-", "")).toLocaleString("en")}.${fraction}`;
}

export const exactly = (value, unit) => `${exact(value)}${unit ? ` ${unit}` : ""}`;

const fixed = (size, digits) =>
  size.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A value that people read, as [number, unit]: ["1.50", "GiB"], ["12 h 05 min", ""], ["3.42 M", "tokens"]. */
export function quantity(value, unit) {
  if (value === null) return ["–", ""];
  const number = Number(value);
  const sign = number < 0 ? "−" : "";
  let size = Math.abs(number);
  if (unit === "bytes") {
    let power = 0;
    while (size >= 1024 && power < BYTES.length - 1) [size, power] = [size / 1024, power + 1];
    return [sign + fixed(size, power === 0 || size >= 1000 ? 0 : 3 - String(Math.trunc(size)).length), BYTES[power]];
  }
  if (unit === "seconds" || unit === "minutes") return [sign + duration(unit === "seconds" ? size : size * 60), ""];
  for (const [letter, scale] of SCALE) {
    if (size >= scale) {
      size /= scale;
      return [`${sign}${fixed(size, size >= 1000 ? 0 : 3 - String(Math.trunc(size)).length)} ${letter}`, unit ?? ""];
    }
  }
  return [sign + size.toLocaleString("en", { maximumSignificantDigits: 4 }), unit ?? ""];
}

function duration(seconds) {
  if (seconds < 60) return `${seconds.toLocaleString("en", { maximumSignificantDigits: 4 })} s`;
  const whole = Math.round(seconds);
  if (whole < 3600) return `${Math.trunc(whole / 60)} min ${String(whole % 60).padStart(2, "0")} s`;
  const minutes = Math.trunc(whole / 60);
  const hours = Math.trunc(minutes / 60);
  return hours >= 100 ? `${Math.round(whole / 3600).toLocaleString("en")} h` : `${hours} h ${String(minutes % 60).padStart(2, "0")} min`;
}

export const words = (value, unit) => quantity(value, unit === "events" && value === 1 ? "event" : unit).join(" ").trim();

export const count = (value, one, many = `${one}s`) => `${exact(value)} ${value === 1 ? one : many}`;

/** The end of an axis: a round number of the unit at or above the value. */
export function ceiling(value, unit) {
  if (!(value > 0)) return 1;
  let step = 1;
  if (unit === "bytes") while (value / step >= 1024 && step < 1024 ** 6) step *= 1024;
  else if (unit === "seconds" && value >= 60) step = value >= 3600 ? 3600 : 60;
  else if (unit === "minutes" && value >= 60) step = 60;
  else if (unit === "events") value = Math.max(value, 2);
  const size = value / step;
  const power = 10 ** Math.floor(Math.log10(size));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].find((round) => round * power >= size * 0.9999999) * power * step;
}

/** A share in words: 12.3 %. */
export function percent(share) {
  if (!Number.isFinite(share)) return "–";
  return share > 0 && share < 0.0005 ? "< 0.1 %" : `${fixed(share * 100, 1)} %`;
}

/** This window on the one before it: {sign, text}, or null where there is nothing to compare with. */
export function change(value, before) {
  if (before === null || before === undefined || value === null) return null;
  const [now, then] = [Number(value), Number(before)];
  if (now === then) return { sign: 0, text: "unchanged" };
  if (then === 0) return { sign: 1, text: "new" };
  const ratio = (now - then) / Math.abs(then);
  const sign = Math.sign(ratio);
  if (ratio >= 1000) return { sign, text: "over 1,000 times" };
  if (ratio >= 10) return { sign, text: `${fixed(now / then, 0)} times` };
  return { sign, text: Math.abs(ratio) < 0.0005 ? "under 0.1 %" : `${ratio > 0 ? "+" : "−"}${percent(Math.abs(ratio))}` };
}
