// Numbers as people read them. null and undefined become a dash.

const DASH = "\u2013";
const UNITS = ["", "k", "M", "G", "T"];

export function known(value) {
  return value !== null && value !== undefined && Number.isFinite(value);
}

function digits(value) {
  const size = Math.abs(value);
  if (size >= 100 || Number.isInteger(value)) return value.toFixed(0);
  return size >= 10 ? value.toFixed(1) : value.toFixed(2);
}

export function count(value) {
  if (!known(value)) return DASH;
  let unit = 0;
  let size = value;
  while (Math.abs(size) >= 10000 && unit < UNITS.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return digits(unit ? size : Math.round(size * 100) / 100) + UNITS[unit];
}

export function bytes(value) {
  if (!known(value)) return DASH;
  const names = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  let size = value;
  while (size >= 1024 && unit < names.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${digits(size)} ${names[unit]}`;
}

export function percent(share) {
  return known(share) ? `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : DASH;
}

export function ms(value) {
  if (!known(value)) return DASH;
  if (value >= 60000) return seconds(value / 1000);
  return value >= 1000 ? `${digits(value / 1000)} s` : `${digits(value)} ms`;
}

export function seconds(value) {
  if (!known(value)) return DASH;
  if (value < 1) return `${Math.round(value * 1000)} ms`;
  if (value < 100) return `${digits(value)} s`;
  if (value < 6000) return `${Math.round(value / 60)} min`;
  return value < 172800 ? `${digits(value / 3600)} h` : `${digits(value / 86400)} d`;
}

export function ago(value) {
  if (!known(value)) return DASH;
  if (value < 2) return "now";
  return value < 100 ? `${Math.round(value)} s ago` : `${seconds(value)} ago`;
}

export function times(value) {
  return known(value) ? `${value.toFixed(2)}\u00d7` : DASH;
}

export function gigabytes(bytesPerS) {
  return known(bytesPerS) ? (bytesPerS / 1e9).toFixed(bytesPerS >= 1e11 ? 0 : bytesPerS >= 1e10 ? 1 : 2) : DASH;
}

// A time of day, by this browser's clock and habits. at: seconds since 1970.
export function clock(at) {
  return new Date(at * 1000).toLocaleTimeString();
}

// A short name of a digest in hex.
export function short(key) {
  return key.length > 12 ? `${key.slice(0, 12)}\u2026` : key;
}
