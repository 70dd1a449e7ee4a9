// The image that is looked at, its neighbours, and what was decided on it.

function address(index) {
  if (server) return `image/${index}?key=${encodeURIComponent(server.key)}`;
  return settings.pictures[index] ?? null;
}
function pictureOf(index, description, isSmall = false) {
  const box = make("div", { className: "picture" });
  const source = address(index);
  if (source === null) { box.textContent = isSmall ? "" : "no picture in this file"; return box; }
  const image = make("img", { alt: description, draggable: false, decoding: "async" });
  image.addEventListener("error", () => box.replaceChildren(isSmall ? "×" : "this image cannot be shown"));
  image.src = source;
  box.append(image);
  return box;
}

const openTo = found => element("by-state").value === "mine" ? !found.mine : !found.decisions.size;
function nextOpen(start) {
  for (let entry = Math.max(start, 0); entry < entries.length; entry++) {
    if (isRow(entry) && openTo(result(rows.index[entries[entry]]))) return entry;
  }
  return -1;
}
function firstOpen() {
  const open = nextOpen(0);
  return open >= 0 ? open : nearestRow(0, 1);
}
function nearestRow(entry, step) {
  while (entry >= 0 && entry < entries.length && !isRow(entry)) entry += step;
  return entry >= 0 && entry < entries.length ? entry : -1;
}

function show(entry) {
  if (entry < 0 || !isRow(entry)) { at = -1; return renderNone(); }
  at = entry;
  const list = element("list"), top = entry * HEIGHT - list.scrollTop;
  if (top < HEIGHT || top + 2 * HEIGHT > list.clientHeight) list.scrollTop += top - list.clientHeight / 3;
  scroll();
  list.setAttribute("aria-activedescendant", `entry-${entry}`);
  renderImage(entries[entry]);
  refresh();
  const next = nextOpen(entry + 1);
  if (next >= 0 && settings.has_images) fetchAhead(entries[next]);
}
function fetchAhead(row) {
  for (const index of [rows.index[row], ...rows.neighbours[row]]) {
    const source = index < 0 ? null : address(index);
    if (source) new Image().src = source;
  }
}
function renderNone() {
  element("image").hidden = element("evidence").hidden = true;
  element("empty").hidden = false;
  element("empty").textContent = total ? "No image fits what is chosen in the list." : "There is nothing to review.";
  refresh();
}
function renderImage(row) {
  const index = rows.index[row];
  element("image").hidden = false;
  element("empty").hidden = true;
  element("rank").textContent = `Rank ${number(row + 1)} of ${number(total)}`;
  element("file").textContent = rows.file[row];
  element("given").textContent = name(rows.given[row]);
  element("proposed").textContent = rows.proposed[row] < 0 ? "no class" : name(rows.proposed[row]);
  const none = make("div", { className: "picture", textContent: "no image: only features" });
  const picture = settings.has_images ? pictureOf(index, rows.file[row]) : none;
  element("picture").replaceWith(Object.assign(picture, { id: "picture" }));
  renderQuestion(row);
  renderNeighbours(row);
  element("work").scrollTop = 0;
  window.scrollTo(0, 0);
}
function renderQuestion(row) {
  const caption = (id, text) => { element(id).querySelector("span").textContent = text; };
  const hasLabel = rows.given[row] >= 0, hasProposal = rows.proposed[row] >= 0, share = rows.probability[row] ?? 0;
  element("doubt").hidden = rows.probability[row] === null;
  element("doubt").className = `doubt ${hasLabel ? "" : "of-proposal"}`;
  element("doubt").querySelector("i").style.width = `${100 * share}%`;
  caption("doubt", `${percent(share)} likely to be ${hasLabel ? "wrong" : "right"}`);
  element("keep").disabled = !hasLabel;
  element("change").disabled = !hasProposal;
  const change = `${hasLabel ? "Change to" : "Label as"} ${name(rows.proposed[row])}`;
  caption("keep", hasLabel ? `Keep ${name(rows.given[row])}` : "No label to keep");
  caption("change", hasProposal ? change : "No class proposed");
}
function renderNeighbours(row) {
  const labels = rows.neighbour_labels[row];
  const near = rows.neighbours[row].map((index, i) => ({ index, label: labels[i] })).filter(({ index }) => index >= 0);
  element("evidence").hidden = !near.length;
  const count = label => near.filter(neighbour => neighbour.label === label && label >= 0).length;
  const parts = [[rows.proposed[row], "as proposed"], [rows.given[row], "as given"]].filter(([label]) => label >= 0);
  const votes = label => count(label) ? quantity(count(label), "is", "are") : "none is";
  const words = parts.map(([label, how]) => `${votes(label)} labelled ${name(label)}, ${how}`);
  element("votes").hidden = !parts.length;
  element("votes").textContent = `Of the ${near.length} nearest, ${words.join("; ")}.`;
  element("neighbours").replaceChildren(...near.map(({ index, label }) => {
    const caption = make("figcaption", { textContent: name(label) });
    if (label >= 0 && label === rows.proposed[row]) caption.className = "as-proposed";
    if (label >= 0 && label === rows.given[row]) caption.className = "as-given";
    return make("figure", {}, ...(settings.has_images ? [pictureOf(index, "")] : []), caption);
  }));
}

function refresh() {  // all that changes with decisions
  drawn.forEach(({ renew }) => renew());
  renderDecisions();
  renderCounts();
  renderFound();
  element("problems").hidden = !problems.size;
  element("problems").replaceChildren(...[...problems].map(problem => make("li", { textContent: problem })));
  element("undo").disabled = !past.length;
}
function renderDecisions() {
  if (at < 0) return;
  const row = entries[at], found = result(rows.index[row]), mine = found.mine;
  const press = (id, isPressed) => element(id).setAttribute("aria-pressed", String(isPressed));
  const label = mine?.label ?? null, known = [given(row), name(rows.proposed[row])];
  press("keep", label !== null && label === known[0]);
  press("change", label !== null && label === known[1]);
  press("other", label !== null && !known.includes(label));
  press("skip", mine?.action === "skip");
  for (const button of element("classes").children) {
    button.setAttribute("aria-pressed", String(label === classes[button.value]));
  }
  const lines = [...found.decisions.values()].map(decision => make("li", { textContent: sentence(decision) }));
  const differ = "⚠ Reviewers differ: both decisions are kept until one of them changes theirs.";
  if (found.isConflict) lines.push(make("li", { className: "differ", textContent: differ }));
  element("said").replaceChildren(...lines);
}
function sentence({ action, label, reviewer: who, at: when }) {
  const said = { keep: `keeps ${label}`, change: `changes it to ${label}`, skip: "skips it" }[action];
  return `${who} ${said}, ${new Date(when).toLocaleString("en-GB", { dateStyle: "medium", timeStyle: "short" })}`;
}
function renderCounts() {
  const done = decided().filter(index => listed.has(rowOf.get(index)) && standing(index).size).length;
  element("bar").max = Math.max(listed.size, 1);
  element("bar").value = done;
  const what = listed.size === total ? "" : ` in this choice, ${number(total)} in all`;
  element("counts").textContent = `${number(done)} of ${number(listed.size)} reviewed${what}`;
}
