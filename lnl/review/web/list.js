// The list of images, of which only the rows that are seen are drawn.

const HEIGHT = 56;  // pixels of one row, as in the style
const OVER = 8;  // rows drawn beyond what is seen
let entries = [];  // of the list: the number of a row, or { pair } above the rows of a pair of classes
let listed = new Set();  // the rows among them
let at = -1;  // the entry that is looked at
const drawn = new Map();  // entry -> its element, and how to renew it

const pairOf = row => rows.given[row] * (classes.length + 1) + rows.proposed[row];
function pairName(row) {
  const proposed = rows.proposed[row] < 0 ? "no proposal" : name(rows.proposed[row]);
  return rows.given[row] < 0 ? proposed : `${name(rows.given[row])} → ${proposed}`;
}

const SHOWN = {
  all: () => true,
  open: found => !found.decisions.size,
  mine: found => !found.mine,
  reviewed: found => found.isReviewed,
  skipped: found => found.isSkipped,
  conflict: found => found.isConflict,
};
function compose() {
  const [byGiven, byProposed, state] = ["by-given", "by-proposed", "by-state"].map(id => element(id).value);
  const part = element("by-file").value.toLowerCase();
  const fits = row => (byGiven === "" || rows.given[row] === Number(byGiven))
    && (byProposed === "" || rows.proposed[row] === Number(byProposed))
    && (part === "" || rows.file[row].toLowerCase().includes(part))
    && SHOWN[state](result(rows.index[row]));
  const fitting = [];
  for (let row = 0; row < total; row++) if (fits(row)) fitting.push(row);
  listed = new Set(fitting);
  entries = element("order").value === "pair" ? byPair(fitting) : fitting;
}
function byPair(fitting) {
  const pairs = new Map();
  for (const row of fitting) {
    if (!pairs.has(pairOf(row))) pairs.set(pairOf(row), []);
    pairs.get(pairOf(row)).push(row);
  }
  const largestFirst = [...pairs.values()].sort((a, b) => b.length - a.length);
  return largestFirst.flatMap(members => [{ pair: pairName(members[0]), members }, ...members]);
}
const isRow = entry => typeof entries[entry] === "number";

function redraw() {
  drawn.forEach(({ made }) => made.remove());
  drawn.clear();
  const box = element("rows");
  box.querySelectorAll(".nothing").forEach(made => made.remove());
  box.style.height = `${Math.max(entries.length, 2) * HEIGHT}px`;
  if (!entries.length) box.append(make("p", { className: "nothing", textContent: "No image fits these choices." }));
  scroll();
}
function scroll() {
  const list = element("list");
  const from = Math.max(0, Math.floor(list.scrollTop / HEIGHT) - OVER);
  const to = Math.min(entries.length, Math.ceil((list.scrollTop + list.clientHeight) / HEIGHT) + OVER);
  for (const [entry, { made }] of drawn) {
    if (entry >= from && entry < to) continue;
    made.remove();
    drawn.delete(entry);
  }
  for (let entry = from; entry < to; entry++) {
    if (drawn.has(entry)) continue;
    const line = isRow(entry) ? rowLine(entry) : pairLine(entries[entry]);
    line.made.style.top = `${entry * HEIGHT}px`;
    line.renew();
    drawn.set(entry, line);
    element("rows").append(line.made);
  }
}
function pairLine({ pair, members }) {
  const count = make("small");
  const made = make("div", { className: "pair", role: "presentation" }, make("b", { textContent: pair }), count);
  const renew = () => {
    const done = members.filter(row => standing(rows.index[row]).size).length;
    count.textContent = `${quantity(members.length, "image", "images")}, ${number(done)} reviewed`;
  };
  return { made, renew };
}
function rowLine(entry) {
  const row = entries[entry];
  const mark = make("span");
  const share = rows.probability[row];
  const numbers = make("span", { className: "numbers" }, share === null ? "" : percent(share), mark);
  const pair = make("b", { textContent: pairName(row) }), file = make("small", { textContent: rows.file[row] });
  const words = make("span", {}, pair, file);
  const made = make("div", { className: "row", id: `entry-${entry}`, role: "option" });
  if (settings.has_images) made.append(pictureOf(rows.index[row], "", true));
  else made.classList.add("plain");
  made.append(words, numbers);
  made.setAttribute("aria-setsize", String(entries.length));
  made.setAttribute("aria-posinset", String(entry + 1));
  made.addEventListener("click", () => show(entry));
  const renew = () => {
    made.setAttribute("aria-selected", String(entry === at));
    const [text, kind] = verdict(rows.index[row], given(row));
    mark.textContent = text;
    mark.className = `mark ${kind}`;
  };
  return { made, renew };
}
function verdict(index, given) {
  const found = result(index);
  if (unsaved.some(decision => decision.index === index)) return ["… not saved", "unsaved"];
  if (found.isConflict) return ["⚠ differ", "conflict"];
  if (found.label !== null && given === null) return ["✓ labelled", "changed"];
  if (found.label !== null) return found.label === given ? ["✓ kept", "kept"] : ["→ changed", "changed"];
  return found.isSkipped ? ["– skipped", "skipped"] : ["", ""];
}
