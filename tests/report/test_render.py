import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest

from nanochat.paths import RunPaths
from nanochat.report.collect import ReportData, StageReport, collect_report
from nanochat.report.html import render_html
from nanochat.report.markdown import render_markdown

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Outline(HTMLParser):
    """Tags in order; fails where they are not properly nested."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_markdown_shows_stages_scores_settings_and_samples(run: RunPaths) -> None:
    text = render_markdown(collect_report(run))
    assert "| base | done | 4 | 8,192 | 5 min 12 s | 1,002 | - | 2.5000 | 1.2500 |" in text
    assert "| mid | unfinished | 1 | 4,096 | 7.0 s | - | - | 2.5000 | - |" in text
    assert "| total |  |  |  | 5 min 32 s |" in text
    assert "| letters | - | 75.0 % +- 21.6 | - | 4 | 1 |" in text
    assert "| bpb | 1.2500 | - | - | - | - |" in text
    assert "| `base.matrix_lr` | `0.02` | --set |" in text
    assert "\n    Once upon a time\n" in text and "early" not in text
    assert "Stage sft: not run." in text
    assert "left out line 4 (cut short)" in text


def test_html_shows_the_same_and_a_plot_for_each_curve(run: RunPaths) -> None:
    text = render_html(collect_report(run))
    for piece in ("75.0 % +- 21.6", "5 min 12 s", "<b>Once</b> upon a time", "Stage sft: not run.", "--set", "2.9.0"):
        assert piece in text
    assert Outline(text).tags.count("svg") == 3  # train loss and bpb of base, train loss of mid


def test_the_page_needs_no_script_and_no_other_file(run: RunPaths) -> None:
    outline = Outline(render_html(collect_report(run)))
    assert not {"script", "link", "img", "iframe"} & set(outline.tags)
    assert not [name for name, _ in outline.attributes if name == "src" or name.startswith("on")]
    assert all(value.startswith("#") for name, value in outline.attributes if name == "href" and value)


def test_no_text_of_a_file_becomes_a_tag_of_the_page(run: RunPaths, attacked: RunPaths) -> None:
    text = render_html(collect_report(attacked))
    outline = Outline(text)
    assert "script" not in outline.tags
    assert text.count("&lt;script&gt;") >= 10
    assert "\x1b" not in text


def test_no_text_of_a_file_becomes_markup_of_the_markdown(attacked: RunPaths) -> None:
    text = render_markdown(collect_report(attacked))
    assert "\x1b" not in text
    for line in text.splitlines():
        if line.startswith("    "):
            continue  # a code block: literal
        bare = re.sub(r"\\.", "", re.sub(r"(?<!\\)`[^`]*`", "", line))
        assert "<" not in bare and "**" not in bare and "`" not in bare, line
    tables = re.findall(r"(?:^\|.*\n)+", text, re.M)
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table


def test_the_same_files_give_the_same_text(run: RunPaths) -> None:
    assert render_html(collect_report(run)) == render_html(collect_report(run))
    assert render_markdown(collect_report(run)) == render_markdown(collect_report(run))


@pytest.mark.parametrize("render", [render_html, render_markdown])
def test_an_empty_run_says_what_was_not_run(tmp_path: Path, render) -> None:
    text = render(collect_report(RunPaths(tmp_path / "nothing")))
    for stage in ("tokenizer", "base", "mid", "sft"):
        assert f"Stage {stage}: not run." in text
    assert "Evaluation: not run." in text and "No settings are saved." in text


def test_plots_are_well_formed_xml(run: RunPaths) -> None:
    plots = [ET.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", render_html(collect_report(run)), re.S)]
    assert len(plots) == 3
    for plot in plots:
        curves = [line for line in plot.iter() if line.tag.endswith("polyline")]
        assert curves and all(len(line.attrib["points"].split()) >= 2 for line in curves)


def test_text_that_was_repeated_is_said() -> None:
    stages = tuple(StageReport("base", "done", result={"epochs": epochs}) for epochs in (140.2, 1.0))
    for render in (render_markdown, render_html):
        report = render(ReportData("r", stages=stages))
        assert report.count("The text repeats: training goes through it about 140 times.") == 1
        assert report.count("The text repeats") == 1
