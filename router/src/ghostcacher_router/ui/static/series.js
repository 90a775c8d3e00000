// What the router's history says, kept by this page as well: it outlives a restart of the router.

const POINTS_MAX = 1500;
const STEPS = 60;

export class Series {
  constructor() {
    this.points = [];
    this.router = null;
    this.now = 0; // the router's time, seconds since 1970
    this.interval = 5;
    this.firstTokens = [];
  }

  // The time after which the router is to be asked; null: for all that it has.
  after(router) {
    return router === this.router && this.points.length ? this.points[this.points.length - 1].at : null;
  }

  add(history) {
    if (history.router !== this.router) {
      this.router = history.router;
      // It has begun anew: what is drawn has a gap where it was away.
      this.firstTokens = [];
    }
    const last = this.points.length ? this.points[this.points.length - 1].at : 0;
    this.points.push(...history.points.filter((point) => point.at > last));
    this.points.splice(0, this.points.length - POINTS_MAX);
    this.now = history.now;
    this.interval = history.interval_s;
    const { forecast_ms: forecast, observed_ms: observed } = history.first_tokens;
    this.firstTokens = forecast.map((value, place) => ({ forecast: value, observed: observed[place] }));
  }

  // The points of the last so many seconds.
  last(span) {
    const from = this.now - span;
    return this.points.filter((point) => point.at > from);
  }

  // The same in some sixty steps, for drawing. A step without any point is left out. end: what a step keeps while it is
  // filled; at: where it is drawn, never later than now.
  steps(span) {
    const width = Math.max(this.interval, span / STEPS);
    const found = new Map();
    for (const point of this.last(span)) {
      const step = Math.ceil(point.at / width) * width;
      if (!found.has(step)) found.set(step, []);
      found.get(step).push(point);
    }
    return [...found].map(([end, points]) => ({ ...summed(points), end, at: Math.min(end, this.now), width }));
  }
}

// What some points are together.
export function summed(points) {
  const seconds = sum(points, "seconds");
  const prompt = sum(points, "prompt_tokens");
  const misses = {};
  for (const point of points) {
    for (const [reason, blocks] of Object.entries(point.missed_blocks || {})) {
      misses[reason] = (misses[reason] || 0) + blocks;
    }
  }
  return {
    seconds,
    requests: sum(points, "requests"),
    failed: sum(points, "failed"),
    perSecond: seconds ? sum(points, "requests") / seconds : null,
    hitRatio: prompt ? sum(points, "hit_tokens") / prompt : null,
    savedMs: sum(points, "saved_ttft_ms"),
    hitBlocks: sum(points, "hit_blocks"),
    inFlight: points.length ? points[points.length - 1].in_flight || 0 : null,
    ttft: spread(points, "ttft_ms"),
    overhead: spread(points, "overhead_ms"),
    ratio: spread(points, "forecast_ratio"),
    misses,
  };
}

function sum(points, field) {
  return points.reduce((total, point) => total + (point[field] || 0), 0);
}

// Percentiles of several intervals: the mean of theirs, each weighted by its answers, and of p99 the greatest.
function spread(points, field) {
  const found = { count: 0, p50: null, p90: null, p99: null };
  for (const point of points) {
    const one = point[field];
    if (!one || !one.count) continue;
    const share = one.count / (found.count + one.count);
    for (const name of ["p50", "p90"]) {
      found[name] = found[name] === null ? one[name] : found[name] + (one[name] - found[name]) * share;
    }
    found.p99 = Math.max(found.p99 ?? 0, one.p99 ?? one.p90);
    found.count += one.count;
  }
  return found;
}
