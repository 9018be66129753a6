// The server's answers. The token is in sessionStorage, which ends with the tab, and goes into one header, never into a URL.

import { parse } from "./numbers.js";

const KEY = "aggregator-token";

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/** Take the token of a link, #token=…, and remove it from the address and this history entry at once. */
export function takeToken() {
  const match = /^#token=(.+)$/.exec(location.hash);
  if (!match) return;
  history.replaceState(history.state, "", location.pathname + location.search);
  try {
    keepToken(decodeURIComponent(match[1]));
  } catch {
    keepToken(match[1]);
  }
}

export const hasToken = () => sessionStorage.getItem(KEY) !== null;
export const keepToken = (token) => sessionStorage.setItem(KEY, token.trim());
export const forgetToken = () => sessionStorage.removeItem(KEY);

/** Get JSON, which is not left in the browser's cache; raises Refused for any answer but 200, with status 0 where there was none. */
export async function get(path, query, signal) {
  const headers = { Accept: "application/json" };
  const token = sessionStorage.getItem(KEY);
  if (token) headers.Authorization = `Bearer ${token.replace(/[^\x21-\x7e]/g, "")}`;
  let answer;
  let text;
  try {
    answer = await fetch(`${path}?${query}`, { headers, signal, credentials: "same-origin", cache: "no-store" });
    text = await answer.text();
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server could not be reached.");
  }
  if (!answer.ok) throw new Refused(answer.status, said(text));
  try {
    return parse(text);
  } catch {
    throw new Refused(0, "The answer was cut short, or is no JSON.");
  }
}

function said(text) {
  try {
    return String(JSON.parse(text).error ?? "");
  } catch {
    return "";
  }
}
