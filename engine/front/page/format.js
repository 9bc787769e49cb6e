// Figures as people read them. Bytes are decimal, as the engine's own messages have them.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = ["B", "kB", "MB", "GB", "TB", "PB"];
const NONE = "–";

/** A count: `1,234,567`; a dash for what is not known. */
export function count(n) {
  return n === null || n === undefined ? NONE : WHOLE.format(n);
}

/** A count in few characters: `950`, `12.3k`, `4.56M`. */
export function brief(n) {
  if (n === null || n === undefined) return NONE;
  const [size, unit] = n >= 1e9 ? [1e9, "G"] : n >= 1e6 ? [1e6, "M"] : n >= 1e4 ? [1e3, "k"] : [1, ""];
  return unit ? digits(n / size) + unit : WHOLE.format(n);
}

/** Bytes: `950 B`, `12.3 MB`. */
export function bytes(n) {
  if (n === null || n === undefined) return NONE;
  let unit = 0;
  for (; Math.abs(n) >= 999.5 && unit < UNITS.length - 1; unit++) n /= 1000;
  return `${unit === 0 ? WHOLE.format(n) : digits(n)} ${UNITS[unit]}`;
}

/** Bytes a second: `12.3 MB/s`. */
export function rate(n) {
  return n === null || n === undefined ? NONE : `${bytes(n)}/s`;
}

/** A duration in seconds: `33 ms`, `0.4 s`, `12 s`, `3 min 05 s`, `2 h 10 min`, `3 d 4 h`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return NONE;
  if (seconds > 0 && seconds < 0.0995) return `${Math.ceil(seconds * 1000)} ms`;
  if (seconds < 9.95) return `${seconds.toFixed(1)} s`;
  const s = Math.round(seconds);
  if (s < 60) return `${s} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${two(s % 60)} s`;
  if (s < 86_400) return `${Math.floor(s / 3600)} h ${two(Math.floor(s / 60) % 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor(s / 3600) % 24} h`;
}

/** A time of day, local, with seconds; with the date if it is not today. */
export function time(value, today = new Date()) {
  const at = new Date(value);
  const clock = `${two(at.getHours())}:${two(at.getMinutes())}:${two(at.getSeconds())}`;
  if (at.toDateString() === today.toDateString()) return clock;
  const day = at.toLocaleDateString("en", { day: "numeric", month: "short" });
  return `${day}, ${clock}`;
}

/** A share in percent, rounded down: 100 % is all of it. */
export function percent(part, whole) {
  if (!whole) return 0;
  return Math.min(100, Math.floor((1000 * part) / whole) / 10);
}

/** Where something is: `host:port`, or a socket's path. */
export function address(endpoint) {
  if (!endpoint) return NONE;
  const host = endpoint.Address.includes(":") ? `[${endpoint.Address}]` : endpoint.Address;
  return endpoint.Port === undefined ? host : `${host}:${endpoint.Port}`;
}

function digits(n) {
  return n >= 100 ? WHOLE.format(n) : n.toPrecision(3);
}

function two(n) {
  return String(n).padStart(2, "0");
}
