// Many at once: a group of pictures that are alike gets one name.

import { find, h, keyed, picture, say } from "./dom.js";
import { Kinds, newKind } from "./kinds.js";
import { answer, get } from "./server.js";
import { changed, set, settings, store } from "./store.js";
import { text } from "./texts.js";
import { undo } from "./asking.js";

const SIZES = ["small", "medium", "large"];
const ENDS = 30; // of a group of more than twice as many: so many of either end are shown, strangers come last
const parts = {};
let groups = null; // as the server last had them
let place = 0; // which of them is shown
let chosen = new Set(); // ids
let anchor = 0; // where a range begins
let asked = "";
let touched = false; // whether someone chose in the group shown

export function build() {
  parts.title = h("h2");
  parts.said = h("p.said");
  parts.sizes = h("div.sizes", { role: "group" });
  parts.hint = h("p.hint");
  parts.tools = h("div.tools");
  parts.tiles = h("div.tiles", { role: "group", on: { keydown: move } });
  parts.chosen = h("h3");
  parts.kinds = new Kinds((label, made = {}) => answerChosen({ label, new: made.new, again: made.again }));
  parts.actions = h("div.actions");
  parts.none = h("p.none");
  parts.group = h("div.group", {},
    h("div.head", {}, h("div", {}, parts.title, parts.said), parts.sizes),
    parts.tools, parts.tiles, parts.hint,
    h("div.side", {}, parts.chosen, parts.kinds.element, parts.actions));
  find("many").append(parts.group, parts.none);
  relabel();
}

export function relabel() {
  parts.sizes.setAttribute("aria-label", text("tile_size"));
  parts.sizes.replaceChildren(h("span", { "aria-hidden": "true" }, text("tile_size")), ...SIZES.map((one) =>
    h("button", { type: "button", "data-size": one, on: { click: () => { set("tile", one); } } }, text(one))));
  parts.hint.textContent = text("group_hint");
  parts.tools.replaceChildren(
    keyed("A", text("all"), all), keyed("I", text("invert"), invert),
    keyed("←", text("previous_group"), () => turn(-1), { id: "previous-group", "aria-label": text("previous_group") }),
    keyed("→", text("next_group"), () => turn(1), { id: "next-group", "aria-label": text("next_group") }));
  parts.actions.replaceChildren(
    keyed("N", text("new_kind"), askNew, { class: "new" }),
    keyed("S", text("later"), () => answerChosen({ action: "skip" })),
    keyed("X", text("unusable"), () => answerChosen({ action: "unusable" })),
    keyed("?", text("ask"), () => answerChosen({ action: "ask" })));
  parts.shown = null;
}

export async function open() {
  groups = null;
  await refresh();
}

async function refresh() {
  asked = version();
  const fields = settings.show ? { view: settings.show } : {};
  try {
    groups = (await get("/label/groups", fields)).groups;
  } catch (error) {
    parts.none.textContent = error.message;
    groups = [];
  }
  place = Math.min(place, Math.max(0, groups.length - 1));
  parts.shown = null;
  changed();
}

const version = () => `${store.server?.digest} ${store.server?.counts.waiting} ${settings.show}`;

function group() {
  return groups?.[place] ?? null;
}

export function render() {
  if (store.view !== "many") return;
  // a group on which someone works is not changed under the hand
  if (groups !== null && asked !== version() && !store.outbox.length && !touched) refresh();
  const one = group();
  parts.group.hidden = !one;
  parts.none.hidden = Boolean(one) || groups === null;
  if (!one) { if (groups && !parts.none.textContent) say(parts.none, text("no_groups")); return; }
  parts.none.textContent = "";
  renderHead(one);
  if (parts.shown !== one) renderTiles(one);
  for (const tile of parts.tiles.children) {
    const ids = tile.dataset.id ? [tile.dataset.id] : between(one).map((item) => item.id);
    tile.setAttribute("aria-pressed", String(ids.every((id) => chosen.has(id))));
  }
  parts.tiles.dataset.size = settings.tile;
  for (const button of parts.sizes.querySelectorAll("button")) button.setAttribute("aria-pressed", String(button.dataset.size === settings.tile));
  say(parts.chosen, chosen.size ? text("chosen", { n: chosen.size }) : text("none_chosen"));
  parts.kinds.update(null);
  const blocked = !chosen.size || Boolean(store.blocked);
  for (const button of parts.group.querySelectorAll(".side button")) button.disabled = blocked;
  parts.actions.querySelector(".new").hidden = Boolean(store.server.lock_classes);
}

function renderHead(one) {
  say(parts.title, text(one.images.length === 1 ? "group_alone" : "group", { i: place + 1, n: groups.length, size: one.images.length }));
  const said = [];
  if (one.label && !settings.hide) said.push(text("group_said", { label: one.label, p: Math.round(100 * one.p) }));
  if (between(one).length) said.push(text("group_shown", { n: ENDS }));
  say(parts.said, said.join(" · "));
  find("previous-group").disabled = place === 0;
  find("next-group").disabled = place >= groups.length - 1;
}

function renderTiles(one) {
  parts.shown = one;
  chosen = new Set(one.left ? [] : one.images.map((item) => item.id)); // who was left out stays out
  touched = false;
  anchor = 0;
  const rest = new Set(between(one));
  const tiles = one.images.flatMap((item, at) => (rest.has(item) ? [] : [h("button.tile", {
    type: "button", "data-id": item.id, "aria-label": item.name, tabindex: at ? "-1" : "0",
    on: { click: (event) => toggle(at, event.shiftKey), focus: (event) => focused(event.target) },
  }, picture(item.id), h("span.mark", { "aria-hidden": "true" }))]));
  if (rest.size) tiles.splice(ENDS, 0, h("button.tile.between", {
    type: "button", tabindex: "-1", on: { click: toggleBetween, focus: (event) => focused(event.target) },
  }, text("between", { n: rest.size }), h("span.mark", { "aria-hidden": "true" })));
  parts.tiles.replaceChildren(...tiles);
}

function focused(tile) {
  for (const one of parts.tiles.children) one.tabIndex = one === tile ? 0 : -1;
}

/** The pictures between the two ends of a large group, which are chosen together. */
const between = (one) => (one.images.length > 2 * ENDS ? one.images.slice(ENDS, -ENDS) : []);

/** In or out; with Shift, all from the last one to this get what the last one got. */
function toggle(at, isRange) {
  const { images } = group();
  const into = isRange ? chosen.has(images[anchor].id) : !chosen.has(images[at].id);
  const [from, to] = isRange ? [Math.min(anchor, at), Math.max(anchor, at)] : [at, at];
  for (const item of images.slice(from, to + 1)) chosen[into ? "add" : "delete"](item.id);
  if (!isRange) anchor = at;
  touched = true;
  changed();
}

function toggleBetween() {
  const ids = between(group()).map((item) => item.id);
  const into = !ids.every((id) => chosen.has(id));
  for (const id of ids) chosen[into ? "add" : "delete"](id);
  touched = true;
  changed();
}

function all() {
  touched = true;
  chosen = new Set(group().images.map((one) => one.id));
  changed();
}

function invert() {
  touched = true;
  chosen = new Set(group().images.map((one) => one.id).filter((id) => !chosen.has(id)));
  changed();
}

function turn(by) {
  if (!groups) return;
  place = Math.min(Math.max(0, place + by), groups.length - 1);
  changed();
}

/** Arrows go from tile to tile. */
function move(event) {
  const tiles = [...parts.tiles.children];
  const at = tiles.indexOf(document.activeElement);
  const across = tiles.filter((one) => one.offsetTop === tiles[0].offsetTop).length;
  const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -across, ArrowDown: across }[event.key];
  if (at < 0 || !by) return;
  event.preventDefault();
  event.stopPropagation();
  tiles[at + by]?.focus();
}

function answerChosen(said) {
  const one = group();
  if (!one || !chosen.size || store.blocked) return;
  const items = one.images.filter((item) => chosen.has(item.id));
  one.images = one.images.filter((item) => !chosen.has(item.id));
  one.left = true;
  if (!one.images.length) groups.splice(place, 1);
  place = Math.min(place, Math.max(0, groups.length - 1));
  parts.shown = null;
  answer(items, { ...said, blind: settings.hide });
}

async function askNew() {
  if (!chosen.size || store.blocked || store.server.lock_classes) return;
  const made = await newKind({ create: text("create_many") });
  if (made) answerChosen({ label: made.name, new: made.new, again: made.again });
}

export function key(pressed) {
  if (store.keys[pressed] && group()) return answerChosen({ label: store.keys[pressed] });
  if (/^[1-9]$/.test(pressed) || !group()) return ["z", "backspace"].includes(pressed) ? undo() : undefined;
  const run = {
    n: askNew, 0: askNew, a: all, i: invert, s: () => answerChosen({ action: "skip" }), ".": () => answerChosen({ action: "skip" }),
    x: () => answerChosen({ action: "unusable" }), "?": () => answerChosen({ action: "ask" }), z: undo, backspace: undo,
    arrowleft: () => turn(-1), arrowright: () => turn(1), "/": () => parts.kinds.begin(""),
  }[pressed];
  if (run) return run();
  return pressed.length === 1 && parts.kinds.begin(pressed);
}
