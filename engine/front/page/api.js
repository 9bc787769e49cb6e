// Calls of the API: the Query protocol, signed. The answers are XML, and errors have a code.

import { encoded, sign } from "./sigv4.js";

const VERSION = "2015-02-02";
const FORM = "application/x-www-form-urlencoded; charset=utf-8";
const SKEW_WORTH_MENDING = 60_000;

// `DOMParser` is a sink that the page's policy guards; XML of a response is not HTML of the page.
const xmlPolicy = globalThis.trustedTypes?.createPolicy("startmigration-xml", {
  createHTML: (xml) => xml,
});

// How far the server's clock is ahead of ours (ms), known once it has refused our date.
let skew = 0;

/** An error as the API gives it; `code` is "" where no answer was understood. */
export class ApiError extends Error {
  constructor(code, message, status = 0) {
    super(message);
    this.code = code;
    this.status = status;
  }

  toString() {
    return this.code ? `${this.code}: ${this.message}` : this.message;
  }
}

/**
 * Fetch with a signature, once more if only the clocks differ. `key` is null where none is asked.
 * Raises ApiError for every answer that is not a success, and what fetch raises.
 */
export async function signedFetch(method, path, key, { body, headers = {}, signal } = {}) {
  for (let again = false; ; again = true) {
    const now = new Date(Date.now() + skew);
    const request = { method, path, host: location.host, headers, body };
    const response = await fetch(path, {
      method,
      body,
      signal,
      headers: key === null ? headers : await sign(request, key, now),
      cache: "no-store",
      credentials: "same-origin",
      redirect: "error",
    });
    if (response.ok) return response;
    const error = await errorOf(response);
    if (again || error.code !== "RequestExpired" || !mended(response, now)) throw error;
  }
}

/** One action with its parameters ([[name, value]]); returns the answer as an XML document. */
export async function call(action, parameters, key, signal) {
  const body = encoded([["Action", action], ["Version", VERSION], ...parameters]);
  const headers = { "Content-Type": FORM };
  const response = await signedFetch("POST", "/", key, { body, headers, signal });
  return parsed(await response.text());
}

/** The text of an element's first child of a name, "" without one. */
export function textOf(element, name) {
  const found = Array.from(element.children).find((child) => child.localName === name);
  return found?.textContent ?? "";
}

function mended(response, now) {
  const theirs = Date.parse(response.headers.get("Date") ?? "");
  if (Number.isNaN(theirs) || Math.abs(theirs - now) < SKEW_WORTH_MENDING) return false;
  skew += theirs - now;
  return true;
}

async function errorOf(response) {
  const answer = await response.text().catch(() => "");
  const found = parsed(answer).getElementsByTagNameNS("*", "Error")[0];
  if (found === undefined) {
    return new ApiError("", `The server answered with status ${response.status}.`, response.status);
  }
  return new ApiError(textOf(found, "Code"), textOf(found, "Message"), response.status);
}

function parsed(xml) {
  return new DOMParser().parseFromString(xmlPolicy?.createHTML(xml) ?? xml, "text/xml");
}
