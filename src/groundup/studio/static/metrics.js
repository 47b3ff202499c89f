// The text that Prometheus reads, read here: samples by name, histograms by the time between two readings.

/** Samples of `/metrics` by name, without the prefix that the server was started with. */
export class Samples {
  constructor(text) {
    this.at = performance.now() / 1000;
    this.byName = new Map();
    for (const line of text.split("\n")) {
      const found = /^(?:\w+:)?([a-z_]+)(?:\{(.*)\})? (\S+)/.exec(line);
      if (!found) continue;
      const labels = Object.fromEntries([...(found[2] ?? "").matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map((pair) => [pair[1], unescape(pair[2])]));
      if (!this.byName.has(found[1])) this.byName.set(found[1], []);
      this.byName.get(found[1]).push({ labels, value: Number(found[3].replace("Inf", "Infinity")) });
    }
  }

  /** All samples of a name whose labels are such. */
  of(name, is = () => true) {
    return (this.byName.get(name) ?? []).filter((sample) => is(sample.labels));
  }

  sum(name, is) {
    return this.of(name, is).reduce((sum, sample) => sum + sample.value, 0);
  }

  most(name, is) {
    return this.of(name, is).reduce((most, sample) => Math.max(most, sample.value), 0);
  }

  /** The buckets of a histogram, all its series together: [[upper edge, count up to it], …]. */
  buckets(name) {
    const counts = new Map();
    for (const { labels, value } of this.of(`${name}_bucket`)) {
      const edge = Number(labels.le.replace("Inf", "Infinity"));
      counts.set(edge, (counts.get(edge) ?? 0) + value);
    }
    return [...counts].sort((a, b) => a[0] - b[0]);
  }
}

/** A quantile of what a histogram counted between two readings, as Prometheus estimates it; null for nothing. */
export function quantile(share, name, before, after) {
  const earlier = new Map(before.buckets(name));
  const counts = after.buckets(name).map(([edge, count]) => [edge, count - (earlier.get(edge) ?? 0)]);
  const total = counts.at(-1)?.[1] ?? 0;
  if (total <= 0) return null;
  let [low, below] = [0, 0];
  for (const [edge, count] of counts) {
    if (count >= share * total) {
      if (edge === Infinity) return low;
      return low + ((edge - low) * (share * total - below)) / (count - below);
    }
    [low, below] = [edge, count];
  }
  return low;
}

function unescape(text) {
  return text.replace(/\\(.)/g, (_, character) => (character === "n" ? "\n" : character));
}
