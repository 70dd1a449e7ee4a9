// How many labels were wrong, against how many were expected.

function reviewed() {
  const found = { judged: [], kept: 0, changed: 0, skipped: 0, conflicts: 0 };  // judged: [probability, is wrong]
  for (const index of decided()) {
    const { label, isConflict, isSkipped } = result(index), row = rowOf.get(index);
    if (isConflict) found.conflicts++;
    else if (isSkipped) found.skipped++;
    else if (label !== null) {
      const isWrong = label !== given(row);
      isWrong ? found.changed++ : found.kept++;
      if (rows.probability[row] !== null && given(row) !== null) found.judged.push([rows.probability[row], isWrong]);
    }
  }
  return found;
}
const ENOUGH = 20;  // reviews from which a difference is spoken of
const expectedOf = judged => sum(judged.map(([probability]) => probability));
const wrongOf = judged => sum(judged.map(([, isWrong]) => isWrong));

function renderFound() {
  const found = reviewed(), judged = found.judged;
  const changed = [`${number(found.kept)} kept`, `${number(found.changed)} changed`];
  const words = hasLabels ? changed : [`${number(found.changed)} labelled`];
  words.push(`${number(found.skipped)} skipped`);
  if (found.conflicts) words.push(`reviewers differ on ${number(found.conflicts)}`);
  element("found").textContent = `${words.join(", ")}.${judged.length ? calibration(judged) : ""}`;
  element("bins").hidden = !judged.length;
  renderBins(judged);
}
function calibration(judged) {
  const count = judged.length, wrong = wrongOf(judged), expected = expectedOf(judged);
  const half = 1.96 * Math.sqrt(sum(judged.map(([p]) => p * (1 - p))));  // 95 %, were each probability exact
  const [low, high] = [Math.max(0, expected - half), Math.min(count, expected + half)];
  let verdict = "";
  if (count >= ENOUGH) verdict = " That is as expected.";
  if (count >= ENOUGH && wrong > high) verdict = " That is more than expected: the probabilities are too low here.";
  if (count >= ENOUGH && wrong < low) verdict = " That is fewer than expected: the probabilities are too high here.";
  const range = `${expected.toFixed(1)} (${low.toFixed(1)} to ${high.toFixed(1)})`;
  const words = `${quantity(wrong, "was", "were")} wrong; ${range} were expected`;
  return ` Of ${number(count)} labels reviewed, ${words}.${verdict}`;
}
function renderBins(judged) {
  const lines = [];
  for (let bin = 0; bin < 5; bin++) {
    const members = judged.filter(([probability]) => Math.min(4, Math.floor(5 * probability)) === bin);
    const range = `${20 * bin} to ${20 * bin + 20} %`;
    const cells = [range, number(members.length), expectedOf(members).toFixed(1), number(wrongOf(members))];
    if (members.length) lines.push(make("tr", {}, ...cells.map(textContent => make("td", { textContent }))));
  }
  element("bins").querySelector("tbody").replaceChildren(...lines);
}
