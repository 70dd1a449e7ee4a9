// The rows that stand in the page as JSON, and how they are put into words.

const element = id => document.getElementById(id);
const settings = JSON.parse(element("settings").textContent);
const { classes, server } = settings;
const rows = { index: [], file: [], given: [], proposed: [], probability: [], neighbours: [], neighbour_labels: [] };
for (const chunk of document.querySelectorAll("script.rows")) {
  for (const [name, values] of Object.entries(JSON.parse(chunk.textContent))) for (const value of values) rows[name].push(value);
  chunk.remove();
}
const total = rows.index.length;
const hasLabels = rows.given.some(label => label >= 0);
const rowOf = new Map(rows.index.map((index, row) => [index, row]));
const rowOfFile = new Map(rows.file.map((file, row) => [file, row]));
const name = label => label < 0 ? "none" : classes[label];
const given = row => rows.given[row] < 0 ? null : classes[rows.given[row]];
const percent = share => share > 0 && share < .005 ? "<1 %" : share < 1 && share >= .995 ? ">99 %" : `${Math.round(100 * share)} %`;
const number = value => value.toLocaleString("en");
const LARGEST_DIGITS = 10;  // classes that keys 1 to 9 and 0 choose

// Text only ever enters the page as text: file names and labels are other people's.
function make(tag, options = {}, ...children) {
  const made = Object.assign(document.createElement(tag), options);
  made.append(...children);
  return made;
}
