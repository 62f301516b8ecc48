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
function placeWords({ words, end: lastSecond }, text) {
  const isSpace = (place) => (text[place] ?? " ") === " ";
  const [head, tail] = [[], []];
  let from = 0;
  for (const [index, word] of words.entries()) {
    const begin = from && !word.joined ? from + 1 : from;
    const end = begin + word.text.length;
    const isWhole = isSpace(end) || words[index + 1]?.joined;
    if (text.slice(begin, end) !== word.text || !(begin === from || isSpace(from)) || !isWhole) break;
    head.push({ begin, end, word });
    from = end;
  }
  const rest = words.slice(head.length);
  let to = text.length;
  while (tail.length < rest.length) {
    const word = rest.at(-1 - tail.length);
    const begin = to - word.text.length;
    if (begin < from || text.slice(begin, to) !== word.text || !(word.joined || isSpace(begin - 1))) break;
    tail.unshift({ begin, end: to, word });
    to = word.joined ? begin : begin - 1;
  }
  const changed = text.slice(from, Math.max(from, to));
  const begin = from + changed.length - changed.trimStart().length;
  const word = { start: rest[0]?.start ?? lastSecond, isChanged: true };
  const middle = changed.trim() ? [{ begin, end: begin + changed.trim().length, word }] : [];
  return [...head, ...middle, ...tail];
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
