// How many labels were wrong, against how many were expected.

function reviewed() {  // the decided rows: whether each was wrong, and how likely that was said to be
  const found = { wrong: [], probability: [], kept: 0, changed: 0, skipped: 0, conflicts: 0 };
  for (const index of decided()) {
    const { label, isConflict, isSkipped } = result(index), row = rowOf.get(index);
    if (isConflict) found.conflicts++;
    else if (isSkipped) found.skipped++;
    else if (label !== null) {
      const isWrong = label !== given(row);
      isWrong ? found.changed++ : found.kept++;
      if (rows.probability[row] !== null && rows.given[row] >= 0) { found.wrong.push(isWrong); found.probability.push(rows.probability[row]); }
    }
  }
  return found;
}
const sum = values => values.reduce((total, value) => total + Number(value), 0);
const ENOUGH = 20;  // reviews from which a difference is spoken of
function renderFound() {
  const found = reviewed(), n = found.wrong.length;
  const words = hasLabels ? [`${number(found.kept)} kept`, `${number(found.changed)} changed`] : [`${number(found.changed)} labelled`];
  words.push(`${number(found.skipped)} skipped`);
  if (found.conflicts) words.push(`reviewers differ on ${number(found.conflicts)}`);
  element("found").textContent = `${words.join(", ")}.`;
  element("bins").hidden = !n;
  if (!n) return;
  const wrong = sum(found.wrong), expected = sum(found.probability);
  const half = 1.96 * Math.sqrt(sum(found.probability.map(p => p * (1 - p))));  // 95 %, were each p exact
  const [low, high] = [Math.max(0, expected - half), Math.min(n, expected + half)];
  let judged = "";
  if (n >= ENOUGH) judged = wrong > high ? " That is more than expected: the probabilities are too low here." : wrong < low ? " That is fewer than expected: the probabilities are too high here." : " That is as expected.";
  element("found").textContent += ` Of ${number(n)} labels reviewed, ${number(wrong)} ${wrong === 1 ? "was" : "were"} wrong; ${expected.toFixed(1)} (${low.toFixed(1)} to ${high.toFixed(1)}) were expected.${judged}`;
  const bins = [0, 1, 2, 3, 4].map(bin => found.probability.map((p, i) => [p, found.wrong[i]]).filter(([p]) => Math.min(4, Math.floor(5 * p)) === bin));
  element("bins").querySelector("tbody").replaceChildren(...bins.flatMap((members, bin) => {
    if (!members.length) return [];
    const cells = [`${20 * bin} to ${20 * bin + 20} %`, number(members.length), sum(members.map(([p]) => p)).toFixed(1), number(sum(members.map(([, isWrong]) => isWrong)))];
    return [make("tr", {}, ...cells.map(textContent => make("td", { textContent })))];
  }));
}
