// What reviewers decided, as this page knows it.

const saved = new Map();  // index -> reviewer -> their latest decision
let unsaved = [];  // decisions that the server has not answered yet, oldest first
let past = [];  // decisions of this reviewer to undo: the index, and what they had said before
const problems = new Set();
let reviewer = "";

function ofThisList(decisions) {  // a decision is on a file, wherever that stands in the list now
  return decisions.flatMap(decision => {
    const row = rowOfFile.get(decision.file);
    const isKnown = row !== undefined && (decision.label === null || classes.includes(decision.label));
    return isKnown ? [{ ...decision, index: rows.index[row] }] : [];
  });
}
function put(decisions, decision) {
  decisions.delete(decision.reviewer);
  if (decision.action !== "undo") decisions.set(decision.reviewer, decision);
}
function enter(decision) {
  if (!saved.has(decision.index)) saved.set(decision.index, new Map());
  put(saved.get(decision.index), decision);
}
function standing(index) {
  const mine = unsaved.filter(decision => decision.index === index);
  if (!mine.length) return saved.get(index) ?? new Map();
  const decisions = new Map(saved.get(index));
  mine.forEach(decision => put(decisions, decision));
  return decisions;
}
function result(index) {
  const decisions = standing(index);
  const labels = new Set([...decisions.values()].map(decision => decision.label).filter(label => label !== null));
  return {
    decisions, mine: decisions.get(reviewer) ?? null,
    label: labels.size === 1 ? [...labels][0] : null,
    isConflict: labels.size > 1, isReviewed: labels.size > 0, isSkipped: decisions.size > 0 && !labels.size,
  };
}
const decided = () => [...new Set([...saved.keys(), ...unsaved.map(decision => decision.index)])];
function remember(decision) {  // of this reviewer, in the order in which they were made
  const before = standing(decision.index).get(reviewer) ?? null;
  past.push({ index: decision.index, before });
}
