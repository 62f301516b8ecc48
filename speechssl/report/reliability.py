"""How often words of each confidence are right, drawn against where they would be if confidences were probabilities."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from speechssl.report.results import Result
from speechssl.report.style import STYLE
from speechssl.report.svg import Chart, Line, draw
from speechssl.scoring.bootstrap import Interval

_IDEAL = Line("as it should be", [(0.0, 0.0), (1.0, 1.0)], style=6)


def draw_reliability(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the reliability diagram of evaluations, as `Evaluation` is in JSON, by their names."""
    lines = [
        Line(
            name, [(found["confidence"], found["share_right"]) for found in content["reliability"]["bins"]], style, True
        )
        for style, (name, content) in enumerate(evaluations.items())
        if content.get("reliability")
    ]
    chart = Chart("share of right words", [_IDEAL, *lines], is_percent=True, from_zero=True, x_label="confidence")
    return draw(chart)


def reliability_picture(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the diagram as a file that needs no other."""
    head, end, rest = draw_reliability(evaluations).partition(">")
    return f'{head} xmlns="http://www.w3.org/2000/svg"{end}<style>{STYLE}</style>{rest}\n'


def describe_reliability(results: Sequence[Result]) -> str:
    """Return a figure for each evaluation that has confidences."""
    figures = []
    for result in results:
        if reliability := result.content.get("reliability"):  # evaluations of earlier versions have none
            caption = f"<figcaption><h3>{escape(result.label)}</h3><p class=meaning>{escape(result.test[0])}</p>"
            found = f"{result.content['confidences']}, ECE % {Interval(**reliability['error']).show()}"
            chart = draw_reliability({result.label: result.content})
            figures.append(f"<figure>{caption}</figcaption>{chart}<p class=ends>{found}</p></figure>")
    note = "<p class=note>Words by tenths of confidence: how many of them are right. The thin line is where they would "
    note += "be if confidences were probabilities.</p>"
    return f"{note}<div class=charts>{''.join(figures)}</div>" if figures else ""
