// Where decisions are kept: in this browser where the page is a file, else on the server's disk.

let made = 0;  // decisions on this visit, to keep those of one millisecond in order
function memory(storage, kind) {  // one entry for each decision, so that two tabs never overwrite each other
  const prefix = `lnl-review ${settings.identity} ${kind} `;
  const keys = () => Object.keys(storage).filter(key => key.startsWith(prefix)).sort();
  return {
    prefix,
    all: () => keys().map(key => ({ ...JSON.parse(storage.getItem(key)), key })),
    add(decision) {
      const key = `${prefix}${decision.at} ${String(made++).padStart(6, "0")} ${Math.random()}`;
      storage.setItem(key, JSON.stringify(decision));
      return key;
    },
    remove: key => storage.removeItem(key),
  };
}
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
    if (!onDisk) return complain("This browser keeps nothing of a file: open the page with lnl label review instead.");
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
      complain(`${decision.file}: not saved, for this browser has no room left (${error.name}). Export what is there.`);
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
const ELSEWHERE = "Some decisions in decisions.jsonl are on images or classes that are not in this list: they stay.";
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
      const what = count ? `${quantity(count, "decision is", "decisions are")} not saved: ` : "";
      complain(`${what}${error.message}`);
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
    const isAnother = answer.start === 0 && end > 0;  // file than before
    if (isAnother) saved.clear();
    const here = ofThisList(answer.decisions);
    if (here.length < answer.decisions.length) problems.add(ELSEWHERE);
    here.forEach(wasWhole ? enter : takeOver);
    answer.problems.forEach(problem => problems.add(problem));
    end = answer.end;
    if (!wasWhole) { wasWhole = true; show(firstOpen()); }
    if (isAnother || here.length || answer.problems.length) refresh();
  },
};
const store = server ? remote : browser;

function takeOver(decision) {  // from an earlier visit, which can be undone too
  if (decision.reviewer === reviewer) {
    const last = past.at(-1);
    const [action, label] = [last?.before?.action ?? "undo", last?.before?.label ?? null];
    const takesBack = last?.index === decision.index && action === decision.action && label === decision.label;
    if (takesBack) past.pop();
    else if (decision.action !== "undo") remember(decision);
  }
  enter(decision);
}
