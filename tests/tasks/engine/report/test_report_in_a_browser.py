"""The page as a reader uses it: opened in Chromium, clicked, and read back."""

import pytest

from tasks.engine.report import write_report
from tests.support.browser import play
from tests.support.made_up_runs import made_up_suite


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    made_up_suite(root, seeds=(0, 1))
    write_report(root, tasks=["digits"])
    return root / "report.html"


ROWS = """
const table = document.querySelector("table");
const first = () => [...table.tBodies[0].rows].map(row => row.cells[0].textContent);
const head = name => [...table.tHead.rows[0].cells].find(cell => cell.textContent === name);
"""


def test_a_click_on_a_heading_sorts_and_another_turns_it_around(page) -> None:
    before, by_loss, turned, by_name, marks, last = play(
        page,
        ROWS
        + """
        const seen = [first()];
        for (const name of ["train loss", "train loss", "optimizer"]) {
            head(name).click();
            seen.push(first());
        }
        const marks = [head("optimizer").ariaSort, head("train loss").ariaSort];
        table.tBodies[0].rows[0].cells[3].dataset.value = "NaN";
        const last = [0, 1].map(() => { head("train loss").click(); return first().at(-1); });
        return [...seen, marks, last];
        """,
    )
    assert before == ["snopt (rule=adam)", "snopt (rule=paper)", "adam", "adamw", "sgd"]
    # A run that diverged has an infinite loss.
    assert by_loss == ["snopt (rule=adam)", "snopt (rule=paper)", "adam", "sgd", "adamw"]
    assert turned == by_loss[::-1]
    assert by_name == ["adam", "adamw", "sgd", "snopt (rule=adam)", "snopt (rule=paper)"]
    assert marks == ["ascending", None]
    assert last == ["adam", "adam"]  # what has no number, whichever way


def test_the_axis_is_switched_and_an_optimizer_hidden(page) -> None:
    pytest.importorskip("plotly", reason="the curves need the extra 'report'")
    seen = play(
        page,
        """
        const plot = document.querySelector(".js-plotly-plot");
        const wait = ms => new Promise(done => setTimeout(done, ms));
        const state = () => ({
            axes: [plot.layout.xaxis.title.text, plot.layout.xaxis2.title.text],
            ends: plot._fullData.filter(t => t.name === "sgd" && t.fill === "none" && t.x?.length)
                .map(t => t.x.at(-1)),
            shown: [...new Set(plot._fullData.filter(t => t.visible === true).map(t => t.name))],
            right: plot.layout.xaxis.range[1],
        });
        const seen = [state()];
        const buttons = [...plot.querySelectorAll(".updatemenu-button")];
        for (const name of ["steps", "evaluations"]) {
            buttons.find(b => b.textContent === name).dispatchEvent(new MouseEvent("click"));
            await wait(500);
            seen.push(state());
        }
        const entry = [...plot.querySelectorAll(".traces")].find(t => t.textContent === "adamw");
        const toggle = entry.querySelector(".legendtoggle");
        for (const kind of ["mousedown", "mouseup"])
            toggle.dispatchEvent(new MouseEvent(kind, {bubbles: true}));
        await wait(1000);
        seen.push(state());
        buttons.find(b => b.textContent === "seconds").dispatchEvent(new MouseEvent("click"));
        await wait(500);
        seen.push(state());
        Plotly.Fx.hover(plot, [{curveNumber: 1, pointNumber: 5}]);
        await wait(500);
        return [...seen, plot.querySelector(".hoverlayer").textContent];
        """,
    )
    assert isinstance(seen, list), seen
    seconds, steps, evaluations, hidden, back, hover = seen
    assert [s["axes"][0] for s in (seconds, steps, evaluations, back)] == [
        "training time (s)",
        "optimizer steps",
        "field evaluations, forward + backward",
        "training time (s)",
    ]
    assert all(s["axes"][0] == s["axes"][1] for s in seen[:-1])
    # 400 steps of 0.1 s, and 14 evaluations forward and 16 backward each.
    assert [s["ends"] for s in (seconds, steps, evaluations)] == [[40, 40], [400, 400], [12e3] * 2]
    assert seconds["right"] < steps["right"] < evaluations["right"]
    everyone = {"snopt (rule=adam)", "snopt (rule=paper)", "adam", "adamw", "sgd"}
    assert set(seconds["shown"]) == everyone
    assert set(hidden["shown"]) == set(back["shown"]) == everyone - {"adamw"}
    assert "snopt (rule=adam)" in hover
    assert "at 11.5" in hover  # 100 steps of 0.115 s


@pytest.mark.parametrize("width", [1300, 500])
def test_panels_keep_apart_and_the_page_does_not_slide(page, width) -> None:
    pytest.importorskip("plotly", reason="the curves need the extra 'report'")
    seen = play(
        page,
        """
        await new Promise(done => setTimeout(done, 500));
        const plot = document.querySelector(".js-plotly-plot");
        const left = one => one.getBoundingClientRect().left;
        const {_offset, _length} = plot._fullLayout.xaxis;
        return {
            first: left(plot) + _offset + _length, second: left(plot.querySelector(".y2title")),
            panel: _length, slides: document.body.scrollWidth > innerWidth,
        };
        """,
        width,
    )
    assert isinstance(seen, dict), seen
    assert seen["first"] < seen["second"]
    assert seen["panel"] > 250
    assert not seen["slides"]
