// AWS's Signature Version 4, in the header. The secret signs, and is never sent.

import * as plain from "./sha256.js";

const ALGORITHM = "AWS4-HMAC-SHA256";
const REGION = "us-east-1"; // any will do: the server has no regions
const SERVICE = "elasticache";

const text = (string) => new TextEncoder().encode(string);
const hex = (bytes) => Array.from(bytes, (b) => b.toString(16).padStart(2, "0")).join("");

const webCrypto = {
  sha256: async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)),
  hmac: async (key, bytes) => {
    const kind = { name: "HMAC", hash: "SHA-256" };
    const imported = await crypto.subtle.importKey("raw", key, kind, false, ["sign"]);
    return new Uint8Array(await crypto.subtle.sign("HMAC", imported, bytes));
  },
};

/** What hashes here: WebCrypto in a secure context, and our own elsewhere. */
export const digests = () => (globalThis.crypto?.subtle ? webCrypto : plain);

/**
 * The headers that sign a request: {method, path, query: [[name, value]], host, headers, body}.
 * `headers` go out as they are, and are signed too; `key` is {id, secret}; `now` a Date.
 */
export async function sign(request, key, now, hashes = digests()) {
  const stamp = now.toISOString().replace(/[-:]|\.\d+/g, "");
  const headers = { ...request.headers, "X-Amz-Date": stamp };
  const signed = Object.entries({ ...headers, Host: request.host })
    .map(([name, value]) => [name.toLowerCase(), value.trim().replace(/\s+/g, " ")])
    .sort(byFirst);
  const names = signed.map(([name]) => name).join(";");
  const canonical = [
    request.method,
    request.path,
    canonicalQuery(request.query ?? []),
    ...signed.map(([name, value]) => `${name}:${value}`),
    "",
    names,
    hex(await hashes.sha256(text(request.body ?? ""))),
  ].join("\n");
  const scope = [stamp.slice(0, 8), REGION, SERVICE, "aws4_request"];
  const digest = hex(await hashes.sha256(text(canonical)));
  const toSign = [ALGORITHM, stamp, scope.join("/"), digest].join("\n");
  let derived = text(`AWS4${key.secret}`);
  for (const part of [...scope, toSign]) derived = await hashes.hmac(derived, text(part));
  const credential = `${key.id}/${scope.join("/")}`;
  headers.Authorization =
    `${ALGORITHM} Credential=${credential}, SignedHeaders=${names}, Signature=${hex(derived)}`;
  return headers;
}

/** A form or a query as its pairs are signed and sent: RFC 3986, a space is %20. */
export function encoded(pairs) {
  return pairs.map(([name, value]) => `${quoted(name)}=${quoted(value)}`).join("&");
}

function canonicalQuery(pairs) {
  const quotedPairs = pairs.map(([name, value]) => [quoted(name), quoted(value)]);
  return quotedPairs
    .sort(byFirst)
    .map(([name, value]) => `${name}=${value}`)
    .join("&");
}

function quoted(string) {
  const rest = (c) => `%${c.charCodeAt(0).toString(16).toUpperCase()}`;
  return encodeURIComponent(string).replace(/[!'()*]/g, rest);
}

function byFirst(a, b) {
  if (a[0] !== b[0]) return a[0] < b[0] ? -1 : 1;
  return a[1] < b[1] ? -1 : Number(a[1] > b[1]);
}
