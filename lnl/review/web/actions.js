// What keys and buttons do; the search for another class; exports.

function hasName() {
  if (reviewer) return true;
  complain("Write your name first, so that it is known who decided.");
  element("reviewer").focus();
  return false;
}
function decide(row, action, label) {
  const image = { index: rows.index[row], file: rows.file[row], given: given(row) };
  return store.save({ ...image, action, label, reviewer, at: new Date().toISOString() });
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
const MOST_DIGITS = 10;  // classes, up to which keys 1 to 9 and 0 choose one
const hasDigits = classes.length <= MOST_DIGITS;
function actionOf(key) {
  const label = hasDigits && /^[0-9]$/.test(key) ? (Number(key) + 9) % 10 : -1;
  if (label >= 0 && label < classes.length && at >= 0) return () => choose(label);
  return ACTIONS[key.length === 1 ? key.toLowerCase() : key];
}
function press(event) {
  // A dialog that has just been closed keeps the focus until the browser draws the next frame.
  const isTyping = event.target.closest?.("input, select, textarea, dialog") && !event.target.closest("dialog:not([open])");
  if (isTyping || event.ctrlKey || event.metaKey || event.altKey) return;
  const isLatin = event.key.length > 1 || event.key <= "~";
  const key = isLatin ? event.key : event.code.replace(/^Key/, "").toLowerCase();  // of another alphabet's layout
  const action = actionOf(key);
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
  const place = label => classes[label].toLowerCase().indexOf(part);
  const found = classes.map((_, label) => label).filter(label => place(label) >= 0);
  offered = [...found.filter(label => place(label) === 0), ...found.filter(label => place(label) > 0)];
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
  const note = make("p", { className: "meta" });
  if (!offered.length) note.textContent = "No class has this in its name.";
  if (more > 0) note.textContent = `${number(more)} more: type a part of the name.`;
  element("options").replaceChildren(...options, note);
  element("search").setAttribute("aria-activedescendant", `option-${picked}`);
  options[picked]?.scrollIntoView({ block: "nearest" });
}
function take(label) {
  element("choose").close();
  choose(label);
}
function search(event) {
  if (!element("choose").open) return;
  const keys = {
    ArrowDown: () => pick(picked + 1),
    ArrowUp: () => pick(picked - 1),
    Enter: () => take(offered[picked]),
  };
  if (!keys[event.key] || !offered.length) return;
  event.preventDefault();
  keys[event.key]();
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
function exportJson() {
  const plain = standingDecisions().map(decision => Object.fromEntries(FIELDS.map(field => [field, decision[field]])));
  download("decisions.json", "application/json", JSON.stringify(plain, null, 1));
}
function asRow(values) {
  const texts = values.map(value => String(value ?? ""));
  return texts.map(text => /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text).join(",") + "\r\n";
}
function exportCsv() {
  const lines = standingDecisions().map(decision => asRow(FIELDS.map(field => decision[field])));
  download("decisions.csv", "text/csv", asRow(FIELDS) + lines.join(""));
}
