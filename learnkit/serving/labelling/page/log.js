// The log: what was said when by whom, how to take it back, and what the kinds are.

import { address, choose, confirmed, dialog, find, h, picture, say } from "./dom.js";
import { folded, newKind } from "./kinds.js";
import { absorb, get, moment, post } from "./server.js";
import { changed, keyOf, names, random, store } from "./store.js";
import { text } from "./texts.js";

const COLUMNS = ["time", "who", "picture", "label", "said", "what", "digest"];
const LINES = 200; // fetched at once
const parts = {};
let found = null; // as the server last had it
let asked = "";

export function build() {
  parts.filter = h("input.find", { type: "search", id: "filter", autocomplete: "off", on: { input: renderLines } });
  parts.filterLabel = h("label", { for: "filter" });
  parts.download = h("a.button", { href: "/label/log.csv", download: "label-log.csv" });
  parts.head = h("tr");
  parts.body = h("tbody");
  parts.more = h("button", { type: "button", hidden: true, on: { click: () => load(found.lines.at(-1).line) } });
  parts.note = h("p.hint", { role: "status" });
  parts.facts = h("div.facts");
  find("log").append(
    h("div.lines", {},
      h("div.head", {}, h("div.filter", {}, parts.filterLabel, parts.filter), parts.download),
      h("div.scroll", { tabindex: "0", role: "region" }, h("table", {}, h("thead", {}, parts.head), parts.body)),
      parts.note, parts.more),
    parts.facts);
  relabel();
}

export function relabel() {
  parts.filterLabel.textContent = text("filter");
  parts.download.textContent = text("download");
  parts.more.textContent = text("more_lines");
  find("log").querySelector(".scroll").setAttribute("aria-label", text("log"));
  parts.head.replaceChildren(...COLUMNS.map((name) => h("th", { scope: "col" }, text(name))), h("td"));
  if (found) draw();
}

export const open = () => load();

async function load(before = null) {
  asked = store.server?.digest + JSON.stringify(store.server?.counts);
  let got;
  try {
    got = await get("/label/log", before === null ? { n: LINES } : { n: LINES, before });
  } catch (error) {
    say(parts.note, error.message);
    return;
  }
  if (before !== null) got.lines = [...found.lines, ...got.lines];
  found = got;
  draw();
}

export function render() {
  const now = store.server?.digest + JSON.stringify(store.server?.counts);
  if (store.view === "log" && found && asked !== now && !store.outbox.length) load();
}

export function key(pressed) {
  if (pressed === "/") parts.filter.focus();
}

function draw() {
  renderLines();
  renderFacts();
  parts.more.hidden = !found.more;
}

// -------------------------------------------------------------------------------------- lines

function renderLines() {
  const wanted = folded(parts.filter.value).split(/\s+/).filter(Boolean);
  const fits = (line) => {
    const words = folded([moment(line.t), line.who, ...(line.names || []), line.label, line.was, line.said, what(line), line.reason, line.after].join(" "));
    return wanted.every((one) => words.includes(one));
  };
  const shown = found.lines.filter(fits);
  parts.body.replaceChildren(...shown.map(row));
  say(parts.note, shown.length ? "" : text(found.lines.length ? "no_match" : "no_lines"));
}

function what(line) {
  const done = line.state && (line.do === "label" || line.state === "undone") ? text(`state_${line.state}`) : text(`do_${line.do}`);
  return [done, line.reason, line.blind ? text("blind_mark") : ""].filter(Boolean).join(" · ");
}

function row(line) {
  const many = (line.names || []).length;
  const before = line.was && line.was !== line.label ? `${line.was} → ` : "";
  const said = line.said ? `${line.said}${Number.isFinite(line.p) ? ` ${text("percent", { n: Math.round(100 * line.p) })}` : ""}` : "";
  const undoes = line.do !== "undo" && line.state !== "undone";
  return h("tr", { "data-state": line.state || "", "data-line": line.line },
    h("td", {}, moment(line.t)),
    h("td", { dir: "auto" }, line.who || ""),
    h("td", {}, h("span.shot", {}, line.ids?.length ? picture(line.ids[0]) : null,
      h("span", { dir: "auto" }, many > 1 ? text("pictures", { n: many }) : line.names?.[0] ?? ""))),
    h("td", { dir: "auto" }, before + (line.label ?? "")),
    h("td", { dir: "auto" }, said),
    h("td", {}, what(line)),
    h("td.digest", {}, String(line.after ?? "").slice(0, 8)),
    h("td", {}, undoes ? h("button", { type: "button", on: { click: () => undoFrom(line) } }, text("undo_from")) : null));
}

async function undoFrom({ line }) {
  let would;
  try {
    would = await post("/label/undo", { key: random(16), line, dry: true });
  } catch (error) {
    await choose(text("undo_from"), error.message, [[null, text("close")]]);
    return;
  }
  const lost = Object.entries(would.labels || {}).map(([name, n]) => `${name}: ${n}`).join(", ");
  const sure = await confirmed(
    text("undo_from_title", { n: would.changes }), [text("undo_from_text", { n: would.ids.length }), lost], text("undo_from"));
  if (!sure) return;
  await change("/label/undo", { line });
  store.answered = [];
}

/** Ask the server for a change of the log or of the kinds, and show what it is now. */
async function change(path, fields) {
  try {
    absorb(await post(path, { key: random(16), ...fields }));
  } catch (error) {
    await choose(text("log"), error.message, [[null, text("close")]]);
  }
  await load();
  changed();
}

// -------------------------------------------------------------------------------------- facts

function renderFacts() {
  parts.facts.replaceChildren(kindsTable(), agreement(), list("asked", asked_()), list("unreadable", unreadable()));
}

function section(name, ...children) {
  return h("section.fact", {}, h("h2", {}, text(name)), ...children);
}

function kindsTable() {
  const classes = store.server.classes;
  const rows = classes.map(({ name, count }) => h("tr", {},
    h("th", { scope: "row", dir: "auto" }, keyOf(name) ? h("kbd", {}, keyOf(name)) : null, name),
    h("td.n", {}, String(count)),
    h("td.do", {},
      h("button", { type: "button", "aria-label": `${text("rename")}: ${name}`, on: { click: () => rename(name) } }, text("rename")),
      classes.length > 1 ? h("button", { type: "button", "aria-label": `${text("merge")}: ${name}`, on: { click: () => merge(name, count) } }, text("merge")) : null,
      h("button", { type: "button", "aria-label": `${text("forget")}: ${name}`, on: { click: () => forget(name, count) } }, text("forget")))));
  return section("classes", rows.length
    ? h("table", {}, h("thead", {}, h("tr", {}, h("th", { scope: "col" }, text("label")), h("th", { scope: "col" }, text("images")), h("td"))), h("tbody", {}, rows))
    : h("p", {}, text("no_classes")));
}

function agreement() {
  const { n, agreed, blind_n: blind, blind_agreed: blindAgreed } = found.agreement;
  return section("agreement",
    h("p", {}, n ? text("agreement_text", { n, agreed }) : text("agreement_none")),
    blind ? h("p", {}, text("agreement_blind", { n: blind, agreed: blindAgreed })) : null);
}

const asked_ = () => (found.asked || []).map((one) => h("li", {},
  h("button.alike", { type: "button", on: { click: () => look(one) } }, picture(one.id), h("span", { dir: "auto" }, one.name)),
  one.who ? h("span", { dir: "auto" }, one.who) : null));

const unreadable = () => (found.unreadable || []).map((one) => h("li", { dir: "auto" }, `${one.name}: ${one.why}`));

function list(name, entries) {
  return section(name, entries.length ? h("ul", {}, entries) : h("p", {}, text("nobody")));
}

const look = (one) =>
  choose(one.name, [], [[null, text("close")]], h("img.large", { src: address(one.id, 1600), alt: one.name }));

async function rename(name) {
  const made = await newKind({
    name, title: text("rename_title", { label: name }), create: text("rename"), advice: null,
  });
  if (!made || made.name === name) return;
  await change("/label/class", { rename: name, to: made.name });
}

async function merge(name, n) {
  const into = await dialog(text("merge_title", { label: name }), (finish) => {
    const select = h("select", { id: "into", autofocus: true }, names().filter((one) => one !== name).map((one) => h("option", { value: one }, one)));
    return [
      h("p", {}, text("merge_text", { label: name, n })),
      h("label", { for: "into" }, text("merge_into")), select,
      h("p.answers", {}, h("button.main", { type: "button", on: { click: () => finish(select.value) } }, text("merge")),
        h("button", { type: "button", on: { click: () => finish(null) } }, text("cancel"))),
    ];
  });
  if (into) await change("/label/class", { merge: name, into });
}

async function forget(name, n) {
  const sure = await confirmed(text("forget_title", { label: name }), text("forget_text", { n }), text("forget"));
  if (sure) await change("/label/class", { forget: name });
}
