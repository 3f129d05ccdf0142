// The labelling page: tabs, keys, settings, and what every change draws anew.

import * as asking from "./asking.js";
import * as log from "./log.js";
import * as many from "./many.js";
import { dialog, find, h, hasDialog, picture, say } from "./dom.js";
import { goOn, refill, start } from "./server.js";
import { changed, set, settings, stateOf, store, whenChanged } from "./store.js";
import { TEXTS, speak, text } from "./texts.js";

const VIEWS = { one: asking, many, log };

// ---------------------------------------------------------------------------------------- tabs

function open(view) {
  store.view = view;
  for (const name of Object.keys(VIEWS)) {
    find(name).hidden = name !== view;
    find(`tab-${name}`).setAttribute("aria-selected", String(name === view));
    find(`tab-${name}`).tabIndex = name === view ? 0 : -1;
  }
  VIEWS[view].open?.();
  changed();
}

function turnTabs(event) {
  const order = Object.keys(VIEWS);
  const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (!by) return;
  event.preventDefault();
  event.stopPropagation();
  const next = order[(order.indexOf(store.view) + by + order.length) % order.length];
  open(next);
  find(`tab-${next}`).focus();
}

// ---------------------------------------------------------------------------------------- keys

/** What is meant by a key: a digit wherever it lies, a letter, a sign. */
function meaning(event) {
  const pad = /^Numpad([0-9])$/.exec(event.code);
  const top = /^Digit([0-9])$/.exec(event.code);
  if (pad) return pad[1];
  if (event.code === "NumpadDecimal") return ".";
  if (top && !event.shiftKey) return top[1]; // in French the row of digits needs Shift
  return event.key.toLowerCase();
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || hasDialog()) return;
  if (event.target.closest("input, select, textarea")) return;
  const key = meaning(event);
  if (event.repeat && !["+", "-"].includes(key)) return; // a key held down names one picture
  if ([" ", "enter", "tab"].includes(key)) return; // those of the element that has the focus
  // else a sign would be typed on, into the dialog or the field that it opens
  if (key.length === 1 || key === "backspace") event.preventDefault();
  VIEWS[store.view].key(key);
}

// ------------------------------------------------------------------------------------ settings

function askSettings() {
  return dialog(text("settings"), (finish) => {
    const chooser = (id, label, options, run) => [
      h("label", { for: id }, text(label)),
      h("select", { id, on: { change: (event) => run(event.target.value) } },
        options.map(([value, words, isNow]) => h("option", { value, selected: isNow }, words))),
    ];
    const check = (id, label) => h("label.check", {},
      h("input", { type: "checkbox", id, checked: settings[id], on: { change: (event) => set(id, event.target.checked) } }),
      h("span", {}, text(label)));
    const name = h("input", { id: "name", value: settings.who, maxlength: "40", autocomplete: "off", on: { input: () => set("who", name.value.trim()) } });
    const leave = () => { finish(true); askSettings(); };
    return [
      ...(store.server?.names === false ? [] : [h("label", { for: "name" }, text("your_name")), name]),
      ...chooser("show", "show", ["unknown", "unsure", "all"].map((one) => [one, text(`show_${one}`), one === (settings.show || store.server?.show)]),
        (value) => { set("show", value); refill(); }),
      ...chooser("language", "language_label", Object.entries(TEXTS).map(([code, table]) => [code, table.language, code === document.documentElement.lang]),
        (value) => { set("language", value); relabel(); leave(); }),
      ...chooser("theme", "theme", ["auto", "light", "dark"].map((one) => [one, text(`theme_${one}`), one === settings.theme]),
        (value) => set("theme", value)),
      check("hide", "hide_opinion"),
      check("sound", "sound"),
      h("h3", {}, text("keys")),
      h("p.hint", {}, text("keys_text")),
      h("p.hint", {}, text("keys_find")),
      h("p.answers", {}, h("button.main", { type: "button", on: { click: () => finish(true) } }, text("close"))),
    ];
  });
}

// -------------------------------------------------------------------------------------- render

function relabel() {
  speak([settings.language, ...navigator.languages]);
  document.title = text("title");
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-name]")) element.setAttribute("aria-label", text(element.dataset.name));
  for (const view of Object.values(VIEWS)) view.relabel();
  changed();
}

function renderHead() {
  const counts = store.server?.counts;
  say(find("model"), store.server?.model ?? "");
  say(find("waiting"), counts ? text("waiting", { n: counts.waiting }) : "");
  say(find("done"), counts ? text("done", { n: counts.done_today }) : "");
  say(find("who"), settings.who || text("anonymous"));
  find("settings").setAttribute("aria-label", `${settings.who || text("anonymous")}, ${text("settings")}`);
}

/** A note of the server in the language of the page. */
function noted({ kind, text: words, like = [] }) {
  if (kind === "drift") return text("note_drift");
  return kind === "mixed" && like.length > 1 ? text("note_mixed", { label: like[0].label, said: like[1].label }) : words;
}

/** The bars above the picture: what is wrong, and what is worth knowing. */
function renderBars() {
  const bars = [];
  const n = store.outbox.length;
  if (store.blocked) bars.push(["trouble", text("trouble", { why: store.blocked }), []]);
  else if (store.offline) bars.push(["offline", n ? text("offline_waiting", { n }) : text("offline"), []]);
  for (const note of store.server?.notes || []) bars.push(["note", noted(note), note.like || []]);
  const now = JSON.stringify([bars, document.documentElement.lang]);
  const element = find("bars");
  if (element.dataset.now === now) return;
  element.dataset.now = now;
  element.replaceChildren(...bars.map(([kind, words, like]) => h(`div.bar.${kind}`, {},
    h("span", {}, words), ...like.map((one) => picture(one.id, one.label)),
    kind === "note" ? null : h("button", { type: "button", on: { click: goOn } }, text("try_again")))));
}

function render() {
  const page = document.documentElement;
  page.dataset.state = stateOf();
  page.dataset.theme = settings.theme;
  page.dataset.view = store.view;
  renderHead();
  renderBars();
  asking.render();
  many.render();
  log.render();
}

speak([settings.language, ...navigator.languages]);
for (const view of Object.values(VIEWS)) view.build();
for (const name of Object.keys(VIEWS)) find(`tab-${name}`).addEventListener("click", () => open(name));
document.querySelector("nav").addEventListener("keydown", turnTabs);
find("settings").addEventListener("click", askSettings);
document.addEventListener("keydown", pressed);
whenChanged(render);
relabel();
start();
