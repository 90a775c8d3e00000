// The page's own life: asks the router now and then, shows what it says, and says when there is no answer.

import { get } from "./api.js";
import { byId, setText, show } from "./dom.js";
import { DotChart } from "./dot-chart.js";
import { setUpExplain } from "./explain.js";
import { FIGURES, showFigures } from "./figures.js";
import { setUpFleet, showFleet } from "./fleet.js";
import { clock, ms, percent, seconds, times } from "./format.js";
import { LineChart } from "./line-chart.js";
import { showLinks } from "./links.js";
import { Series, summed } from "./series.js";
import { setUpSession, showSession, signIn } from "./session.js";
import { setUpTables, showLocks, showMisses, showPrefixes } from "./tables.js";

const ROUND_MS = 3000;
const PAUSE_MS_MAX = 10000;
const MANY_WORKERS = 100; // Beyond, every second round asks for them: it is a long answer.
const PREFIX_ROUNDS = 2;
const LINK_ROUNDS = 10;
const UNAUTHORIZED = 401;

const series = new Series();
const state = { round: 0, failures: 0, workers: [], locks: 0, status: null, paused: false, timer: null, refused: false, asking: false, answeredAt: null };
const routers = []; // the names that answered, as they changed
let charts;

async function start() {
  setUpSession();
  setUpFleet();
  setUpTables();
  setUpExplain();
  charts = {
    hits: new LineChart(byId("hits-chart"), {
      label: "Hit ratio",
      lines: [{ name: "hit ratio", kind: "one", of: (step) => step.hitRatio }],
      format: percent,
      top: 1,
    }),
    ttft: new LineChart(byId("ttft-chart"), {
      label: "Time to first token",
      lines: [
        { name: "p50", kind: "one", of: (step) => step.ttft.p50 },
        { name: "p90", kind: "two", of: (step) => step.ttft.p90 },
        { name: "p99", kind: "three", of: (step) => step.ttft.p99 },
      ],
      format: ms,
    }),
    forecast: new DotChart(byId("forecast-chart")),
  };
  byId("range").addEventListener("change", draw);
  byId("pause").addEventListener("click", () => pause(!state.paused));
  document.addEventListener("visibilitychange", () => (document.hidden ? clearTimeout(state.timer) : round()));
  showFigures(FIGURES, null, [], state);
  await round();
}

function pause(paused) {
  state.paused = paused;
  byId("pause").setAttribute("aria-pressed", String(paused));
  setText(byId("pause"), paused ? "Go on" : "Pause");
  if (paused) clearTimeout(state.timer);
  else round();
  showState();
}

// Ask for everything that is due, show it, and plan the next round.
async function round() {
  clearTimeout(state.timer);
  if (state.asking || document.hidden || state.paused) return;
  state.asking = true;
  let pauseMs = ROUND_MS;
  try {
    await ask();
    state.failures = 0;
    state.answeredAt = Date.now() / 1000;
    show(byId("notice"), severalRouters());
  } catch (error) {
    if (!("status" in error)) throw error;
    state.failures += 1;
    state.refused = error.status !== 0;
    pauseMs = Math.min(PAUSE_MS_MAX, 500 * 2 ** Math.min(state.failures, 10));
    if (error.status === UNAUTHORIZED) {
      await signIn(state.status ? "The router does not take the token any more" : "");
      state.failures = 0;
      pauseMs = 0;
    } else {
      show(byId("notice"), trouble(error));
    }
  } finally {
    state.asking = false;
    state.round += state.failures ? 0 : 1;
    showState();
    showSession();
    if (!document.hidden && !state.paused) state.timer = setTimeout(round, pauseMs);
  }
}

async function ask() {
  // First, and alone: it says whether there is a token to ask for, and which router this is.
  state.status = await get("status");
  const { router } = state.status;
  if (router !== routers[routers.length - 1]) {
    routers.push(router);
    routers.splice(0, routers.length - 8);
    state.round = 0;
  }
  const after = series.after(router);
  const due = (rounds) => state.round % rounds === 0;
  const [history, locks, workers, prefixes, links] = await Promise.all([
    get(after === null ? "history" : `history?after=${after}`),
    get("locks"),
    state.workers.length <= MANY_WORKERS || due(2) ? get("workers") : null,
    due(PREFIX_ROUNDS) ? get("prefixes") : null,
    due(LINK_ROUNDS) ? get("links") : null,
  ]);
  series.add(history);
  state.locks = locks.total;
  showLocks(locks);
  if (workers) {
    state.workers = workers.workers;
    showFleet(state.workers);
  }
  if (prefixes) showPrefixes(prefixes);
  if (links) showLinks(links);
  draw();
}

function draw() {
  const span = Number(byId("range").value);
  const steps = series.steps(span);
  const points = series.last(span);
  const all = summed(points);
  charts.hits.update(steps, series.now, span);
  charts.ttft.update(steps, series.now, span);
  const about = all.ratio.count
    ? `Observed over forecast: ${times(all.ratio.p50)} in the median, ${times(all.ratio.p90)} at p90`
    : "Each dot is an answer to a stream; on the line the forecast was right";
  setText(byId("forecast-about"), about);
  charts.forecast.update(series.firstTokens, `${about}. The last ${series.firstTokens.length} answers.`);
  showMisses(all.misses, all.hitBlocks, span);
  showFigures(FIGURES, all, steps, state);
}

function showState() {
  const pill = byId("state");
  const { status } = state;
  const [kind, text] = state.paused
    ? ["wait", "paused"]
    : state.failures
      ? ["bad", state.refused ? "refused" : "no connection"]
      : status === null
        ? ["wait", "connecting"]
        : status.ready
          ? ["good", "ready"]
          : ["bad", "not ready"];
  pill.className = `pill ${kind}`;
  setText(pill, text);
  if (status === null) return;
  setText(byId("router"), `router ${status.router.slice(0, 16)}, ${status.version}`);
  const redis = status.redis_error ? `Redis: ${status.redis_error}` : status.redis_available ? "Redis answers" : "no Redis";
  const others = status.replicas === null ? "" : `, ${status.replicas} router${status.replicas === 1 ? "" : "s"}`;
  const at = state.answeredAt === null ? "" : ` Last answer at ${clock(state.answeredAt)}.`;
  setText(byId("footer"), `Up for ${seconds(status.uptime_s)}${others}, ${redis}. What is shown is this router's view.${at}`);
  if (!state.failures && status.why_not_ready) show(byId("notice"), status.why_not_ready);
}

function trouble(error) {
  if (error.status) return error.message;
  const at = state.answeredAt === null ? "" : ` What you see is from ${clock(state.answeredAt)}.`;
  return `The router gives ${error.message}; it is asked again and again.${at}`;
}

// A restart is one change of the name. Names that come back are routers behind one address.
function severalRouters() {
  const last = routers[routers.length - 1];
  if (!routers.slice(0, -1).includes(last)) return "";
  return "Several routers answer at this address, and what you see mixes them. Open one of them by an address of its own.";
}

start();
