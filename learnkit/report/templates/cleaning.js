// What cleaning found in the files; page.py puts this into evaluation.js, among whose names it lives
const drop = i => el("button", {onclick: () => mark(i, marks[I[i].p] ? "" : "drop"), textContent: "bad", "data-drop": i, "aria-label": `bad: ${I[i].p}`});
const figure = i => el("figure", {}, thumb(i), bdi(words(actual(i))), " ", span("hint", bdi(I[i].p)), " ", drop(i));
function groupRow(text, images, picture) {
  const row = el("div", {className: "group"}, text && el("p", {}, bdi(text)), ...images.slice(0, PAGE).map(figure));
  if (picture) row.append(el("figure", {}, el("img", {className: "difference", src: picture, alt: "where they differ"}), "where they differ"));
  if (images.length > PAGE) row.append(el("p", {className: "hint", textContent: `and ${many(images.length - PAGE, "more image")}`}));
  return row;
}
function findings() {
  const found = D.findings || [], all = $("#finding-list");
  if (D.kind === "cleaning" && !found.length) found.push(...(D.duplicates || []).map(images => ({kind: "duplicates", images})));
  if (!found.length || !all) return;
  for (const kind of new Set(found.map(f => f.kind))) {
    const these = found.filter(f => f.kind === kind), rows = el("div"), more = el("button", {textContent: "more"});
    const add = () => { const n = rows.children.length; rows.append(...these.slice(n, n + PAGE).map(f => groupRow(f.text, f.images || [], f.picture))); more.hidden = n + PAGE >= these.length; marked(); };
    more.onclick = add;
    add();
    all.append(el("h3", {}, bdi(kind), span("count", ` (${these.length})`)), rows, more);
  }
  $("#findings").hidden = false;
}
findings();
