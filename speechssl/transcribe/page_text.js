"use strict";

const single = (text) => text.replace(/\s+/gu, " ").trim();

function clock(seconds) {
  const whole = Math.floor(seconds);
  const parts = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return (parts[0] ? parts : parts.slice(1)).map((part, place) => String(part).padStart(place ? 2 : 1, "0")).join(":");
}

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/**
 * Return the nodes of a text. Words of the segment before and behind what was changed keep their times and confidences.
 */
function textNodes(segment, text, thresholds) {
  const nodes = [];
  let position = 0;
  for (const { begin, end, word } of placeWords(segment, text)) {
    nodes.push(text.slice(position, begin), wordElement(text.slice(begin, end), word, thresholds));
    position = end;
  }
  return nodes;
}

/** Return where words of the segment stand in a text that was made of it, and what is new as one more. */
function placeWords(segment, text) {
  const before = segment.text;
  const shorter = Math.min(before.length, text.length);
  const shift = text.length - before.length;
  let head = 0;
  let tail = 0;
  while (head < shorter && before[head] === text[head]) head++;
  while (tail < shorter - head && before.at(-1 - tail) === text.at(-1 - tail)) tail++;
  const isSpace = (place) => (text[place] ?? " ") === " ";
  const placed = [];
  let numBefore = 0; // words before the change
  let start = null; // when what was changed begins
  let position = 0;
  for (const word of segment.words) {
    const begin = position && !word.joined ? position + 1 : position;
    const end = (position = begin + word.text.length);
    if (end < head || (end === head && isSpace(end))) numBefore = placed.push({ begin, end, word });
    else {
      start ??= word.start;
      const isAfter = begin > before.length - tail || (begin === before.length - tail && isSpace(begin + shift - 1));
      if (isAfter) placed.push({ begin: begin + shift, end: end + shift, word });
    }
  }
  const from = placed[numBefore - 1]?.end ?? 0;
  const changed = text.slice(from, placed[numBefore]?.begin ?? text.length);
  if (changed.trim()) {
    const begin = from + changed.length - changed.trimStart().length;
    const word = { start: start ?? segment.end, isChanged: true };
    placed.splice(numBefore, 0, { begin, end: begin + changed.trim().length, word });
  }
  return placed;
}

function wordElement(text, word, [doubtful, unsure]) {
  const made = element("span", { className: "word", textContent: text });
  made.dataset.start = word.start;
  if (word.isChanged) made.classList.add("changed");
  else {
    made.title = `${clock(word.start)}, confidence ${Math.floor(100 * word.confidence)} %`;
    if (word.confidence < unsure) made.classList.add(word.confidence < doubtful ? "doubtful" : "unsure");
  }
  return made;
}
