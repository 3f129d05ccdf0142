// Talking to the server: the queue of images, the outbox of answers, and what it says by itself.

import { choose, dialog, h } from "./dom.js";
import { assignKeys, changed, names, random, recall, remember, settings, store, tab, touch } from "./store.js";
import { spoken, text } from "./texts.js";

const HELD = 6; // the image on the screen and 5 that are fetched before they are asked
const REMEMBERED = 8; // of the images of one answer, beside all ids: a browser keeps 5 MB
const [SHORT, LONG] = [15_000, 120_000]; // ms to wait for an answer: a question, a change
const [RETRY, POLL, HEARTBEAT] = [1_000, 2_000, 20_000];

class Unreachable extends Error {}

async function ask(path, options = {}, patience = SHORT) {
  let response;
  try {
    response = await fetch(path, { cache: "no-store", signal: AbortSignal.timeout(patience), ...options });
  } catch (error) {
    throw new Unreachable(error.message);
  }
  if ([502, 503, 504].includes(response.status)) throw new Unreachable(`HTTP ${response.status}`);
  const body = await response.json().catch(() => ({}));
  if (response.ok) return body;
  throw Object.assign(new Error(body.error || `HTTP ${response.status}`), body, { status: response.status });
}

export const get = (path, fields = {}) => ask(`${path}?${new URLSearchParams({ ...fields, tab })}`);

export function post(path, fields, patience = LONG) {
  const headers = { "Content-Type": "application/json", "X-Learnkit": "1" };
  return ask(path, { method: "POST", headers, body: JSON.stringify({ ...fields, tab }) }, patience);
}

// ---------------------------------------------------------------------------------------- login

/** Log in with the key of the address, which is taken out of it, or ask for one. */
export async function logIn() {
  const here = new URL(location.href);
  const key = here.searchParams.get("key");
  if (key !== null) {
    here.searchParams.delete("key");
    history.replaceState(null, "", here);
    await post("/label/login", { key }, SHORT).catch((error) => { if (error.status !== 403) throw error; });
  }
}

let asking = null; // the dialog that asks for the key: there is one at most
function askForKey() {
  asking ??= dialog(text("login_title"), (finish) => {
    const input = h("input", { id: "key", autocomplete: "off", spellcheck: "false", autofocus: true });
    const why = h("p.wrong", { role: "alert" });
    const send = async (event) => {
      event.preventDefault();
      try {
        await post("/label/login", { key: input.value.trim() }, SHORT);
        finish(true);
      } catch (error) {
        why.textContent = error.status === 403 ? text("login_wrong") : error.message;
        input.select();
      }
    };
    return [
      h("p", {}, text("login_text")),
      h("form", { on: { submit: send } }, h("label", { for: "key" }, text("login_title")), input, why,
        h("p.answers", {}, h("button.main", { type: "submit" }, text("login")))),
    ];
  }).then((done) => { asking = null; return done; });
  return asking;
}

// ---------------------------------------------------------------------------------- connection

let retrying = null;
function disconnected() {
  store.offline = true;
  for (const one of store.outbox) one.status = one.of ? "taking_back" : "held";
  remember();
  changed();
  clearTimeout(retrying);
  retrying = setTimeout(refresh, RETRY);
}

/** Ask what is new: the state, the images still missing, and what is thought of those held. */
export async function refresh() {
  if (await refill()) pump();
}

/** What the server says in every answer. */
export function absorb(state) {
  const before = store.server && names();
  store.server = state;
  store.offline = false;
  store.excused = state.trouble === store.excused ? store.excused : null;
  store.blocked = (state.trouble !== store.excused && state.trouble) || null;
  assignKeys(state.classes, before);
  if (store.blocked) waitForRoom();
}

let waitingForRoom = null;
function waitForRoom() {
  clearTimeout(waitingForRoom);
  waitingForRoom = setTimeout(tryAgain, POLL);
}

/** Send once more what could not be saved, or ask whether it can by now. */
async function tryAgain() {
  if (store.outbox.length && !store.offline) await pump(true);
  else await refresh();
}

/** Someone wants to go on: keys are heard, and the next answer shows whether it can be saved. */
export function goOn() {
  store.excused = store.blocked;
  store.blocked = null;
  tryAgain();
}

// --------------------------------------------------------------------------------------- queue

export const pictures = new Map(); // id -> the <img> that has been fetched
export const broken = new Set();

function fetchPicture(id) {
  const image = pictures.get(id) || new Image();
  pictures.set(id, image);
  broken.delete(id);
  image.draggable = false;
  image.src = `/label/image/${encodeURIComponent(id)}?side=1600`;
  image.decode().then(changed, () => { broken.add(id); changed(); });
}

let filling = null;
let again = false;
/** Fill the queue; whether the server answered. */
export function refill(fields = {}) {
  if (filling) {
    again = true;
    return filling;
  }
  filling = fill(fields).finally(() => {
    filling = null;
    if (again) { again = false; refill(); }
  });
  return filling;
}

async function fill(fields) {
  const start = { clock: store.clock, pending: pending() };
  const have = [...store.queue.map((one) => one.id), ...store.outbox.filter((one) => !one.of).flatMap((one) => one.ids)];
  const question = { n: Math.max(0, HELD - store.queue.length), have: have.join(","), ...fields };
  if (settings.show) question.view = settings.show;
  let answer;
  try {
    answer = await get("/label/queue", question);
  } catch (error) {
    return await couldNotAsk(error);
  }
  const wasAway = store.offline || !store.loaded;
  absorb(answer);
  take(answer, start);
  store.loaded = true;
  if (wasAway) broken.forEach(fetchPicture);
  changed();
  return true;
}

async function couldNotAsk(error) {
  if (error instanceof Unreachable) disconnected();
  else if (error.status === 401) { if (await askForKey()) return refillNow(); }
  else { store.blocked = error.message; waitForRoom(); changed(); }
  return false;
}

function refillNow() {
  again = true; // once this one is over
  return false;
}

/** Images of what the server has not got yet: it speaks of them as they were. */
const pending = () => new Set(store.outbox.flatMap((one) => one.ids));

function take(answer, start) {
  const now = pending();
  const isTouched = (id) => (store.touched.get(id) || 0) > start.clock;
  const old = (id) => isTouched(id) || start.pending.has(id) || now.has(id);
  const gone = new Set((answer.gone || []).filter((id) => !old(id)));
  const wanted = settings.show || store.server.show;
  store.queue = store.queue.filter((item, place) => {
    Object.assign(item, (answer.held || {})[item.id]);
    const known = place > 0 && wanted === "unknown" && item.flagged === false && !item.back;
    return !gone.has(item.id) && !known;
  });
  const here = new Set(store.queue.map((one) => one.id));
  for (const item of answer.images || []) {
    if (here.has(item.id) || old(item.id)) continue;
    store.queue.push(item);
    here.add(item.id);
  }
  for (const item of store.queue) if (!pictures.has(item.id)) fetchPicture(item.id);
  forgetPictures();
}

function forgetPictures() {
  const needed = new Set([...store.queue, ...store.answered.slice(-8).flatMap((one) => one.items)].map((one) => one.id));
  for (const id of pictures.keys()) if (!needed.has(id)) { pictures.delete(id); broken.delete(id); }
}

// -------------------------------------------------------------------------------------- outbox

/** Say something about images: a label, or what else is to be done with them. */
export function answer(items, said) {
  const ids = items.map((one) => one.id);
  const plain = items.slice(0, REMEMBERED).map(({ id, name, w, h: height, probs, ood, flagged, blind, like }) =>
    ({ id, name, w, h: height, probs, ood, flagged, blind, like }));
  const entry = { key: random(16), ids, items: plain, ...said, status: "sending", classes: names() };
  store.queue = store.queue.filter((one) => !ids.includes(one.id));
  store.answered.push(entry);
  post_(entry);
  if (store.queue.length < HELD && !store.offline) refill();
  return entry;
}

/** Take back the newest of what was said here; its images are asked again. */
export function takeBack() {
  const entry = store.answered.findLast((one) => !["failed", "taking_back"].includes(one.status));
  if (!entry) return null;
  store.answered.splice(store.answered.indexOf(entry), 1);
  const waits = store.outbox.indexOf(entry);
  if (waits >= 0 && !entry.sent) { // nobody has heard it
    store.outbox.splice(waits, 1);
    store.newest = { ...entry, status: "taken_back" };
  } else post_({ key: random(16), of: entry.key, ids: entry.ids, items: entry.items, label: entry.label, status: "taking_back" });
  touch(entry.ids);
  const alone = entry.ids.length === 1 && entry.items.length === 1;
  if (alone) store.queue.unshift({ ...entry.items[0], back: true });
  if (alone && !pictures.has(entry.ids[0])) fetchPicture(entry.ids[0]);
  remember();
  changed();
  return entry;
}

function post_(entry) {
  touch(entry.ids);
  store.outbox.push(entry);
  remember();
  changed();
  pump();
}

/** Send what waits, one after the other, in the order in which it was said. */
export async function pump(isTrial = false) {
  if (store.busy || (store.blocked && !isTrial) || asking || !store.outbox.length) return;
  const entry = store.outbox[0];
  store.busy = entry;
  entry.sent = true; // its reply may be lost
  entry.status = entry.of ? "taking_back" : "learning";
  changed();
  let goesOn = true;
  try {
    settle(entry, await send(entry));
  } catch (error) {
    goesOn = await unsettled(entry, error);
  }
  store.busy = null;
  remember();
  changed();
  if (goesOn) pump();
}

function send(entry) {
  const { key, of, ids, label, action, blind, correct, again } = entry;
  const who = settings.who;
  if (of) return post("/label/undo", { key, of, who });
  const digest = store.server?.digest;
  return post("/label/answer", { ids, label, action, key, digest, who, blind, correct, again, new: entry.new });
}

function settle(entry, got) {
  absorb(got);
  store.outbox.shift();
  if (entry.of) entry.status = "taken_back";
  else if (entry.action) entry.status = "moved";
  else Object.assign(entry, {
    status: got.already ? "learned_already" : got.result, n: got.n, known: got.n_known_now,
    reason: got.reason, suspicion: got.suspicion,
  });
  store.newest = entry;
  if (entry.status === "refused") beep();
  refill();
}

/** What to do with an answer that was not taken; whether to go on with the next. */
async function unsettled(entry, error) {
  if (error instanceof Unreachable) { disconnected(); return false; }
  if (error.status === 401) return Boolean(await askForKey());
  if (error.status === 507 || error.kind === "disk") {
    store.blocked = error.message;
    store.excused = null;
    entry.status = entry.of ? "taking_back" : "held";
    waitForRoom();
    return false;
  }
  if (error.kind === "model" && error.result) { // opened again, with this label
    settle(entry, error);
    return true;
  }
  if (error.kind === "model" && (entry.tries = (entry.tries || 0) + 1) < 4) {
    if (store.server) store.server.digest = error.digest;
    return true;
  }
  if (error.kind === "taken" || error.kind === "already") return await settleDispute(entry, error);
  if (error.kind === "gone" && error.gone && entry.ids.length > error.gone.length) {
    dropFrom(entry, error.gone);
    return true;
  }
  store.outbox.shift();
  Object.assign(entry, { status: entry.of ? "cannot_take_back" : "failed", reason: error.message });
  store.newest = entry;
  beep();
  if (error.kind !== "gone" && !entry.of) store.queue.unshift(...entry.items.slice(0, 1));
  await refill();
  return true;
}

/** Leave images out of an answer about many, which is a new one then. */
function dropFrom(entry, gone) {
  Object.assign(entry, {
    key: random(16), ids: entry.ids.filter((id) => !gone.includes(id)), items: entry.items.filter((one) => !gone.includes(one.id)),
  });
}

async function settleDispute(entry, error) {
  const theirs = error.kind === "taken" ? error.label : error.already;
  const words = error.kind === "taken"
    ? text("taken", { who: error.by || text("somebody"), label: theirs, n: error.seconds })
    : `${text("already", { label: theirs, since: moment(error.since) })} ${text("correct_it")}`;
  const answers = [["keep", text("keep", { label: theirs })]];
  if (entry.label) answers.push(["change", text("change_to", { label: entry.label })]);
  const image = h("img.disputed", { src: `/label/image/${entry.ids[0]}?side=320`, alt: "" });
  if ((await choose(text("question"), words, answers, image)) === "change") {
    Object.assign(entry, { key: random(16), correct: true });
    return true;
  }
  store.outbox.shift();
  store.answered = store.answered.filter((one) => one !== entry);
  store.newest = { ...entry, label: theirs, status: "learned_already", n: error.n ?? countOf(theirs) };
  await refill();
  return true;
}

export const countOf = (name) => store.server?.classes.find((one) => one.name === name)?.count ?? 0;

/** A moment of a journal, as people here write it. */
export function moment(iso) {
  const found = new Date(iso);
  return Number.isNaN(found.getTime()) ? String(iso) : found.toLocaleString(spoken());
}

let audio = null;
function beep() {
  if (!settings.sound || !window.AudioContext) return;
  audio ??= new AudioContext();
  const [tone, volume] = [audio.createOscillator(), audio.createGain()];
  tone.frequency.value = 220;
  volume.gain.value = 0.1;
  tone.connect(volume).connect(audio.destination);
  tone.start();
  tone.stop(audio.currentTime + 0.25);
}

// -------------------------------------------------------------------------------------- events

let polling = null;
function poll(wanted) {
  if (wanted === Boolean(polling)) return;
  if (!wanted) clearInterval(polling);
  polling = wanted ? setInterval(refresh, POLL) : null;
  document.documentElement.dataset.events = wanted ? "polling" : "sent";
}

/** Hear what the server says by itself; ask every 2 s where that does not work. */
export function listen() {
  poll(true);
  setInterval(refresh, HEARTBEAT); // who is not heard of for 60 s loses the images held
  addEventListener("online", refresh);
  addEventListener("offline", disconnected);
  connect();
}

function connect() {
  const source = new EventSource(`/label/events?tab=${tab}`);
  source.addEventListener("open", () => poll(false));
  source.addEventListener("error", () => {
    poll(true);
    // the browser tries again by itself unless the answer was no stream of events
    if (source.readyState === EventSource.CLOSED) setTimeout(connect, HEARTBEAT);
  });
  source.addEventListener("state", (event) => heard(JSON.parse(event.data)));
  source.addEventListener("trouble", refresh);
}

function heard(state) {
  const news = state.digest !== store.server?.digest || store.queue.length < HELD;
  absorb(state);
  changed();
  if (news) refresh();
  else pump();
}

/** Begin: log in, take up what an earlier visit left, ask for images, and listen. */
export async function start() {
  recall();
  await logIn().catch(disconnected);
  await refresh();
  listen();
}
