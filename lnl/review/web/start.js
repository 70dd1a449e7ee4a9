// The page begins.

function fillChoices() {
  for (const [id, labels] of [["by-given", rows.given], ["by-proposed", rows.proposed]]) {
    const counts = new Map();
    for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
    const known = [...counts.keys()].sort((a, b) => a - b);
    const text = label => `${name(label)} (${number(counts.get(label))})`;
    const options = known.map(label => make("option", { value: label, textContent: text(label) }));
    element(id).append(make("option", { value: "", textContent: "any" }), ...options);
  }
  element("digits").hidden = element("classes").hidden = !hasDigits;
  if (!hasDigits) return;
  element("classes").append(...classes.map((text, label) => {
    const key = make("kbd", { textContent: String((label + 1) % 10) });
    const button = make("button", { type: "button", value: String(label) }, key, make("span", { textContent: text }));
    button.addEventListener("click", () => choose(label));
    return button;
  }));
}
function choice() {
  compose();
  at = -1;
  element("list").scrollTop = 0;
  redraw();
  show(firstOpen());
}
const NAME = "lnl-review reviewer";
function rename() {
  reviewer = element("reviewer").value.trim();
  attempt(() => window.localStorage.setItem(NAME, reviewer));
  past = [];
  complain("");
  refresh();
}
function listen() {
  const click = (id, action) => element(id).addEventListener("click", action);
  for (const [id, key] of Object.entries({ keep: "k", change: "c", skip: "s", undo: "u", other: "/" })) {
    click(id, ACTIONS[key]);
  }
  click("again", () => remote.pump());
  click("export-json", exportJson);
  click("export-csv", exportCsv);
  for (const id of ["by-given", "by-proposed", "by-state", "order"]) {
    element(id).addEventListener("change", () => { element(id).blur(); choice(); });  // keys decide again
  }
  element("by-file").addEventListener("input", choice);
  element("reviewer").addEventListener("change", rename);
  for (const id of ["by-file", "reviewer"]) {
    element(id).addEventListener("keydown", ({ key }) => {
      if (key === "Enter" || key === "Escape") element(id).blur();
    });
  }
  element("search").addEventListener("input", offer);
  element("search").addEventListener("keydown", search);
  element("list").addEventListener("scroll", () => requestAnimationFrame(scroll));
  window.addEventListener("resize", scroll);
  document.addEventListener("keydown", press);
}

reviewer = element("reviewer").value = attempt(() => window.localStorage.getItem(NAME), null) || server?.reviewer || "";
element("kept").textContent = server
  ? "Every decision is on the server's disk, in decisions.jsonl, before the next is sent."
  : "This page is a file: decisions stay in this browser until you export them. lnl label import reads both files.";
fillChoices();
listen();
store.start();
choice();
