"""The look of a report: light and dark, narrow and wide, on paper, and for the color-blind."""

# The colors of Okabe and Ito (https://jfly.uni-koeln.de/color/), told apart with any kind of color vision; where two
# runs share a color, and in print, dashes and markers differ.
STYLE = """
:root {
  color-scheme: light dark;
  --page: #fff; --text: #1b1f24; --quiet: #59636e; --rule: #d8dee4; --box: #f5f7f9; --band: #8b949e40;
  --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a0447a; --c4: #b07a00; --c5: #3a8fc2;
  --c6: #1b1f24; --c7: #7a6f00;
  --wrong: #b42318; --added: #9a5b00;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14181d; --text: #e6e9ed; --quiet: #9da7b1; --rule: #353c44; --box: #1d232a; --band: #9da7b138;
    --c0: #56b4e9; --c1: #f08a3c; --c2: #2cc197; --c3: #dd8fbf; --c4: #e69f00; --c5: #8fcbf0;
    --c6: #e6e9ed; --c7: #f0e442;
    --wrong: #ff8d7e; --added: #f0b25a;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 1.2rem; max-width: 82rem; background: var(--page); color: var(--text);
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: break-word;
}
h1 { font-size: 1.6rem; line-height: 1.25; margin: .2rem 0; }
h2 { font-size: 1.25rem; margin: 2.2rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.2rem 0 .3rem; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin: .6rem 0; }
a { color: var(--c0); }
p { margin: .3rem 0; max-width: 60rem; }
.note, .meaning { color: var(--quiet); font-size: .875rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(18rem, 100%), 1fr)); gap: .8rem; }
.cards { align-items: start; margin: 1rem 0; }
.card { background: var(--box); border: 1px solid var(--rule); border-radius: 6px; padding: .7rem .9rem; }
.card h3 { margin: 0 0 .3rem; }
.card dl { display: grid; grid-template-columns: 1fr auto; gap: .05rem .8rem; margin: 0; font-size: .9rem; }
.card dt { color: var(--quiet); }
.card dd { white-space: nowrap; margin: 0; text-align: right; font-variant-numeric: tabular-nums; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); gap: 0 1.4rem; }
figure {
  margin: 0; min-width: 0; break-inside: avoid;
  display: grid; grid-template-rows: subgrid; grid-row: span 3; gap: .2rem;
}
figcaption h3 { margin: 0; }
.meaning { line-height: 1.3; margin: 0; }
.ends { margin-bottom: 1.1rem; font-size: .8rem; color: var(--quiet); line-height: 1.35; }
.chart { display: block; width: 100%; height: auto; }
.chart text { fill: var(--quiet); font: 11px system-ui, sans-serif; }
.chart .small { font-size: 10px; }
.grid, .axis { stroke: var(--rule); stroke-width: 1; fill: none; }
.axis { stroke: var(--quiet); }
.band { fill: var(--band); stroke: none; }
.level { stroke: var(--quiet); stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
.bar { fill: var(--c0); }
.line { fill: none; stroke: var(--color); stroke-linejoin: round; }
.thin { stroke-width: 1.1; opacity: .8; }
.strong { stroke-width: 2.2; }
.mark { fill: var(--page); stroke: var(--color); stroke-width: 1.5; }
.s0 { --color: var(--c0); } .s1 { --color: var(--c1); } .s2 { --color: var(--c2); } .s3 { --color: var(--c3); }
.s4 { --color: var(--c4); } .s5 { --color: var(--c5); } .s6 { --color: var(--c6); } .s7 { --color: var(--c7); }
.line.s1, .line.s5 { stroke-dasharray: 7 3; } .line.s2, .line.s6 { stroke-dasharray: 2 2.5; }
.line.s3, .line.s7 { stroke-dasharray: 9 3 2 3; }
.legend { display: flex; flex-wrap: wrap; gap: .2rem 1.4rem; margin: .5rem 0 1rem; font-size: .9rem; }
.legend svg { width: 2.6rem; height: .9rem; vertical-align: -.1rem; margin-right: .35rem; }
.legend .block { fill: var(--band); }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; margin: .4rem 0; }
th, td { padding: .25rem .9rem .25rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { color: var(--quiet); font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
code { font: .875em ui-monospace, monospace; }
.warning { border-left: 4px solid var(--added); background: var(--box); padding: .5rem .8rem; margin: .5rem 0; }
.interval { width: 11rem; height: 1.1rem; vertical-align: middle; }
.interval .line { stroke-width: 2; stroke-dasharray: none; }
.texts td:first-child { color: var(--quiet); white-space: nowrap; }
.texts tr.reference td { border-top: 2px solid var(--rule); font-weight: 600; }
ins { color: var(--added); text-decoration: underline; text-decoration-thickness: 2px; }
del { color: var(--wrong); text-decoration: line-through; opacity: .85; }
mark.changed { color: var(--wrong); background: none; text-decoration: underline wavy; font-weight: 600; }
details summary { cursor: pointer; }
@media (max-width: 40rem) {
  body { padding: .8rem; font-size: 15px; }
  .table table, .table tbody, .table tr { display: block; }
  .table thead { display: none; }
  .table tr { border-bottom: 1px solid var(--rule); padding: .4rem 0; }
  .table td, .table td.number {
    display: grid; grid-template-columns: 8rem 1fr; gap: .6rem; border: 0; padding: 0;
    text-align: left; white-space: normal;
  }
  .table td::before { content: attr(data-name); color: var(--quiet); }
  .texts, .texts tbody, .texts tr, .texts td { display: block; border: 0; padding: 0; }
  .texts td:first-child { font-size: .8rem; margin-top: .3rem; white-space: normal; }
  .texts tr.reference { border-top: 2px solid var(--rule); margin-top: .6rem; padding-top: .3rem; }
  .texts tr.reference td { border: 0; }
}
@media print {
  :root {
    --page: #fff; --text: #000; --quiet: #444; --rule: #bbb; --box: #fff; --band: #8884;
    --c0: #0072b2; --c1: #d55e00; --c2: #009e73; --c3: #a0447a; --c4: #b07a00; --c5: #3a8fc2;
    --c6: #000; --c7: #7a6f00;
    --wrong: #900; --added: #740;
  }
  html { font-size: 10px; }
  body { font-size: 10px; padding: 0; max-width: none; }
  .table { overflow: visible; }
  .interval { width: 9rem; }
  nav { display: none; }
  .charts { grid-template-columns: repeat(3, 1fr); }
  tr, .card, .warning { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""
