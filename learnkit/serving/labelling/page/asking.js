// One by one: a picture, the kinds, and the strip that says what became of the last answer.

import { address, choose, find, h, keyed, picture, say } from "./dom.js";
import { Kinds, newKind } from "./kinds.js";
import { answer, broken, countOf, get, pictures, takeBack } from "./server.js";
import { changed, names, settings, stateOf, store } from "./store.js";
import { text } from "./texts.js";
import { Zoom } from "./zoom.js";

const UNSURE = 0.7; // probability below which the model is called unsure
const parts = {};
const heats = new Map(); // id -> its map, or the reason why there is none
let shownId = null;
let heated = false;

export function build() {
  parts.stage = h("div.stage");
  parts.zoom = new Zoom(parts.stage);
  parts.verdict = h("p.verdict", { id: "verdict" });
  parts.heat = keyed("H", text("heat"), toggleHeat, { class: "heat", "aria-pressed": "false" });
  parts.like = h("div.alike");
  parts.below = h("div.below", {}, parts.verdict, parts.heat, parts.like);
  parts.kinds = new Kinds(answerLabel);
  parts.question = h("h2");
  parts.none = h("p.hint", { hidden: true });
  parts.actions = h("div.actions");
  parts.side = h("div.side", {}, parts.question, parts.none, parts.kinds.element, parts.actions);
  parts.empty = h("div.empty", { hidden: true });
  parts.asking = h("div.asking", {}, h("div.view", {}, parts.stage, parts.below), parts.side);
  find("one").append(parts.asking, parts.empty);
  find("undo").addEventListener("click", undo);
  relabel();
}

/** Put the texts of the language of the moment on what stays. */
export function relabel() {
  parts.question.textContent = text("question");
  parts.none.textContent = text("no_classes");
  parts.heat.lastChild.textContent = text("heat");
  parts.actions.replaceChildren(
    keyed("N", text("new_kind"), askNew, { id: "new", class: "new" }),
    keyed("S", text("later"), () => act("skip"), { id: "skip" }),
    keyed("X", text("unusable"), () => act("unusable"), { id: "unusable" }),
    keyed("?", text("ask"), () => act("ask"), { id: "ask" }));
  shownId = null;
}

/** The image on the screen, if its picture is seen and answers are taken. */
function current() {
  const item = store.queue[0];
  if (!item || store.blocked) return null;
  return isSeen(item) ? item : null;
}

const isSeen = (item) => Boolean(pictures.get(item.id)?.complete) || broken.has(item.id);

export function key(pressed) {
  if (store.keys[pressed]) return answerLabel(store.keys[pressed]);
  if (/^[1-9]$/.test(pressed)) return undefined;
  const run = {
    n: askNew, 0: askNew, s: () => act("skip"), ".": () => act("skip"), x: () => act("unusable"),
    "?": () => act("ask"), z: undo, backspace: undo, h: toggleHeat, "/": () => parts.kinds.begin(""),
    "+": () => parts.zoom.by(1.5), "-": () => parts.zoom.by(1 / 1.5), escape: () => parts.zoom.reset(),
  }[pressed];
  if (run) return run();
  return pressed.length === 1 && parts.kinds.begin(pressed);
}

function answerLabel(label, made = {}) {
  const item = current();
  if (!item) return;
  fly();
  answer([item], { label, new: made.new, again: made.again, blind: isHidden(item) });
}

function act(action) {
  const item = current();
  if (!item) return;
  fly();
  answer([item], { action });
}

async function askNew() {
  const item = current();
  if (!item || store.server.lock_classes) return;
  const made = await newKind();
  if (made && store.queue[0]?.id === item.id) answerLabel(made.name, made);
}

export function undo() {
  if (store.blocked) return;
  if (takeBack()) return;
  store.newest = { status: "nothing_to_take_back" };
  changed();
}

function isHidden(item) {
  return settings.hide || Boolean(item.blind);
}

/** The picture goes to the strip, where its name is; nothing moves where the machine says so. */
function fly() {
  const image = pictures.get(shownId);
  if (!image || matchMedia("(prefers-reduced-motion: reduce)").matches || !image.isConnected) return;
  const from = parts.stage.getBoundingClientRect();
  const to = find("strip").getBoundingClientRect();
  const ghost = image.cloneNode();
  ghost.className = "ghost";
  ghost.alt = "";
  const box = image.getBoundingClientRect();
  const scale = Math.min(1, from.width / box.width, from.height / box.height);
  const [width, height] = [box.width * scale, box.height * scale];
  const [x, y] = [from.left + (from.width - width) / 2, from.top + (from.height - height) / 2];
  Object.assign(ghost.style, { left: `${x}px`, top: `${y}px`, width: `${width}px`, height: `${height}px` });
  document.body.append(ghost);
  const small = 44 / Math.max(width, height);
  const end = `translate(${to.left + 30 - x}px, ${to.top + to.height / 2 - y}px) scale(${small})`;
  ghost.animate(
    [{ transform: "none", opacity: 0.9 }, { transform: end, opacity: 0.3 }],
    { duration: 260, easing: "cubic-bezier(.3,.7,.4,1)" },
  ).finished.finally(() => ghost.remove());
}

// --------------------------------------------------------------------------------------- heat

function toggleHeat() {
  heated = !heated;
  parts.heat.setAttribute("aria-pressed", String(heated));
  shownId = null;
  changed();
}

async function fetchHeat(id) {
  heats.set(id, null);
  try {
    heats.set(id, await get(`/label/heat/${id}`));
  } catch (error) {
    heats.set(id, { error: error.message });
  }
  if (store.queue[0]?.id === id) { shownId = null; changed(); }
}

function heatLayer(item) {
  if (!heated) return null;
  if (!heats.has(item.id)) fetchHeat(item.id);
  const found = heats.get(item.id);
  return found?.map ? heatCanvas(found) : null;
}

function heatCanvas({ h: height, w: width, map }) {
  const bytes = Uint8Array.from(atob(map), (one) => one.charCodeAt(0));
  const canvas = h("canvas.heat", { width, height, "aria-hidden": "true" });
  const pixels = new ImageData(width, height);
  bytes.forEach((value, place) => {
    // from clear over yellow to red: what is cold stays as it is
    pixels.data.set([255, 220 - 0.8 * value, 40 - 0.15 * value, 0.75 * value], 4 * place);
  });
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas;
}

// ------------------------------------------------------------------------------------- render

export function render() {
  const item = store.queue[0];
  const isEmpty = stateOf() === "EMPTY" || (!item && store.loaded);
  parts.asking.hidden = isEmpty;
  parts.empty.hidden = !isEmpty;
  if (isEmpty) renderEmpty();
  if (!isEmpty) renderPicture(item);
  renderSide(item);
  renderStrip();
}

function renderPicture(item) {
  const id = item?.id ?? null;
  const mark = item && `${id} ${broken.has(id)} ${isSeen(item)}`;
  if (!item) { parts.stage.replaceChildren(h("p.loading", {}, text("loading"))); shownId = null; return; }
  if (shownId !== id || parts.mark !== mark) showPicture(item);
  parts.mark = mark;
  renderVerdict(item);
}

function showPicture(item) {
  if (shownId !== item.id && parts.lastId !== item.id) parts.zoom.reset();
  shownId = parts.lastId = item.id;
  parts.stage.dataset.id = item.id;
  parts.stage.setAttribute("aria-busy", String(!isSeen(item)));
  if (broken.has(item.id)) {
    parts.stage.replaceChildren(h("p.loading", {}, text("picture_failed")));
    return;
  }
  const image = pictures.get(item.id);
  image.alt = text("picture_of", { name: item.name });
  const heat = heatLayer(item);
  const layers = heat ? [image, heat] : [image];
  parts.stage.replaceChildren(...layers);
  parts.zoom.show(layers, item.w || image.naturalWidth, item.h || image.naturalHeight);
}

function renderVerdict(item) {
  const hidden = isHidden(item);
  const probs = hidden ? null : item.probs;
  const { threshold } = store.server;
  const top = probs?.length ? Math.max(...probs) : 0;
  const kind = hidden ? (settings.hide ? "hidden" : "blind") : item.flagged ? "flagged" : top < UNSURE ? "unsure" : "sure";
  const score = Number.isFinite(item.ood) && Number.isFinite(threshold) && !hidden
    ? text("score_from", { score: item.ood.toPrecision(2), threshold: threshold.toPrecision(2) }) : "";
  const told = heats.get(item.id);
  const heat = !heated || !told ? "" : told.error ? text("heat_none", { error: told.error }) : told.empty ? text("heat_empty", { label: told.of }) : told.of ? text("heat_of", { label: told.of }) : "";
  const now = JSON.stringify([kind, score, heat, item.name, document.documentElement.lang]);
  if (parts.verdict.dataset.now !== now) {
    parts.verdict.dataset.now = now;
    parts.verdict.dataset.kind = kind;
    parts.verdict.replaceChildren(h("strong", {}, text(kind)), score && h("span", {}, score), heat && h("span", {}, heat));
  }
  parts.heat.disabled = hidden;
  renderAlike(hidden ? [] : item.like || []);
}

function renderAlike(like) {
  const now = JSON.stringify([like, document.documentElement.lang]);
  if (parts.like.dataset.now === now) return;
  parts.like.dataset.now = now;
  parts.like.replaceChildren(...(like.length ? [h("span", {}, text("looks_like"))] : []), ...like.map((one) =>
    h("button.alike", { type: "button", on: { click: () => compare(one) } }, picture(one.id), h("span", { dir: "auto" }, one.label))));
}

const compare = (one) =>
  choose(one.label, [], [[null, text("close")]], h("img.large", { src: address(one.id, 1600), alt: one.label }));

function renderSide(item) {
  parts.kinds.update(item && !isHidden(item) ? item.probs : null);
  parts.none.hidden = !store.server || names().length > 0;
  const blocked = !item || Boolean(store.blocked);
  for (const button of parts.side.querySelectorAll("button")) button.disabled = blocked;
  find("new").hidden = Boolean(store.server?.lock_classes);
}

function renderEmpty() {
  const counts = store.server?.counts;
  const now = JSON.stringify([counts, names().length, store.server?.last, document.documentElement.lang]);
  if (parts.empty.dataset.now === now || !counts) return;
  parts.empty.dataset.now = now;
  const id = store.server.last;
  const label = store.answered.at(-1)?.label;
  parts.empty.replaceChildren(
    id ? h("figure", {}, picture(id, "", 640), label ? h("figcaption", { dir: "auto" }, text("last_named", { label })) : null)
      : h("p.done", { "aria-hidden": "true" }, "✓"),
    h("h2", {}, counts.reading ? text("reading", { n: counts.reading }) : text("nothing_waits")),
    h("p", {}, `${text("named_today", { n: counts.done_today })} ${text("knows", { n: names().length })}`),
    h("p.hint", {}, text("stays_open")));
  shownId = null;
}

// -------------------------------------------------------------------------------------- strip

function renderStrip() {
  const entry = store.outbox.at(-1) || store.newest || store.answered.at(-1);
  renderLast(entry);
  say(find("consequence"), entry ? consequence(entry) : "");
  find("undo").disabled = !store.answered.length || Boolean(store.blocked);
  const soon = store.queue.slice(1, 4).map((one) => one.id);
  const next = find("next");
  if (next.dataset.now === soon.join()) return;
  next.dataset.now = soon.join();
  next.replaceChildren(...(soon.length ? [h("span", {}, text("next"))] : []),
    ...soon.map((id) => h("img", { src: address(id, 1600), alt: "", draggable: "false" })));
}

function renderLast(entry) {
  const last = find("last");
  const words = entry ? said(entry) : "";
  const now = JSON.stringify([entry?.ids, entry?.label, entry?.action, words]);
  last.dataset.status = entry?.status || "";
  if (last.dataset.now === now) return;
  last.dataset.now = now;
  const what = entry?.label ?? (entry?.action ? text(`do_${entry.action}`) : "");
  last.replaceChildren(...(entry?.ids ? [
    h("img", { src: address(entry.ids[0], entry.ids.length > 1 ? 320 : 1600), alt: "", draggable: "false" }),
    h("strong", { dir: "auto" }, what),
    h("span.file", { dir: "auto" }, entry.ids.length > 1 ? text("pictures", { n: entry.ids.length }) : entry.items[0]?.name),
  ] : []), h("span.status", {}, words));
}

/** What became of an answer. */
function said(entry) {
  if (entry.status === "moved") return text(`moved_${entry.action}`);
  return text(entry.status, { n: entry.n ?? countOf(entry.label), why: entry.reason ?? "" });
}

/** What follows from an answer: others that are known now, what the model had said. */
function consequence(entry) {
  const found = [];
  if (entry.known > 0) found.push(text("others_known", { n: entry.known }));
  if (entry.suspicion) found.push(text("suspicion", { label: entry.suspicion.label, p: Math.round(100 * entry.suspicion.p) }));
  const item = entry.items?.[0];
  if (entry.label && item?.blind && item.probs?.length && entry.classes && !entry.of) {
    const label = entry.classes[item.probs.indexOf(Math.max(...item.probs))];
    found.push(text(label === entry.label ? "said_too" : "said_other", { label }));
  }
  return found.join(" · ");
}

