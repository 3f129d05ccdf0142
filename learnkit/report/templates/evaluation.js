(() => {
"use strict";
const $ = (s, root = document) => root.querySelector(s), $$ = (s, root = document) => [...root.querySelectorAll(s)];
const D = JSON.parse($("#data").textContent);
const I = D.images || [], C = D.classes.map(c => c.name), N = I.length, PAGE = 24;
const THUMBS = D.thumbs || [], BIGS = D.bigs || [], MULTI = !!D.multi_label;
// What follows from a row is not in the file
if (!MULTI) for (const x of I) if (!x.o) {
  x.pa ??= x.t?.find(r => r[0] === x.a)?.[1];
  if (x.pa != null) x.l ??= +(-Math.log(Math.max(x.pa, 1.19e-7))).toPrecision(4);
}
const hex = text => Array.from(atob(text || ""), c => c.charCodeAt(0).toString(16).padStart(2, "0")).join("");
// Only text and properties reach the page: no name is ever markup
function el(tag, props, ...kids) {
  const e = document.createElement(tag);
  for (const [k, v] of Object.entries(props || {})) k in e ? e[k] = v : e.setAttribute(k, v);
  e.append(...kids.filter(k => k != null && k !== ""));
  return e;
}
// Characters that turn a line around could show another name
const plain = text => String(text).replace(/(?![\u00ad\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, "\ufffd"), bdi = text => el("bdi", {textContent: plain(text)}), span = (className, ...kids) => el("span", {className}, ...kids);
const on = (e, what, then) => e.addEventListener(what, then), box = e => e.getBoundingClientRect();
const press = (b, on) => b.setAttribute("aria-pressed", on), pick = (all, b) => $$(all).forEach(one => press(one, one === b)), count = n => n.toLocaleString("en");
const many = (n, one) => `${count(n)} ${one}${n === 1 ? "" : "s"}`;
const percent = p => p == null ? "–" : p > .9995 && p < 1 ? "99.9 %" : `${+(100 * p).toFixed(p < .1 || p > .995 ? 1 : 0)} %`;
const digits = x => x == null ? "–" : String(+x.toPrecision(3));
const actual = i => I[i].a ?? -1, said = i => I[i].y ?? -1, sure = i => I[i].t?.[0]?.[1] ?? null;
const list = v => Array.isArray(v) ? v : v < 0 ? [] : [v];
const words = (v, by = ", ") => list(v).map(k => C[k]).join(by), names = v => words(v, ";");
const has = (v, k) => Array.isArray(v) ? v.includes(k) : v === k;
const same = (v, w) => MULTI ? list(v).length === list(w).length && list(v).every(k => list(w).includes(k)) : v === w;
const good = k => !!(D.classes[k] && D.classes[k].good);
const scored = i => I[i].y != null && I[i].y !== -1 || MULTI;
const wrong = i => !I[i].o && scored(i) && !same(actual(i), said(i));
const suspicion = i => I[i].w || 0, group = i => I[i].d ?? -1;
const SETS = {
  errors: ["Mistakes", wrong], flagged: ["Flagged as unknown", i => !!I[i].u], missed: ["Unknown images that went unnoticed", i => I[i].o && !I[i].u],
  escapes: ["Defects passed as good", i => !I[i].o && !good(actual(i)) && good(said(i)) && !I[i].u],
  rejects: ["Good parts rejected", i => !I[i].o && good(actual(i)) && (!good(said(i)) || !!I[i].u)],
  suspects: ["Suspect labels", i => suspicion(i) > 0], learned: ["Images the model has learned", i => !!I[i].k],
  duplicates: ["Duplicates", i => group(i) >= 0], strange: ["Unknown images", i => !!I[i].o]};
const LABEL = {tp: ["there, found", true, true], fn: ["there, missed", true, false], fp: ["not there, said", false, true], tn: ["not there, not said", false, false]};

// orders and filters
const KEYS = {
  loss: i => (wrong(i) ? -1e9 : I[i].o && !I[i].u ? -1e6 : 0) - (I[i].l ?? -1),
  sure: i => sure(i) ?? 2, odd: i => -(I[i].s ?? -1e9), name: null};
const orders = {};
function order(by) {
  if (orders[by]) return orders[by];
  const found = Uint32Array.from({length: N}, (_, i) => i);
  if (by === "name") found.sort((i, j) => I[i].p < I[j].p ? -1 : I[i].p > I[j].p ? 1 : i - j);
  else { const v = Float64Array.from({length: N}, (_, i) => KEYS[by](i)); found.sort((i, j) => v[i] - v[j] || i - j); }
  return orders[by] = found;
}
const nWrong = I.filter((_, i) => wrong(i)).length;
const FIRST = nWrong || MULTI ? "loss" : "sure";
function parse(hash) {
  const f = {sort: FIRST, q: "", kind: "", value: "", open: -1};
  for (const [k, v] of new URLSearchParams(hash.replace(/^#/, ""))) {
    if (k === "sort" && k in f && v in KEYS) f.sort = v;
    else if (k === "q") f.q = v;
    else if (k === "open" && I[+v]) f.open = +v;
    else if (["cell", "class", "taken", "set", "label"].includes(k) && test(k, v)) { f.kind = k; f.value = v; }
  }
  return f;
}
function test(kind, value) {
  const [a, y] = value.split(".").map(Number);
  if (kind === "set") return SETS[value]?.[1];
  if (kind === "label") {
    const how = LABEL[value.split(".")[1]];
    return how && C[a] != null && (i => has(actual(i), a) === how[1] && has(said(i), a) === how[2]);
  }
  if (C[a] == null) return null;
  if (kind === "class") return i => has(actual(i), a);
  if (kind === "taken") return i => !I[i].o && has(said(i), a);
  return C[y] != null && (i => actual(i) === a && said(i) === y && !I[i].o);
}
function selected(f) {
  const fits = f.kind ? test(f.kind, f.value) : null, q = f.q.toLowerCase(), found = [];
  for (const i of order(f.sort)) if ((!fits || fits(i)) && (!q || I[i].p.toLowerCase().includes(q))) found.push(i);
  return found;
}
function titled(f) {
  const [a, y] = f.value.split(".").map(Number);
  if (f.kind === "set") return [SETS[f.value][0]];
  if (f.kind === "class") return ["All of ", bdi(C[a])];
  if (f.kind === "taken") return ["All taken for ", bdi(C[a])];
  if (f.kind === "label") return [bdi(C[a]), ": ", LABEL[f.value.split(".")[1]][0]];
  if (f.kind === "cell") return a === y ? [bdi(C[a]), ", found"] : [bdi(C[a]), " taken for ", bdi(C[y])];
  return [f.q ? "Pictures named so" : "Pictures"];
}
function fragment(f) {
  return "#" + [f.kind && `${f.kind}=${f.value}`, f.q && `q=${encodeURIComponent(f.q)}`, f.sort !== FIRST && `sort=${f.sort}`, f.open >= 0 && `open=${f.open}`].filter(Boolean).join("&");
}

// pictures
const COLOURS = [[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]];
function heatValues(i, which) {
  const text = I[i][which];
  return text == null ? null : Uint8Array.from(atob(text), c => c.charCodeAt(0));
}
const heatClass = (i, which) => words(MULTI ? I[i].hc[+(which === "ha")] : which === "h" ? said(i) : actual(i));
function drawHeat(canvas, img, i, which, opacity) {
  const values = heatValues(i, which), size = I[i].hs;
  canvas.hidden = true;
  if (!values || !size || !img.naturalWidth) return;
  const small = el("canvas", {width: size[1], height: size[0]}), pixels = new ImageData(size[1], size[0]);
  values.forEach((v, k) => {
    const at = v / 255 * (COLOURS.length - 1), lo = Math.min(Math.floor(at), COLOURS.length - 2), part = at - lo;
    for (let c = 0; c < 3; c++) pixels.data[4 * k + c] = COLOURS[lo][c] * (1 - part) + COLOURS[lo + 1][c] * part;
    pixels.data[4 * k + 3] = 255 * opacity * Math.sqrt(v / 255);
  });
  small.getContext("2d").putImageData(pixels, 0, 0);
  // the map lies on the part that the network saw
  const here = box(img), around = box(canvas.parentNode);
  const scale = Math.min(here.width / img.naturalWidth, here.height / img.naturalHeight);
  const w = img.naturalWidth * scale, h = img.naturalHeight * scale, part = I[i].hb || [0, 0, 1, 1];
  const wide = (part[2] - part[0]) * w, high = (part[3] - part[1]) * h, px = v => `${v}px`;
  Object.assign(canvas.style, {left: px(here.left - around.left + (here.width - w) / 2 + part[0] * w), top: px(here.top - around.top + (here.height - h) / 2 + part[1] * h), width: px(wide), height: px(high)});
  canvas.width = Math.max(1, wide); canvas.height = Math.max(1, high);
  const ink = canvas.getContext("2d");
  ink.imageSmoothingQuality = "high";
  ink.drawImage(small, 0, 0, canvas.width, canvas.height);
  canvas.hidden = false;
  return values;
}
function frame(i) {
  const src = THUMBS[I[i].th ?? -1];
  return span("frame", src ? el("img", {src, alt: "", decoding: "async"}) : span("left-out", "picture left out (--max-mb)"));
}
function caption(i) {
  const parts = span("clip");
  if (I[i].o) parts.append("unknown", scored(i) ? " → " : "", bdi(words(said(i))));
  else if (wrong(i)) parts.append(bdi(words(actual(i)) || "nothing"), " → ", bdi(words(said(i)) || "nothing"));
  else parts.append(bdi(words(actual(i)) || "nothing"), scored(i) && list(actual(i)).length ? ", right" : "");
  const out = span("caption", parts);
  if (sure(i) != null) out.append(el("b", {textContent: percent(sure(i))}));
  for (const [shown, text] of [[I[i].u, "flagged"], [I[i].k, "learned"], [group(i) >= 0, "duplicate"]]) if (shown) out.append(" ", span("chip", text));
  out.append(el("span", {className: "file", title: I[i].p}, bdi(I[i].p.split("/").pop())));
  return out;
}
const gallery = $("#pictures"), title = $("#gallery-title");
let now = parse(""), chosen = [], drawn = 0, heatOn = false, source = null, pushed = false;
function card(i) {
  return el("li", {}, el("button", {className: "picture" + (marks[I[i].p] ? " marked" : ""), tabIndex: -1, "data-i": i}, frame(i), caption(i)));
}
function cardHeat(b) {
  $("canvas", b)?.remove();
  const i = +b.dataset.i, img = $("img", b);
  if (!heatOn || !I[i].hs || !img) return;
  const canvas = el("canvas", {hidden: true});
  $(".frame", b).append(canvas);
  img.decode().then(() => drawHeat(canvas, img, i, I[i].h == null ? "ha" : "h", .6)).catch(() => canvas.remove());
}
function draw(n) {
  const from = drawn;
  drawn = Math.min(n, chosen.length);
  const more = chosen.slice(from, drawn).map(card);
  gallery.append(...more);
  if (heatOn) more.forEach(li => cardHeat(li.firstChild));
  if (!from && more.length) more[0].firstChild.tabIndex = 0;
  $("#shown").textContent = chosen.length ? `1–${count(drawn)} of ${count(chosen.length)}` : "none";
  $("#more").hidden = drawn >= chosen.length;
}
function show(f) {
  const before = now;
  now = f;
  if (fragment({...before, open: -1}) !== fragment({...f, open: -1}) || !drawn) {
    chosen = selected(f);
    gallery.replaceChildren();
    drawn = 0;
    draw(PAGE);
    title.replaceChildren(...titled(f), span("count", ` (${count(chosen.length)})`));
    $("#clear").hidden = !f.kind && !f.q;
    $("#none-wrong").hidden = nWrong > 0 || !!f.kind || MULTI;
    $("#sort").value = f.sort;
    if ($("#search") !== document.activeElement) $("#search").value = f.q;
    for (const b of $$("[data-f]")) b.setAttribute("aria-current", b.dataset.f === `${f.kind}=${f.value}`);
  }
  if (f.open >= 0) openPicture(f.open); else if (overlay.open) overlay.close();
}
// A filter and an opened picture are steps that Back takes; typing, sorting and neighbours are not
function go(changes, step = false) {
  const f = {...now, ...changes}, to = fragment(f);
  if (to !== fragment(now)) history[step ? "pushState" : "replaceState"](null, "", to);
  show(f);
}
const filterBy = text => { const [kind, value] = text.split("="); return {kind, value, q: "", open: -1}; };
function choose(text, button, byKey) {
  source = button;
  go(filterBy(text), true);
  if (byKey && gallery.firstChild) gallery.firstChild.firstChild.focus();
  const {top} = box($("#gallery"));
  if (top < 0 || top > innerHeight * .7) $("#gallery").scrollIntoView({block: "start"});
}

// the opened picture
const overlay = $("#overlay"), big = $("#big"), canvas = $("#big-heat");
let opened = -1, heat = "", keyed = [], can = {};
const anyHeat = () => can.h ? "h" : can.ha ? "ha" : "";
function openPicture(i) {
  opened = i;
  const image = I[i], src = BIGS[image.big ?? -1] || THUMBS[image.th ?? -1];
  $("#overlay-name").replaceChildren(bdi(image.p));
  big.hidden = !src; $("#big-none").hidden = !!src;
  if (src) big.src = src; else big.removeAttribute("src");
  big.alt = src ? `Picture ${image.p}` : "";
  const facts = [["actual", image.o ? "none: an unknown image" : words(actual(i)) || "nothing"], ["predicted", scored(i) ? `${words(said(i)) || "nothing"} ${sure(i) == null || MULTI ? "" : percent(sure(i))}` : "–"]];
  if (image.s != null) { const t = D.ood?.threshold; facts.push(["unusual?", `${image.u ? "yes" : "no"}: ${digits(image.s)}${t == null ? "" : ` of ${digits(t)}`}`]); }
  if (image.k) facts.push(["learned", "the model has learned this image"]);
  $("#overlay-facts").replaceChildren(...facts.flatMap(([k, v]) => [el("dt", {textContent: k}), el("dd", {}, bdi(v))]));
  const rows = [...image.t || []];
  if (!MULTI && !image.o && actual(i) >= 0 && image.pa != null && !rows.some(r => r[0] === actual(i))) rows.push([actual(i), image.pa]);
  // of few classes each has its key, of many those shown
  keyed = MULTI ? [] : C.length <= 9 ? C.map((_, k) => k) : rows.map(r => r[0]);
  $("#overlay-classes").replaceChildren($("#overlay-classes caption"), ...rows.map(([k, p]) => {
    const key = keyed.indexOf(k);
    return el("tr", {}, el("th", {scope: "row"}, key >= 0 && key < 9 ? el("kbd", {textContent: key + 1}) : "", " ", bdi(C[k])), el("td", {}, el("progress", {value: p, "aria-hidden": true})), el("td", {textContent: percent(p)}));
  }));
  can = {h: image.h != null, ha: image.ha != null && (MULTI || !same(actual(i), said(i)))};
  $("#heat-tools").hidden = !can.h && !can.ha;
  for (const b of $$("[data-heat]")) {
    const which = b.dataset.heat;
    if (which && !(b.hidden = !can[which])) b.textContent = `why ${heatClass(i, which)}`;
  }
  if (heat && !can[heat]) heat = anyHeat();
  const alike = image.m || [];
  $("#alike").hidden = !alike.length;
  $("#alike ul").replaceChildren(...alike.map(([c, s, k]) => {
    const x = D.kin?.[k], src = x && THUMBS[x.th ?? -1];
    return el("li", {title: x?.p ?? ""}, src && el("img", {src, alt: ""}), bdi(C[c] ?? c), span("count", ` ${s.toFixed(2)}`));
  }));
  const here = chosen.indexOf(i);
  $("#previous").disabled = here <= 0; $("#next").disabled = here < 0 || here >= chosen.length - 1;
  markTools();
  if (!overlay.open) { overlay.showModal(); overlay.focus(); }
  showHeat();
}
function showHeat() {
  for (const b of $$("[data-heat]")) press(b, b.dataset.heat === heat);
  const note = $("#heat-note"), i = opened;
  note.hidden = true; canvas.hidden = true;
  if (!heat || i < 0) return;
  if (!heatValues(i, heat)?.some(v => v)) { note.hidden = false; note.replaceChildren("no part of the picture speaks for ", bdi(heatClass(i, heat))); }
  else if (big.src) big.decode().then(() => i === opened && drawHeat(canvas, big, i, heat, $("#opacity").value / 100)).catch(() => {});
}
function step(by) {
  const at = chosen.indexOf(opened) + by;
  if (opened >= 0 && chosen[at] != null) go({open: chosen[at]});
}
on(overlay, "close", () => {
  const i = opened;
  opened = -1;
  if (now.open >= 0) { if (pushed) history.back(); else go({open: -1}); now = {...now, open: -1}; }
  pushed = false;
  const at = chosen.indexOf(i);
  if (at >= drawn) draw(Math.ceil((at + 1) / PAGE) * PAGE);
  if (at >= 0 && gallery.contains(before)) focusCard(at);
  else before?.focus();
});
let before = null;
function open(i, from) {
  before = from;
  pushed = true;
  go({open: i}, true);
}

// marks
const KEY = `learnkit:${D.data.fingerprint}`;
let marks = {}, kept = true;
try { marks = JSON.parse(localStorage.getItem(KEY) || "{}"); localStorage.setItem(KEY, JSON.stringify(marks)); } catch { kept = false; marks = {}; }
$("#memory-only")?.toggleAttribute("hidden", kept);
function mark(i, action, to = "") {
  const p = I[i].p;
  if (!action) delete marks[p];
  else marks[p] = {sha: hex(I[i].sha), old: names(actual(i)), to, action, at: new Date().toISOString().slice(0, 19) + "Z"};
  if (kept) try { localStorage.setItem(KEY, JSON.stringify(marks)); } catch { kept = false; $("#memory-only")?.removeAttribute("hidden"); }
  marked();
}
const markable = i => scored(i) || list(actual(i)).length > 0;
function marked() {
  for (const b of $$(".picture,.thumb")) b.classList.toggle("marked", !!marks[I[+b.dataset.i].p]);
  for (const f of $$("fieldset[data-i]")) readMark(f);
  for (const b of $$("button[data-drop]")) press(b, marks[I[+b.dataset.drop].p]?.action === "drop");
  const n = Object.keys(marks).length;
  if ($("#n-marks")) { $("#n-marks").textContent = n; $("#download-marks").disabled = !n; $("#suspects").hidden = !suspects.length && !n && D.kind !== "cleaning"; }
  if (opened >= 0) markTools();
}
function option(i) {
  return el("select", {"aria-label": `Another class for ${I[i].p}`}, el("option", {value: "", textContent: "other …"}), ...C.map((c, k) => el("option", {value: k, textContent: plain(c)})));
}
function markTools() {
  const i = opened, tools = $("#mark-tools"), m = marks[I[i].p], note = $("#mark-note");
  note.textContent = !m ? "" : m.action === "drop" ? "marked: bad, to be dropped" : `marked: is ${plain(m.to)}`;
  // what has the focus stays
  if (tools.dataset.i === String(i)) { $("[data-unmark]", tools).disabled = !m; return; }
  tools.dataset.i = i;
  tools.replaceChildren("mark: ");
  if (!markable(i)) { note.textContent = ""; tools.replaceChildren(); return; }
  if (!MULTI) {
    const y = said(i);
    if (y >= 0 && y !== actual(i)) tools.append(el("button", {onclick: () => mark(i, "relabel", C[y])}, "is ", bdi(C[y])));
    const s = option(i);
    on(s, "change", () => mark(i, s.value && "relabel", C[s.value]));
    tools.append(s);
  }
  const undo = el("button", {disabled: !m, "data-unmark": "", onclick: () => mark(i, "")}, el("kbd", {textContent: "u"}), " unmark");
  tools.append(el("button", {onclick: () => mark(i, "drop")}, el("kbd", {textContent: "b"}), " bad"), undo);
}
const suspects = [...I.keys()].filter(i => suspicion(i) > 0);
suspects.sort((i, j) => suspicion(j) - suspicion(i) || i - j);
suspects.splice(200);
const thumb = i => el("button", {className: "thumb", "data-i": i, "aria-label": `Open ${I[i].p}`}, frame(i));
function suspectRow(i) {
  const y = said(i), id = `s${i}`;
  const field = el("fieldset", {"data-i": i}, el("legend", {}, ...(I[i].wt ? [bdi(I[i].wt)] : ["says ", bdi(words(actual(i))), ", looks like ", bdi(words(y)), " ", percent(sure(i))]), el("br"), span("hint", bdi(I[i].p))));
  const radio = (value, ...text) => el("label", {}, el("input", {type: "radio", name: id, value}), ...text);
  field.append(radio("", "keep"));
  if (!MULTI) {
    field.append(radio("y", el("span", {}, "is ", bdi(words(y)))));
    const s = option(i);
    field.append(el("label", {}, el("input", {type: "radio", name: id, value: "o"}), s));
    on(s, "change", () => mark(i, s.value && "relabel", C[s.value]));
  }
  field.append(radio("b", "bad"));
  on(field, "change", e => {
    const v = e.target.value;
    if (e.target.type !== "radio") return;
    if (v === "o") $("select", field).focus(); else mark(i, {y: "relabel", b: "drop"}[v], v === "y" ? words(y) : "");
  });
  readMark(field);
  return el("li", {className: "suspect"}, thumb(i), field);
}
function readMark(field) {
  const i = +field.dataset.i, m = marks[I[i].p], s = $("select", field);
  const v = !m ? "" : m.action === "drop" ? "b" : m.to === words(said(i)) ? "y" : "o";
  const r = $$("input", field).find(r => r.value === v);
  if (r && (v || document.activeElement !== s)) r.checked = true;
  if (s) s.value = v === "o" ? C.indexOf(m.to) : "";
}
function moreSuspects() {
  const rows = $("#suspect-list"), n = rows.children.length;
  rows.append(...suspects.slice(n, n + PAGE).map(suspectRow));
  $("#more-suspects").hidden = n + PAGE >= suspects.length;
}
// No cell begins a formula: `clean --apply` takes the apostrophe off
const csvCell = v => { const t = String(v ?? ""), safe = /^[=+\-@\t\r]/.test(t) ? "'" + t : t; return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe; };
const csvLine = cells => cells.join(",") + "\n", number = v => v == null ? "" : v;
function download(name, text) {
  const url = URL.createObjectURL(new Blob([text], {type: "text/csv;charset=utf-8"}));
  el("a", {href: url, download: name}).click();
  setTimeout(() => URL.revokeObjectURL(url), 60000);
}
function marksCsv() {
  return csvLine(["path", "sha256", "old", "new", "action", "marked_at"]) + Object.keys(marks).sort().map(p => { const m = marks[p]; return csvLine([p, m.sha, m.old, m.to, m.action, m.at].map(csvCell)); }).join("");
}
function selectionCsv() {
  return csvLine(["path", "actual", "predicted", "confidence", "loss", "ood_score", "flagged"]) + chosen.map(i =>
    [csvCell(I[i].p), csvCell(names(actual(i))), csvCell(names(said(i))), number(sure(i)), number(I[i].l), number(I[i].s), I[i].u ? "true" : "false"].join(",") + "\n").join("");
}
let toastTimer = 0;
function toast(text) {
  $("#toast").textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => $("#toast").textContent = "", 3000);
}
function copy(text, what) {
  navigator.clipboard.writeText(text).then(() => toast(`${what} copied`), () => toast("this browser does not let pages copy"));
}

// tables, charts
function sortTable(table, th) {
  const heads = $$("thead th", table), at = heads.indexOf(th), body = table.tBodies[0];
  // names begin at A, numbers with the largest
  const ways = at ? ["descending", "ascending"] : ["ascending", "descending"], how = ways[+(th.getAttribute("aria-sort") === ways[0])], sign = how === "ascending" ? 1 : -1;
  const value = row => { const c = row.cells[at]; return c.dataset.v == null ? c.textContent.trim() : +c.dataset.v; };
  heads.forEach(h => h.setAttribute("aria-sort", h === th ? how : "none"));
  body.append(...[...body.rows].map(row => [value(row), row]).sort(([a], [b]) => sign * (a < b ? -1 : a > b ? 1 : 0)).map(r => r[1]));
}
for (const th of $$("[data-column]")) th.replaceChildren(el("button", {textContent: th.textContent, onclick: () => sortTable(th.closest("table"), th)}));
const matrix = $(".matrix");
function orderMatrix(how) {
  const n = matrix.tBodies[0].rows.length, to = how === "name" ? [...Array(n).keys()] : matrix.dataset[how].split(" ").map(Number);
  if (how === "name") to.sort((a, b) => shownClass(a) - shownClass(b));
  for (const row of matrix.rows) {
    const cells = {}, last = row.lastElementChild;
    for (const c of row.cells) if (c.dataset.c != null) cells[c.dataset.c] = c;
    for (const k of to) last.before(cells[k]);
  }
  const rows = {};
  for (const r of matrix.tBodies[0].rows) rows[r.dataset.c] = r;
  matrix.tBodies[0].append(...to.map(k => rows[k]));
}
const shownClass = c => +$(`tbody tr[data-c="${c}"] th button`, matrix).dataset.f.split("=")[1];
function onlyMistakes(on) {
  press($("#only-mistakes"), on);
  for (const r of $$("tbody tr", matrix)) {
    const c = r.dataset.c, faulty = $(".wrong", r) || $(`tbody td[data-c="${c}"] .wrong`, matrix);
    r.hidden = on && !faulty;
    for (const cell of $$(`thead [data-c="${c}"],td[data-c="${c}"]`, matrix)) cell.hidden = on && !faulty;
  }
}
const sorted = strange => Float64Array.from(I.filter(x => x.s != null && !!x.o === strange), x => x.s).sort();
function above(scores, t) {
  let lo = 0, hi = scores.length;
  while (lo < hi) { const m = (lo + hi) >> 1; scores[m] > t ? hi = m : lo = m + 1; }
  return scores.length - lo;
}
function threshold() {
  const range = $("#threshold");
  if (!range) return;
  const known = sorted(false), strange = sorted(true), lo = +range.dataset.low, hi = +range.dataset.high, own = D.ood.threshold, line = $("#limit"), at = $("#at-threshold");
  const say = t => {
    const k = above(known, t), parts = [`${k} of ${many(known.length, "known image")} flagged`];
    if (strange.length) parts.push(`${above(strange, t)} of ${many(strange.length, "unknown image")} noticed`);
    at.textContent = `${t === own && D.kind !== "cleaning" ? `At the model's threshold, ${digits(own)}` : `At ${digits(t)}`}: ${parts.join(", ")}.`;
    const x = Math.min(Math.max((t - lo) / (hi - lo), 0), 1) * +$("#unknown .axis").getAttribute("x2");
    line.setAttribute("x1", x); line.setAttribute("x2", x);
    const call = $("#command");
    if (call) call.textContent = t === own ? call.dataset.own : call.dataset.any + t;
  };
  range.value = 1000 * (own - lo) / (hi - lo);
  // between 4-digit scores
  on(range, "input", () => say(+(lo + (hi - lo) * range.value / 1000).toExponential(3).replace("e", "5e")));
  say(own);
}
for (const b of $$(".bin")) for (const e of ["focus", "mouseenter"]) on(b, e, () => $("#bin-sentence").textContent = b.getAttribute("aria-label"));

// mouse, keys, start
function rove(to) {
  if (!to) return;
  const root = to.closest("#pictures") || to.closest(".matrix");
  for (const b of $$("[tabindex='0']", root)) b.tabIndex = -1;
  to.tabIndex = 0;
  to.focus();
}
const focusCard = at => rove(gallery.children[at]?.firstChild);
function moveCard(b, key) {
  const cards = [...gallery.children], at = cards.indexOf(b.parentNode);
  const perRow = Math.max(cards.findIndex(c => c.offsetTop > cards[0].offsetTop), 0) || cards.length;
  const to = at + {ArrowLeft: -1, ArrowRight: 1, ArrowUp: -perRow, ArrowDown: perRow}[key];
  if (to >= cards.length && drawn < chosen.length) draw(drawn + PAGE);
  if (gallery.children[to]) focusCard(to);
}
function moveCell(b, key) {
  const rows = [...matrix.rows].filter(r => !r.hidden), [dr, dc] = {ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0]}[key];
  let r = rows.indexOf(b.closest("tr")), c = [...rows[r].cells].indexOf(b.closest("td,th"));
  for (;;) {
    r += dr; c += dc;
    const cell = rows[r]?.cells[c];
    if (!cell) return;
    if (!cell.hidden && $("button", cell)) return rove($("button", cell));
  }
}
const actions = {
  clear, more: () => { const n = drawn; draw(drawn + PAGE); focusCard(n); }, heat: toggleHeat, print: () => print(), "help-open": () => $("#help").showModal(), close: () => overlay.close(),
  previous: () => step(-1), next: () => step(1), "copy-path": () => copy(I[opened].p, "path"), "more-suspects": moreSuspects,
  "copy-names": () => copy(chosen.map(i => I[i].p).join("\n"), many(chosen.length, "name")), "download-csv": () => download("selection.csv", selectionCsv()), "download-marks": () => download("corrections.csv", marksCsv()),
  "only-mistakes": b => onlyMistakes(b.getAttribute("aria-pressed") !== "true")};
function clear() {
  const back = source;
  source = null;
  go({kind: "", value: "", q: "", open: -1}, true);
  $("#search").value = "";
  if (back?.isConnected) { if (back.closest(".matrix")) rove(back); else back.focus(); }
}
function toggleHeat() {
  if (overlay.open) { heat = heat ? "" : anyHeat(); return showHeat(); }
  heatOn = !heatOn;
  press($("#heat"), heatOn);
  $$(".picture").forEach(cardHeat);
}
on(document, "click", e => {
  const b = e.target.closest("button,a");
  if (e.target === overlay) return overlay.close();
  if (!b) return;
  const d = b.dataset;
  if (Object.hasOwn(actions, b.id)) actions[b.id](b);
  else if (d.f) choose(d.f, b, e.detail === 0);
  else if (d.i != null) open(+d.i, b);
  else if (d.heat != null) { heat = d.heat; showHeat(); }
  else if (d.copy) copy($(`#${d.copy}`).textContent, "command");
  else if (d.close != null) b.closest("dialog").close();
  else if (d.size) { gallery.className = d.size; pick("[data-size]", b); if (heatOn) $$(".picture").forEach(cardHeat); }
  else if (d.numbers) { pick("[data-numbers]", b); $$(".matrix .cell").forEach(c => c.textContent = c.dataset[d.numbers]); }
  else if (b.hash && b.closest(".sentences,#unknown")) { e.preventDefault(); const f = parse(b.hash); choose(`${f.kind}=${f.value}`, b, e.detail === 0); }
});
on(document, "keydown", e => {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  const t = e.target, field = t.matches?.("input,select,textarea");
  if (field) { if (e.key === "Escape" && t.id === "search") { clear(); t.blur(); } return; }
  if ($("#help").open) return;
  const arrow = e.key.startsWith("Arrow");
  if (overlay.open) {
    if (e.key === "ArrowLeft") step(-1); else if (e.key === "ArrowRight") step(1); else if (e.key === "h") toggleHeat();
    else if (!markable(opened)) return;
    else if (/^[1-9]$/.test(e.key) && keyed[e.key - 1] != null) { const c = C[keyed[e.key - 1]]; mark(opened, keyed[e.key - 1] === actual(opened) ? "" : "relabel", c); }
    else if (e.key === "b") mark(opened, "drop"); else if (e.key === "u") mark(opened, ""); else return;
  }
  else if (arrow && t.matches?.(".picture")) moveCard(t, e.key);
  else if (arrow && t.closest?.(".matrix")) moveCell(t, e.key);
  else if (e.key === "/") $("#search")?.focus();
  else if (e.key === "g") { $("#gallery")?.scrollIntoView({block: "nearest"}); focusCard(0); }
  else if (e.key === "m" && matrix) { matrix.scrollIntoView({block: "nearest"}); rove($("[tabindex='0']", matrix)); }
  else if (e.key === "h" && !$("#heat")?.hidden) toggleHeat();
  else if (e.key === "?") $("#help").showModal();
  else if (e.key === "Escape" && (now.kind || now.q)) clear();
  else return;
  e.preventDefault();
});
for (const e of $$(".script")) e.hidden = ["suspects", "findings"].includes(e.id);
threshold();
if (!N) return;
on($("#search"), "input", e => go({q: e.target.value, open: -1}));
on($("#sort"), "change", e => go({sort: e.target.value}));
if (matrix) on($("#matrix-sort") || matrix, "change", e => orderMatrix(e.target.value));
on($("#opacity"), "input", showHeat);
on(window, "resize", () => { if (overlay.open) showHeat(); });
on(window, "hashchange", () => { pushed = false; show(parse(location.hash)); });
let shownBefore = null;
on(window, "beforeprint", () => {
  shownBefore = now;
  $("#address").textContent = /^https?:/.test(location.protocol) ? location.href : decodeURIComponent(location.pathname.split("/").pop()) + location.hash;
  if (now.kind || now.q || drawn > PAGE || now.sort !== FIRST) { drawn = 0; show({...parse(""), open: -1}); }
});
on(window, "afterprint", () => { drawn = 0; show(shownBefore || now); });
new IntersectionObserver(([e]) => { if (e.isIntersecting && drawn % 240 > PAGE && box(e.target).y < innerHeight * 1.1) draw(drawn + PAGE); }, {rootMargin: "9%"}).observe($("#more"));
for (const b of $$(".matrix button")) b.tabIndex = -1;
const firstCell = matrix && ($("tbody .cell", matrix) || $("button", matrix));
if (firstCell) firstCell.tabIndex = 0;
$("#heat").hidden = !I.some(x => x.hs);
moreSuspects();
// cleaning.js
marked();
show(parse(location.hash));
})();
