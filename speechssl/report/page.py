"""The report of training runs: one HTML file that needs no other."""

from collections.abc import Mapping, Sequence
from datetime import date
from html import escape
from itertools import groupby
from pathlib import Path

from speechssl import __version__
from speechssl.files import write_text_file
from speechssl.report.curves import fitting, make_charts, meaning_of
from speechssl.report.markup import sample_of_line, section
from speechssl.report.reliability import describe_reliability
from speechssl.report.results import (
    describe_confusions,
    describe_differences,
    describe_scores,
    describe_transcripts,
    find_results,
)
from speechssl.report.run import Run, read_runs
from speechssl.report.samples import describe_samples
from speechssl.report.setup import describe_data, describe_machines, describe_settings
from speechssl.report.style import STYLE
from speechssl.report.summary import describe_remarks, describe_run, find_remarks
from speechssl.report.svg import Chart, draw, show
from speechssl.train.curves import Curves, read_curves


def write_report(folders: Sequence[Path], output: Path, references: Sequence[Path] = ()) -> None:
    """Write what the folders of training runs tell into one HTML file.

    Raises:
        SpeechSSLError: a folder holds no run, or a file in it or a reference is damaged.
    """
    write_text_file(output, make_page(read_runs(folders), {path: read_curves(path) for path in references}))


def make_page(runs: Sequence[Run], references: Mapping[Path, Curves]) -> str:
    """Return the page."""
    by_stage = {stage: list(group) for stage, group in groupby(sorted(runs, key=_stage_order), lambda run: run.stage)}
    results = find_results(runs)
    remarks = [find_remarks(run, references) for run in runs]
    cards = "".join(describe_run(run, results, len(own)) for run, own in zip(runs, remarks, strict=True))
    sections = [
        ("Warnings", "warnings", describe_remarks(runs, remarks, references)),
        *((f"Curves: {stage}", f"curves-{stage}", _curves(group, references)) for stage, group in by_stage.items()),
        ("Transcripts over time", "samples", describe_samples(runs)),
        ("Scores", "scores", describe_scores(results) + describe_differences(results)),
        ("Confidence", "confidence", describe_reliability(results)),
        ("Transcripts", "transcripts", describe_transcripts(results)),
        ("Most frequent mistakes", "mistakes", describe_confusions(results)),
        ("Data", "data", describe_data(runs)),
        *(
            (f"Settings: {stage}, where they differ from the defaults", f"settings-{stage}", describe_settings(group))
            for stage, group in by_stage.items()
        ),
        ("Machines", "machines", describe_machines(runs)),
    ]
    links = "".join(f"<a href=#{name}>{escape(title.partition(',')[0])}</a>" for title, name, body in sections if body)
    title = f"Training of {', '.join(run.name for run in runs)}"
    return (
        f"<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><title>{escape(title)}</title>"
        f'<meta name=viewport content="width=device-width, initial-scale=1"><style>{STYLE}</style></head><body>'
        f"<header><h1>{escape(title)}</h1><p class=note>speechssl {__version__}, {date.today().isoformat()}</p>"
        f"<nav>{links}</nav></header><main><div class=cards>{cards}</div>"
        f"{''.join(section(*parts) for parts in sections)}</main></body></html>\n"
    )


def _stage_order(run: Run) -> int:
    return ("pretrain", "finetune").index(run.stage)


def _curves(runs: Sequence[Run], references: Mapping[Path, Curves]) -> str:
    charts = make_charts(runs, fitting(references, runs))
    keys = [f"<span>{sample_of_line(style)}{escape(run.name)}</span>" for style, run in enumerate(runs)]
    keys.append("<span class=note>thick with markers: dev; thin: train</span>")
    if any(chart.bands for chart in charts.values()):
        block = '<svg viewBox="0 0 40 16" aria-hidden=true><path class=block d="M0 1H40V15H0z"/></svg>'
        keys.append(f"<span>{block}where healthy runs lie</span>")
    figures = "".join(_figure(metric, chart) for metric, chart in charts.items())
    return f"<div class=legend>{''.join(keys)}</div><div class=charts>{figures}</div>"


def _figure(metric: str, chart: Chart) -> str:
    meaning = escape(meaning_of(metric))
    ends = "; ".join(
        f"{escape(line.label)} {show(line.points[-1][1], is_percent=chart.is_percent)}" for line in chart.lines
    )
    caption = f"<figcaption><h3>{escape(chart.title)}</h3><p class=meaning>{meaning}</p></figcaption>"
    return f"<figure>{caption}{draw(chart)}<p class=ends>at the end: {ends}</p></figure>"
