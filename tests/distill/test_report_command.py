"""`fewstep report` on a real run: what it writes, keeps and refuses; and the page in a browser."""

import json
import shutil
from pathlib import Path

import pytest

import fewstep as facade
from distill.evaluation.answers import FILE, Answers
from distill.runtime.result_files import load_result
from tests.browser import Browser, chromium
from tests.distill.pages.html import check, read
from tests.forks import ROOT, fewstep

TINY = ["train.updates=2", "train.batch=4", "train.log_every=1", "evaluate.every=1", "evaluate.watch_samples=4"]
FEW = ["samples=4", "steps=[4,8]", "bootstrap=10"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that was evaluated, and reported on."""
    run = tmp_path_factory.mktemp("report") / "tiny"
    fewstep("distill", ROOT / "configs" / "smoke.yaml", "--run", run, *TINY)
    fewstep("evaluate", run, *FEW)
    _, said = fewstep("report", run, "--prompts", 2)
    assert said == f"written: {run / 'report.html'}; open it in a browser\n"
    return run


def kept(run):
    return load_result(Answers, run / FILE, "file of answers")


def test_the_page_of_a_run_has_everything(run):
    root = read((run / "report.html").read_text("utf-8"))
    check(root)
    assert [section.attributes["id"] for section in root.all("section") if "id" in section.attributes] == [
        "claim", "frontier", "cost", "figures", "texts", "canvas", "training", "tables", "settings",
    ]  # fmt: skip
    names = {plot.all("title")[0].text for plot in root.all("svg", class_="plot")}
    assert {"Quality against unigram entropy", "Quality against passes", "Quality against time", "Loss",
            "Norm of the gradient", "Watch: bigram entropy"} <= names  # fmt: skip
    assert len(root.all("article")) == 2
    assert len(root.all("figure", class_="strip")) == 3


def test_answers_are_of_the_run_s_models_after_the_same_prompts(run):
    answers = kept(run)
    # the smoke run's rows have 32 tokens, of which more than 16 are open
    assert answers.plan == (
        ("teacher", 64), ("teacher", 16), ("teacher", 8), ("student", 16), ("student", 8), ("student", 4),
    )  # fmt: skip
    assert all(answers.prompts)
    for answer in answers.answers:
        assert len(answer.texts) == 2
        assert answer.nfe <= answer.steps
        text = "".join(piece.text for piece in answer.canvas)
        assert text == answers.prompts[0] + answer.texts[0]
        numbers = [piece.number for piece in answer.canvas]
        given = sum(number == 0 for number in numbers)
        assert numbers[:given] == [0] * given
        assert set(numbers[given:]) == set(range(1, max(numbers) + 1))


def test_what_is_whole_is_not_written_again_and_what_is_missing_is(run, tmp_path):
    shutil.copytree(run, copy := tmp_path / "tiny")
    whole = kept(copy)
    values = json.loads((copy / FILE).read_text("utf-8"))
    values["answers"] = values["answers"][:5]
    values["answers"][0]["texts"][0] = "kept as it was"
    (copy / FILE).write_text(json.dumps(values), "utf-8")
    fewstep("report", copy, "--prompts", 2)
    resumed = kept(copy)
    assert resumed.answers[0].texts[0] == "kept as it was"
    assert resumed.answers[5].texts == whole.answers[5].texts
    shutil.rmtree(copy / "checkpoints" / "update-00000004" / "student-ema", ignore_errors=True)
    before = (copy / FILE).stat().st_mtime_ns
    fewstep("report", copy, "--prompts", 2)  # needs no model any more
    assert (copy / FILE).stat().st_mtime_ns == before


def test_without_prompts_no_model_is_asked(run, tmp_path):
    shutil.copytree(run, copy := tmp_path / "tiny", ignore=shutil.ignore_patterns("checkpoints", FILE))
    fewstep("report", copy, "--prompts", 0, "--out", tmp_path / "page.html")
    root = read((tmp_path / "page.html").read_text("utf-8"))
    check(root)
    assert not root.all("section", id="texts")
    assert not (copy / FILE).exists()


def test_the_facade_writes_the_same_page(run, tmp_path, capfd):
    capfd.readouterr()
    path = facade.report(run, out=tmp_path / "page.html", prompts=2)
    assert capfd.readouterr() == ("", "")
    assert path.read_bytes() == (run / "report.html").read_bytes()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["{empty}"], "is not a run folder"),
        (["{nowhere}"], "is not a run folder"),
        (["{unmeasured}"], "run fewstep evaluate"),
        (["{run}", "{run}"], "--out report.html"),
        (["{run}", "--out", "{empty}/page.txt"], "ends with .html"),
        (["{run}", "--out", "{nowhere}/page.html"], "in a folder that exists"),
        (["{bare}"], "--prompts 0"),
        (["{compared}", "{run}", "--out", "{empty}/page.html"], "give it alone"),
    ],
)
def test_a_mistake_is_one_line(run, tmp_path, words, says):
    places = {name: tmp_path / name for name in ("empty", "nowhere", "unmeasured", "bare", "compared")} | {"run": run}
    places["empty"].mkdir()
    shutil.copytree(run, places["bare"], ignore=shutil.ignore_patterns("checkpoints", FILE))
    shutil.copytree(places["bare"], places["unmeasured"], ignore=shutil.ignore_patterns("evaluation.json"))
    places["compared"].mkdir()
    shutil.copy(ROOT / "docs" / "novels-seeds.json", places["compared"] / "comparison.json")
    _, said = fewstep("report", *(word.format(**places) for word in words), code=2)
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert says in said


def test_a_comparison_s_folder_is_a_page(tmp_path):
    shutil.copy(ROOT / "docs" / "novels-seeds.json", tmp_path / "comparison.json")
    fewstep("report", tmp_path)
    check(read((tmp_path / "report.html").read_text("utf-8")))


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if chromium() is None:
        pytest.skip("there is no chromium on this machine")
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def pages(run, tmp_path_factory):
    """Files: of the run, of two runs, and of a comparison."""
    folder = tmp_path_factory.mktemp("pages")
    fewstep("report", run, run, "--prompts", 2, "--out", folder / "runs.html")
    shutil.copy(ROOT / "docs" / "novels-seeds.json", folder / "comparison.json")
    fewstep("report", folder, "--out", folder / "comparison.html")
    return {"run": run / "report.html", "runs": folder / "runs.html", "comparison": folder / "comparison.html"}


@pytest.mark.parametrize("name", ["run", "runs", "comparison"])
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, False), (1280, True)])
def test_in_a_browser_nothing_is_asked_for_nothing_fails_and_all_is_seen(browser, pages, tmp_path, name, width, dark):
    browser.open(pages[name], width=width, dark=dark, motion=False)
    assert browser.errors() == []
    assert browser.requests() == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    plots = browser.value(
        "[...document.querySelectorAll('svg.plot')].filter(p => !p.closest('details'))"
        ".map(p => [p.getBoundingClientRect().width, p.querySelectorAll('path.dot, path.line').length])"
    )
    assert plots
    assert all(wide > 250 and marks for wide, marks in plots)
    paper = browser.value("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) == dark
    browser.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 20_000


def test_tables_sort_by_click_and_by_key(browser, pages):
    browser.open(pages["run"])
    rows = "[...document.querySelectorAll('#tables table')].find(t => t.tHead.textContent.includes('tokens/s'))"
    headings = f"[...{rows}.querySelectorAll('th')]"
    column = browser.value(f"{headings}.findIndex(h => h.textContent.startsWith('judge PPL'))")
    cells = f"[...{rows}.querySelectorAll('tbody tr')].map(r => parseFloat(r.cells[{column}].textContent))"
    browser.value(f"{headings}[{column}].querySelector('button').click()")
    upward = browser.value(cells)
    assert len(upward) > 4
    assert upward == sorted(upward)
    browser.value(f"{headings}[{column}].querySelector('button').focus()")
    browser.press("Enter", 13)
    downward = browser.value(cells)
    assert downward == sorted(downward, reverse=True)
    assert browser.value(f"{headings}[{column}].ariaSort") == "descending"
    assert browser.errors() == []


def test_a_strip_steps_by_key_and_plays_and_pauses(browser, pages):
    browser.open(pages["run"], motion=False)
    strip = "document.querySelector('.strip')"
    later = f"{strip}.querySelectorAll('.later').length"
    assert browser.value(later) == 0, "without motion it stays a whole picture"
    browser.value(f"{strip}.querySelector('input').focus()")
    browser.press("ArrowLeft", 37)
    last = browser.value(f"{strip}.querySelectorAll('[data-pass=\"' + {strip}.dataset.passes + '\"]').length")
    assert browser.value(later) == last > 0
    browser.value(f"{strip}.querySelector('.play').click()")
    assert browser.value(f"{strip}.querySelector('.play').textContent") == "Pause"
    browser.value(f"{strip}.querySelector('.play').click()")
    assert browser.value(f"{strip}.querySelector('.play').textContent") == "Play"
    assert browser.errors() == []


def test_dark_mode_can_be_chosen(browser, pages):
    browser.open(pages["run"])
    paper = "getComputedStyle(document.body).backgroundColor"
    light = browser.value(paper)
    browser.value("document.getElementById('theme').click()")
    assert browser.value(paper) != light
    browser.value("document.getElementById('theme').click()")
    assert browser.value(paper) == light


CONTRAST = """
(() => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const rgb = colour => {
    canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const paper = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = rgb(getComputedStyle(e).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const worst = {};
  for (const element of document.querySelectorAll('body *')) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || ['SCRIPT', 'STYLE', 'TITLE', 'DESC', 'title', 'desc'].includes(element.tagName)) continue;
    const style = getComputedStyle(element);
    const ink = rgb(element instanceof SVGElement ? style.fill : style.color);
    const [a, b] = [light(ink), light(paper(element))].sort((x, y) => y - x);
    const ratio = (a + 0.05) / (b + 0.05);
    const name = `${element.tagName} ${element.getAttribute('class')} ${element.textContent.slice(0, 20)}`;
    if (ratio < 4.5) worst[name] = ratio;
  }
  return worst;
})()
"""


@pytest.mark.parametrize("name", ["run", "comparison"])
@pytest.mark.parametrize("dark", [False, True])
def test_every_text_stands_out_from_what_is_behind_it(browser, pages, name, dark):
    """A contrast of 4.5, as WCAG's level AA asks of text."""
    browser.open(pages[name], dark=dark, motion=False)
    assert browser.value(CONTRAST) == {}


def test_without_a_script_all_is_there(browser, pages):
    browser.open(pages["run"], script=False)
    root = read(Path(pages["run"]).read_text("utf-8"))
    assert browser.box(".canvas")["height"] > 20
    assert browser.box(".player") is None
    assert browser.box("#theme") is None
    assert len(root.all("svg", class_="plot")) > 8
