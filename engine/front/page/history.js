// The last hour of a migration's figures, and the rates that lie in them.

export const KEEP_MS = 3_600_000;
const CLOSEST_MS = 400;
const COVERED_MS = 3000;
const RATE_MS = 4000; // rates are taken over about this long
const GAP_MS = 20_000; // nothing is drawn across a longer silence

/** What is kept of `Migration` in each sample, in the order of the server's rows. */
const FIGURES = ["keys", "bytes", "commands", "applied", "lagBytes", "lagSeconds", "spool"];

export class History {
  #samples = [];

  /** When the migration began, as the server writes it. */
  began = null;

  /**
   * Take in what the server remembers: rows of [seconds since the epoch, ...figures]. They fill the
   * time without a reader.
   */
  load(rows) {
    const theirs = rows.map(([at, ...values]) => ({
      t: at * 1000,
      ...Object.fromEntries(FIGURES.map((name, i) => [name, values[i] ?? null])),
    }));
    const own = this.#samples;
    let at = 0;
    const missing = theirs.filter(({ t }) => {
      while (at < own.length && own[at].t < t - COVERED_MS) at++;
      return at === own.length || own[at].t > t + COVERED_MS;
    });
    this.#samples = [...own, ...missing].sort((a, b) => a.t - b.t);
  }

  /** How many samples there are. */
  get length() {
    return this.#samples.length;
  }

  /** The times of the first and the last sample (ms since the epoch), null without one. */
  get span() {
    const [first, last] = [this.#samples[0], this.#samples.at(-1)];
    return first === undefined ? null : [first.t, last.t];
  }

  /** Add how a migration stands now (ms since the epoch). */
  add(migration, now) {
    const last = this.#samples.at(-1);
    if (last !== undefined && now - last.t < CLOSEST_MS) return;
    const counters = migration.Counters;
    this.#samples.push({
      t: now,
      keys: migration.Keys,
      bytes: migration.Bytes,
      commands: counters.Commands,
      applied: migration.AppliedOffset,
      lagBytes: migration.LagBytes,
      lagSeconds: migration.LagSeconds,
      spool: counters.SpoolBytes,
    });
    const stale = this.#samples.findIndex((sample) => sample.t >= now - KEEP_MS);
    if (stale > 0) this.#samples.splice(0, stale);
  }

  /** A figure over time since `from`: [{t, v}], v null where it is not known. */
  series(name, from) {
    return this.#since(from).map((sample) => ({ t: sample.t, v: sample[name] }));
  }

  /** How fast a figure grows, per second: [{t, v}]; null at a gap and where it began anew. */
  rate(name, from) {
    const samples = this.#since(from - RATE_MS);
    const found = [];
    let back = 0;
    for (let i = 1; i < samples.length; i++) {
      const { t, [name]: value } = samples[i];
      while (back < i - 1 && t - samples[back].t > RATE_MS) back++;
      const before = samples[back];
      const fits = value !== null && before[name] !== null && value >= before[name];
      if (t - samples[i - 1].t > GAP_MS) found.push({ t: samples[i - 1].t + 1, v: null });
      if (t < from) continue;
      found.push({ t, v: fits ? (1000 * (value - before[name])) / (t - before.t) : null });
    }
    return found;
  }

  #since(from) {
    const first = this.#samples.findIndex((sample) => sample.t >= from);
    return first < 0 ? [] : this.#samples.slice(first);
  }
}
