// What keys and buttons do; the search for another class; exports.

function hasName() {
  if (reviewer) return true;
  complain("Write your name first, so that it is known who decided.");
  element("reviewer").focus();
  return false;
}
function decide(row, action, label) {
  const decision = { index: rows.index[row], file: rows.file[row], given: given(row), action, label, reviewer, at: new Date().toISOString() };
  return store.save(decision);
}
function say(action, label = null) {
  if (at < 0 || !hasName() || (action === "keep" && rows.given[entries[at]] < 0)) return;
  const row = entries[at], before = result(rows.index[row]).mine;
  if (!decide(row, action, label)) return refresh();
  past.push({ index: rows.index[row], before });
  const next = nextOpen(at + 1);
  const open = next >= 0 ? next : nextOpen(0);
  open >= 0 ? show(open) : refresh();
}
const choose = label => label >= 0 && say(label === rows.given[entries[at]] ? "keep" : "change", classes[label]);
function undo() {
  if (!past.length || !hasName()) return;
  const { index, before } = past.at(-1), row = rowOf.get(index);
  if (!decide(row, before?.action ?? "undo", before?.label ?? null)) return refresh();
  past.pop();
  const entry = entries.indexOf(row);
  if (entry >= 0) return show(entry);
  entries.unshift(row);  // it does not fit what is chosen, but is what was asked for
  listed.add(row);
  redraw();
  show(0);
}
function move(step) {
  const entry = nearestRow(at + step, step);
  if (entry >= 0) show(entry);
}

const ACTIONS = {
  k: () => at >= 0 && say("keep", given(entries[at])),
  c: () => at >= 0 && choose(rows.proposed[entries[at]]),
  s: () => say("skip"),
  u: undo,
  "/": openChoice,
  ArrowDown: () => move(1), ArrowRight: () => move(1), ArrowUp: () => move(-1), ArrowLeft: () => move(-1),
};
function press(event) {
  const isTyping = event.target.closest?.("input, select, textarea, dialog");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const isLatin = event.key.length > 1 || event.key <= "~";
  const key = isLatin ? event.key : event.code.replace(/^Key/, "").toLowerCase();  // of another alphabet's layout
  const digit = classes.length <= LARGEST_DIGITS && /^[0-9]$/.test(key) ? (Number(key) + 9) % 10 : -1;
  const action = digit >= 0 && digit < classes.length && at >= 0 ? () => choose(digit) : ACTIONS[key.length === 1 ? key.toLowerCase() : key];
  if (!action) return;
  event.preventDefault();
  if (event.repeat && !key.startsWith("Arrow")) return;  // a key held down decides once
  action();
}

const MOST_OPTIONS = 100;
let offered = [], picked = 0;
function openChoice() {
  if (at < 0 || !hasName()) return;
  element("search").value = "";
  offer();
  element("choose").showModal();
  element("search").focus();
}
function offer() {
  const part = element("search").value.toLowerCase();
  offered = classes.map((_, label) => label).filter(label => classes[label].toLowerCase().includes(part));
  offered.sort((a, b) => Number(classes[b].toLowerCase().startsWith(part)) - Number(classes[a].toLowerCase().startsWith(part)));
  pick(0);
}
function pick(wanted) {
  picked = Math.max(0, Math.min(wanted, Math.min(offered.length, MOST_OPTIONS) - 1));
  const options = offered.slice(0, MOST_OPTIONS).map((label, i) => {
    const option = make("div", { className: "option", role: "option", id: `option-${i}`, textContent: classes[label] });
    option.setAttribute("aria-selected", String(i === picked));
    option.addEventListener("click", () => take(label));
    return option;
  });
  const more = offered.length - options.length;
  const note = !offered.length ? "No class has this in its name." : more > 0 ? `${number(more)} more: type a part of the name.` : "";
  element("options").replaceChildren(...options, ...(note ? [make("p", { className: "meta", textContent: note })] : []));
  element("search").setAttribute("aria-activedescendant", `option-${picked}`);
  options[picked]?.scrollIntoView({ block: "nearest" });
}
function take(label) {
  element("choose").close();
  choose(label);
}
function search(event) {
  if (event.key === "ArrowDown" || event.key === "ArrowUp") { event.preventDefault(); pick(picked + (event.key === "ArrowDown" ? 1 : -1)); }
  if (event.key === "Enter" && offered.length) { event.preventDefault(); take(offered[picked]); }
}

const FIELDS = ["index", "file", "given", "action", "label", "reviewer", "at"];
function standingDecisions() {
  return decided().flatMap(index => [...standing(index).values()]).sort((a, b) => a.at < b.at ? -1 : 1);
}
function download(fileName, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  make("a", { href: url, download: fileName }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
const plain = decision => Object.fromEntries(FIELDS.map(field => [field, decision[field]]));
const cell = value => value === null ? "" : /[",\r\n]/.test(value) ? `"${String(value).replaceAll('"', '""')}"` : String(value);
const asRow = values => values.map(cell).join(",") + "\r\n";
function exportJson() { download("decisions.json", "application/json", JSON.stringify(standingDecisions().map(plain), null, 1)); }
function exportCsv() {
  const lines = standingDecisions().map(decision => asRow(FIELDS.map(field => decision[field])));
  download("decisions.csv", "text/csv", asRow(FIELDS) + lines.join(""));
}
