// The rows that stand in the page as JSON, and how they are put into words.

const element = id => document.getElementById(id);
const settings = JSON.parse(element("settings").textContent);
const { classes, server } = settings;
const rows = { index: [], file: [], given: [], proposed: [], probability: [], neighbours: [], neighbour_labels: [] };
for (const chunk of document.querySelectorAll("script.rows")) {
  const columns = JSON.parse(chunk.textContent);
  for (const name of Object.keys(rows)) for (const value of columns[name]) rows[name].push(value);
  chunk.remove();
}
const total = rows.index.length;
const hasLabels = rows.given.some(label => label >= 0);
const rowOf = new Map(rows.index.map((index, row) => [index, row]));
const rowOfFile = new Map(rows.file.map((file, row) => [file, row]));
const name = label => label < 0 ? "no label" : classes[label];
const given = row => rows.given[row] < 0 ? null : classes[rows.given[row]];
const number = value => value.toLocaleString("en");
const quantity = (count, one, many) => `${number(count)} ${count === 1 ? one : many}`;
const sum = values => values.reduce((total, value) => total + Number(value), 0);
function percent(share) {
  if (share > 0 && share < .005) return "<1 %";
  if (share < 1 && share >= .995) return ">99 %";
  return `${Math.round(100 * share)} %`;
}

// Text only ever enters the page as text: file names and labels are other people's.
function make(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}
