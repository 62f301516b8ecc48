// Sections: what is shown, what is heard, what is edited, what is kept, keys. Follows page_text.js.

const LEAD_SECONDS = 0.1; // the model notices a word a little after it begins
const byId = (id) => document.getElementById(id);
const data = JSON.parse(byId("data").textContent);
const audio = byId("audio");
const key = `speechssl ${location.pathname} `;
const rows = data.segments.map((segment, index) => ({ index, segment, span: data.spans[index], text: segment.text }));
let current = -1; // the row that is heard or has the focus
let edited = null; // the row whose text is edited
let now = null; // the word that is heard
let frame = 0; // the next call of `follow`
let isSaved = true;

// ---- what is shown

function build(row) {
  const at = clock(row.span[0]);
  row.time = element("button", { type: "button", className: "time", textContent: at, tabIndex: -1, title: "Play" });
  row.area = element("div", { className: "text", dir: "auto", lang: "", tabIndex: 0, spellcheck: false });
  row.area.setAttribute("role", "textbox");
  row.area.setAttribute("aria-label", `Segment ${row.index + 1}, ${at}`);
  row.box = element("input", { type: "checkbox", tabIndex: -1 });
  const label = element("label", { title: "What is written here is what is said" }, row.box, "checked");
  const editing = element("button", { type: "button", textContent: "Edit", tabIndex: -1 });
  row.item = element("li", {}, row.time, row.area, element("div", { className: "tools" }, editing, label));
  row.time.onclick = () => play(row.span[0]);
  row.box.onchange = () => change(row.box.checked, row);
  editing.onclick = () => edit(row);
  const listeners = {
    focus: () => moveTo(row),
    blur: () => edited === row && document.activeElement !== row.area && stopEditing(), // not for another window
    click: (event) => edited !== row && playWord(event.target.closest(".word")),
    dblclick: () => edited !== row && edit(row, true),
    beforeinput: (event) => onInput(row, event),
    input: () => {
      row.text = single(row.area.innerText); // pasted lines stay apart
      change(true, row);
    },
  };
  for (const [name, listener] of Object.entries(listeners)) row.area.addEventListener(name, listener);
  show(row);
  return row.item;
}

function show(row) {
  row.area.replaceChildren(...textNodes(row.segment, row.text, data.thresholds));
  row.box.checked = Boolean(row.isChecked);
  row.item.classList.toggle("is-checked", row.box.checked);
}

function notify(text, ...buttons) {
  byId("notices").append(element("p", {}, text, " ", ...buttons));
}

function showCount() {
  const number = rows.filter((row) => row.isChecked).length;
  byId("save").disabled = !number;
  byId("save").textContent = isSaved && number ? "Saved" : `Save ${number} checked`;
  byId("count").textContent = `${number} of ${rows.length} checked`;
}

// ---- what is heard

function play(seconds) {
  audio.currentTime = Math.max(0, seconds);
  audio.play().catch(() => {}); // the audio element tells of errors
}

function playWord(word) {
  if (!word) return;
  mark(word);
  play(word.dataset.start - LEAD_SECONDS);
}

function toggle() {
  const [start, end] = edited ? edited.span : [0, Infinity];
  if (!audio.paused) audio.pause();
  else play(audio.currentTime < start || audio.currentTime >= end ? start : audio.currentTime);
}

function mark(word) {
  now?.classList.remove("now");
  word?.classList.add("now");
  now = word;
}

function setCurrent(index) {
  if (index === current) return;
  rows[current]?.item.classList.remove("current");
  rows[index].item.classList.add("current");
  rows[index].item.scrollIntoView({ block: "nearest" });
  current = index;
}

function moveTo(row) {
  if (row.index === current) return;
  setCurrent(row.index);
  mark(null);
  audio.currentTime = row.span[0];
}

/** Show what is heard; while a text is edited, stop at its end. */
function follow() {
  const time = audio.currentTime + LEAD_SECONDS;
  if (edited && !audio.paused && audio.currentTime >= edited.span[1]) audio.pause();
  const heard = rows.findLast((row) => row.span[0] <= time) ?? rows[0];
  if (heard && !edited && !audio.paused) setCurrent(heard.index);
  if (heard && !audio.paused) {
    const words = [...heard.area.querySelectorAll(".word")];
    mark(words.findLast((word) => Number(word.dataset.start) <= time + 0.001) ?? null);
    cancelAnimationFrame(frame);
    frame = requestAnimationFrame(follow);
  }
}

// ---- what is edited

function edit(row, hasSelection = false) {
  stopEditing();
  setCurrent(row.index);
  edited = row;
  row.area.contentEditable = "true"; // where the next line means nothing
  try {
    row.area.contentEditable = "plaintext-only";
  } catch {}
  row.area.focus();
  row.item.classList.add("edited");
  const word = row.area.contains(now) ? now : row.area.querySelector(".word");
  if (!hasSelection) getSelection().collapse(word?.firstChild ?? row.area, 0);
}

function stopEditing() {
  if (!edited) return;
  const row = edited;
  edited = null;
  row.area.contentEditable = "inherit";
  row.item.classList.remove("edited");
  show(row);
}

function leave() {
  const { area } = edited;
  stopEditing();
  area.focus();
}

/** Enter, also that of a phone: the text is right, go to the next one. */
function onInput(row, event) {
  if (["insertParagraph", "insertLineBreak"].includes(event.inputType)) {
    event.preventDefault();
    const isPlaying = !audio.paused;
    change(true, row);
    stopEditing();
    const next = rows[row.index + 1];
    if (!next) return;
    moveTo(next);
    edit(next);
    if (isPlaying) play(next.span[0]);
  }
}

function change(isChecked, ...those) {
  for (const row of those) {
    row.isChecked = isChecked;
    row.box.checked = isChecked;
    row.item.classList.toggle("is-checked", isChecked);
  }
  isSaved = false;
  keep();
}

// ---- what is kept

function touchedRows() {
  const touched = rows.filter((row) => row.isChecked || row.text !== row.segment.text);
  return touched.map(({ index, span, text, isChecked }) => ({ index, start: span[0], end: span[1], text, isChecked }));
}

/** Keep what was done in the browser, so that it survives a reload. */
function keep() {
  showCount();
  try {
    localStorage.setItem(key + data.id, JSON.stringify({ rows: touchedRows(), isSaved }));
  } catch {
    byId("storage").hidden = false;
  }
}

function restore() {
  let names = [];
  try {
    names = Object.keys(localStorage).filter((name) => name.startsWith(key));
  } catch {
    byId("storage").hidden = false;
  }
  for (const name of names) {
    const kept = JSON.parse(localStorage.getItem(name));
    if (name === key + data.id) {
      for (const { index, text, isChecked } of kept.rows) Object.assign(rows[index], { text, isChecked });
      isSaved = kept.isSaved;
    } else if (!kept.isSaved) offerEarlier(name, kept);
  }
}

function offerEarlier(name, kept) {
  const saving = element("button", { type: "button", textContent: "Save them" });
  saving.onclick = () => {
    download(kept.rows);
    localStorage.setItem(name, JSON.stringify({ ...kept, isSaved: true }));
    saving.parentElement.remove();
  };
  notify("There are unsaved corrections of an earlier transcript of this recording.", saving);
}

function save() {
  if (!rows.some((row) => row.isChecked)) return;
  download(touchedRows());
  isSaved = true;
  keep();
}

/** A table as recipes/own_data reads it, times in seconds. */
function download(touched) {
  const path = data.path.replace(/[\t\r\n]/gu, " ");
  const checked = touched.filter((row) => row.isChecked);
  const lines = checked.map(({ start, end, text }) => [path, start.toFixed(3), end.toFixed(3), single(text)].join("\t"));
  const table = ["path\tstart\tend\ttext", ...lines, ""].join("\n");
  const address = URL.createObjectURL(new Blob([table], { type: "text/tab-separated-values" }));
  const name = path.split("/").pop().replace(/\.[^.]*$/u, "");
  element("a", { href: address, download: `${name}.corrected.tsv` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 60_000);
}

// ---- keys

function step(direction) {
  const next = rows[current + direction];
  if (next) next.area.focus();
}

function stepWord(event, row) {
  const isRightToLeft = getComputedStyle(row.area).direction === "rtl";
  const words = [...row.area.querySelectorAll(".word")];
  const place = words.indexOf(now);
  const next = words[place + ((event.key === "ArrowRight") !== isRightToLeft ? 1 : -1)];
  if (next) playWord(next);
}

function onKey(event) {
  if (event.isComposing) return;
  const isCommand = event.ctrlKey || event.metaKey;
  const row = rows[current];
  const actions = {
    " ": toggle,
    ArrowDown: () => step(1),
    ArrowUp: () => step(-1),
    ArrowLeft: () => row && stepWord(event, row),
    ArrowRight: () => row && stepWord(event, row),
    Enter: () => row && (event.shiftKey ? change(!row.isChecked, row) : edit(row)),
  };
  let action = null;
  // By its place: on a Cyrillic keyboard S is another letter.
  if (isCommand && (event.code === "KeyS" || event.key === "s")) action = save;
  else if (isCommand && ["Enter", " "].includes(event.key)) action = toggle;
  else if (edited) action = event.key === "Escape" ? leave : null;
  else if (!isCommand && !event.altKey && !event.target.closest("button, audio, input, summary")) action = actions[event.key];
  if (!action) return;
  event.preventDefault();
  action();
}

restore();
byId("segments").append(...rows.map(build));
showCount();
if (!rows.length) notify("No words were found in this recording.");
if (data.audio === null) notify("The recording came from standard input, so there is none to play.");
else audio.src = data.audio;
audio.onerror = () => notify(`This browser cannot play ${data.audio}: it is not there, or in a format that it does not know.`);
audio.onplay = follow;
byId("save").onclick = save;
byId("check-all").onclick = () => {
  const others = rows.filter((row) => !row.isChecked);
  if (confirm(`Take ${others.length} segments as right that you did not check?`)) change(true, ...others);
};
document.addEventListener("keydown", onKey);
addEventListener("beforeunload", (event) => isSaved || event.preventDefault());
