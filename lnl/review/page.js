
"use strict";
(() => {
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

  // ------------------------------------------------------------------------------------------------ what is decided

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

  // ---------------------------------------------------------------------------------------------------- keeping them

  const memory = (storage, kind) => {  // one entry for each decision, so that two tabs never overwrite each other
    const prefix = `lnl-review ${settings.identity} ${kind} `;
    return {
      prefix,
      all: () => Object.keys(storage).filter(key => key.startsWith(prefix)).sort().map(key => ({ key, ...JSON.parse(storage.getItem(key)) })),
      add: decision => {
        const key = `${prefix}${decision.at} ${Math.random().toString(36).slice(2, 8)}`;
        storage.setItem(key, JSON.stringify(decision));
        return key;
      },
      remove: key => storage.removeItem(key),
    };
  };
  const attempt = (action, otherwise) => { try { return action(); } catch { return otherwise; } };
  const onDisk = attempt(() => memory(window.localStorage, "decision"), null);
  const inTab = attempt(() => memory(window.sessionStorage, "unsaved"), null);
  let state = { text: "", kind: "" };

  function tell(text, kind = "") {
    state = { text, kind };
    element("state").textContent = text;
    element("state").className = `state ${kind}`;
  }
  function complain(message) {
    element("alert").hidden = !message;
    element("alert").querySelector("span").textContent = message;
    element("again").hidden = !server || !unsaved.length;
  }

  const browser = {  // the page is a file: decisions stay in this browser until they are exported
    start() {
      if (!onDisk) return complain("This browser keeps nothing for files: decisions would be lost. Use the command lnl label review.");
      ofThisList(onDisk.all()).forEach(takeOver);
      window.addEventListener("storage", event => {
        if (event.newValue && event.key?.startsWith(onDisk.prefix)) { enter(JSON.parse(event.newValue)); refresh(); }
      });
    },
    save(decision) {
      try {
        onDisk.add(decision);
      } catch (error) {
        tell("not saved", "failed");
        complain(`The decision on ${decision.file} was not saved: this browser has no room left (${error.name}). Export what is there.`);
        return false;
      }
      enter(decision);
      tell("saved here");
      return true;
    },
  };

  let end = 0;  // bytes of the server's file that are known here
  let isBusy = false;
  let wasWhole = false;  // whether the server's file has been read once
  const RETRY = 2000, POLL = 4000;  // milliseconds
  const remote = {  // every decision goes to the server, one at a time, until it answers that it is on the disk
    start() {
      unsaved.push(...ofThisList(inTab?.all() ?? []));
      remote.pump();
      setInterval(() => { if (!document.hidden && !unsaved.length) remote.pump(); }, POLL);
      window.addEventListener("focus", remote.pump);
      setInterval(() => { if (unsaved.length) remote.pump(); }, RETRY);
      window.addEventListener("beforeunload", event => { if (unsaved.length) event.preventDefault(); });
    },
    save(decision) {
      const key = attempt(() => inTab.add(decision), null);
      unsaved.push({ ...decision, key });
      tell("saving …", "waiting");
      remote.pump();
      return true;
    },
    async pump() {
      if (isBusy) return;
      isBusy = true;
      try {
        do {
          const decision = unsaved[0];
          const answer = await remote.ask(decision);
          if (decision) {
            unsaved.shift();
            attempt(() => inTab.remove(decision.key));
          }
          remote.receive(answer);
        } while (unsaved.length);
        complain("");
        if (state.kind) tell("saved");
      } catch (error) {
        const count = unsaved.length;
        tell(count ? `${count} not saved` : "no server", "failed");
        complain(count ? `${count === 1 ? "A decision is" : `${count} decisions are`} not saved: ${error.message}` : error.message);
        refresh();
      } finally {
        isBusy = false;
      }
    },
    async ask(decision) {
      const headers = { "X-Review-Key": server.key, "X-Review-Identity": settings.identity };
      const request = { headers, cache: "no-store" };
      if (decision) {
        const { index, action, label, reviewer } = decision;
        Object.assign(request, { method: "POST", body: JSON.stringify({ index, action, label, reviewer }) });
        headers["Content-Type"] = "application/json";
      }
      let response;
      try {
        response = await fetch(`decisions?after=${end}`, request);
      } catch {
        throw new Error("The server does not answer. Start lnl label review again; this page then goes on by itself.");
      }
      const answer = await response.json().catch(() => ({ error: `The server answered ${response.status}.` }));
      if (!response.ok) throw new Error(answer.error);
      return answer;
    },
    receive(answer) {
      if (answer.start === 0 && end > 0) saved.clear();  // another file than before
      const here = ofThisList(answer.decisions);
      if (here.length < answer.decisions.length) problems.add("decisions.jsonl has decisions on images or classes that are not in this list: they are kept there, but not shown.");
      here.forEach(wasWhole ? enter : takeOver);
      answer.problems.forEach(problem => problems.add(problem));
      end = answer.end;
      if (!wasWhole) { wasWhole = true; show(firstOpen()); }
      if (here.length || answer.problems.length) refresh();
    },
  };
  const store = server ? remote : browser;

  function takeOver(decision) {  // from an earlier visit, which can be undone too
    if (decision.reviewer === reviewer) {
      const last = past.at(-1);
      const takesBack = last && last.index === decision.index && (last.before?.label ?? null) === decision.label && (last.before?.action ?? "undo") === decision.action;
      if (takesBack) past.pop();
      else if (decision.action !== "undo") remember(decision);
    }
    enter(decision);
  }

  // -------------------------------------------------------------------------------------------------------- the list

  const HEIGHT = 56;  // pixels of one row, as in the style
  const OVER = 8;  // rows drawn beyond what is seen
  let entries = [];  // of the list: the number of a row, or { pair } above the rows of a pair of classes
  let listed = new Set();  // the rows among them
  let at = -1;  // the entry that is looked at
  const drawn = new Map();  // entry -> its element, and how to renew it

  const pairOf = row => rows.given[row] * (classes.length + 1) + rows.proposed[row];
  const pairName = row => `${rows.given[row] < 0 ? "" : `${name(rows.given[row])} → `}${rows.proposed[row] < 0 ? "no proposal" : name(rows.proposed[row])}`;

  const SHOWN = {
    all: () => true,
    open: found => !found.decisions.size,
    mine: found => !found.mine,
    reviewed: found => found.isReviewed,
    skipped: found => found.isSkipped,
    conflict: found => found.isConflict,
  };
  function compose() {
    const wanted = { given: element("by-given").value, proposed: element("by-proposed").value, file: element("by-file").value.toLowerCase() };
    const shows = SHOWN[element("by-state").value];
    const fits = row => (wanted.given === "" || rows.given[row] === Number(wanted.given))
      && (wanted.proposed === "" || rows.proposed[row] === Number(wanted.proposed))
      && (wanted.file === "" || rows.file[row].toLowerCase().includes(wanted.file))
      && shows(result(rows.index[row]));
    const fitting = [];
    for (let row = 0; row < total; row++) if (fits(row)) fitting.push(row);
    listed = new Set(fitting);
    entries = element("order").value === "pair" ? byPair(fitting) : fitting;
  }
  function byPair(fitting) {
    const pairs = new Map();
    for (const row of fitting) pairs.has(pairOf(row)) ? pairs.get(pairOf(row)).push(row) : pairs.set(pairOf(row), [row]);
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
    for (const [entry, { made }] of drawn) if (entry < from || entry >= to) { made.remove(); drawn.delete(entry); }
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
      count.textContent = `${number(members.length)} ${members.length === 1 ? "image" : "images"}, ${number(done)} reviewed`;
    };
    return { made, renew };
  }
  function rowLine(entry) {
    const row = entries[entry];
    const mark = make("span");
    const share = rows.probability[row];
    const numbers = make("span", { className: "numbers" }, share === null ? "" : percent(share), mark);
    const words = make("span", {}, make("b", { textContent: pairName(row) }), make("small", { textContent: rows.file[row] }));
    const made = make("div", { className: settings.has_images ? "row" : "row plain", id: `entry-${entry}`, role: "option" });
    if (settings.has_images) made.append(pictureOf(rows.index[row], "", true));
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

  // ------------------------------------------------------------------------------------------------------ the image

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
    const list = element("list"), top = entry * HEIGHT;
    if (top < list.scrollTop + HEIGHT || top + 2 * HEIGHT > list.scrollTop + list.clientHeight) list.scrollTop = top - list.clientHeight / 3;
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
    element("proposed").textContent = name(rows.proposed[row]);
    const share = rows.probability[row];
    element("doubt").hidden = share === null;
    const hasLabel = rows.given[row] >= 0, hasProposal = rows.proposed[row] >= 0;
    const claim = hasLabel ? "likely to be wrong" : "likely to be right";
    element("doubt").querySelector("span").textContent = share === null ? "" : `${percent(share)} ${claim}`;
    element("doubt").className = `doubt ${hasLabel ? "" : "of-proposal"}`;
    element("doubt").querySelector("i").style.width = `${100 * (share ?? 0)}%`;
    element("keep").disabled = !hasLabel;
    element("keep").querySelector("span").textContent = hasLabel ? `Keep ${name(rows.given[row])}` : "No label to keep";
    element("change").disabled = !hasProposal;
    element("change").querySelector("span").textContent = hasProposal ? `${hasLabel ? "Change to" : "Label as"} ${name(rows.proposed[row])}` : "No class proposed";
    element("picture").replaceWith(Object.assign(settings.has_images ? pictureOf(index, rows.file[row]) : make("div", { className: "picture", textContent: "no image: only features" }), { id: "picture" }));
    renderNeighbours(row);
    element("work").scrollTop = 0;
    window.scrollTo(0, 0);
  }
  function renderNeighbours(row) {
    const near = rows.neighbours[row].map((index, i) => ({ index, label: rows.neighbour_labels[row][i] })).filter(({ index }) => index >= 0);
    element("evidence").hidden = !near.length;
    const count = label => near.filter(neighbour => neighbour.label === label && label >= 0).length;
    const parts = [[rows.proposed[row], "as proposed"], [rows.given[row], "as given"]].filter(([label]) => label >= 0);
    const votes = label => count(label) > 1 ? `${count(label)} are` : count(label) ? "1 is" : "none is";
    element("votes").hidden = !parts.length;
    element("votes").textContent = `Of the ${near.length} nearest, ${parts.map(([label, how]) => `${votes(label)} labelled ${name(label)}, ${how}`).join("; ")}.`;
    element("neighbours").replaceChildren(...near.map(({ index, label }) => {
      const kind = label < 0 ? "" : label === rows.given[row] ? "as-given" : label === rows.proposed[row] ? "as-proposed" : "";
      const caption = make("figcaption", { className: kind, textContent: name(label) });
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
    for (const button of element("classes").children) button.setAttribute("aria-pressed", String(label === classes[button.value]));
    const lines = [...found.decisions.values()].map(decision => make("li", { textContent: sentence(decision) }));
    if (found.isConflict) lines.push(make("li", { className: "differ", textContent: "⚠ Reviewers differ: both decisions are kept until one of them changes theirs." }));
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

  // ------------------------------------------------------------------------------------------ expected against found

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

  // --------------------------------------------------------------------------------------------------------- actions

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

  // ------------------------------------------------------------------------------------------------- another class

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

  // ---------------------------------------------------------------------------------------------------------- export

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

  // ----------------------------------------------------------------------------------------------------------- start

  function fillChoices() {
    for (const [id, labels] of [["by-given", rows.given], ["by-proposed", rows.proposed]]) {
      const counts = new Map();
      for (const label of labels) counts.set(label, (counts.get(label) ?? 0) + 1);
      const known = [...counts.keys()].sort((a, b) => a - b);
      element(id).append(make("option", { value: "", textContent: "any" }), ...known.map(label => make("option", { value: label, textContent: `${name(label)} (${number(counts.get(label))})` })));
    }
    const hasDigits = classes.length <= LARGEST_DIGITS;
    element("digits").hidden = element("classes").hidden = !hasDigits;
    if (!hasDigits) return;
    element("classes").append(...classes.map((text, label) => {
      const button = make("button", { type: "button", value: String(label) }, make("kbd", { textContent: String((label + 1) % 10) }), make("span", { textContent: text }));
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
    for (const [id, key] of [["keep", "k"], ["change", "c"], ["skip", "s"], ["undo", "u"], ["other", "/"]]) click(id, ACTIONS[key]);
    click("again", () => remote.pump());
    click("export-json", exportJson);
    click("export-csv", exportCsv);
    for (const id of ["by-given", "by-proposed", "by-state", "order"]) {
      element(id).addEventListener("change", () => { element(id).blur(); choice(); });  // keys decide again
    }
    element("by-file").addEventListener("input", choice);
    element("reviewer").addEventListener("change", rename);
    for (const id of ["by-file", "reviewer"]) {
      element(id).addEventListener("keydown", event => { if (["Enter", "Escape"].includes(event.key)) element(id).blur(); });
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
    : "This page is a file: decisions stay in this browser until you export them. The command lnl label import reads both files.";
  fillChoices();
  listen();
  store.start();
  choice();
})();
