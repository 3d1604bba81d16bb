"""Opens pages in a browser as people do: at two widths, light and dark, and tries every control.

    uv run --with playwright benchmarks/report_pages.py --chromium /usr/bin/chromium --shots shots

Writes the pages of a run, and of sweeps of 18 points, of 200, with failed, missing and stopped points, of a race, of
one seed, and with hostile text, and opens each in the given Chromium at 1400 and 400 pixels. Fails where the console
says anything, where something is asked of the network, where a page is wider than its window or larger than 3 MB, where
text became markup, or where a control changes nothing. `--shots FOLDER` keeps pictures.
"""

import argparse
import json
import math
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from playwright.sync_api import Page, sync_playwright
from sweeps.builder import DECLARED, make_pairs, make_run, make_sweep

from orpo_exp.pages import write_run_page
from orpo_exp.sweeps import summary
from orpo_exp.sweeps.racing import Race

LARGEST = 3_000_000
HOSTILE = "</script><img src=x onerror=document.title='run'><b>&amp; \u2028 ]]> \" ' `${1}`" + "x" * 300


def sweep(
    folder: Path, values: list[str], seeds: int, evaluations: int, text: str = "plain", unfinished: bool = False
) -> Path:
    """A made-up sweep's folder with its report.html."""
    points = [{"loss.lam": value, "seed": str(seed)} for value in values for seed in range(seeds)]
    for i, (place, point) in enumerate(zip(make_sweep(folder, points), points, strict=True)):
        number, seed = values.index(point["loss.lam"]), int(point["seed"])
        margins = [math.sin(row + number) + 0.02 * number + 0.05 * seed for row in range(64)]
        accuracy = sum(of > 0 for of in margins) / 64
        metrics = {"rewards/accuracy": accuracy, "rewards/margin": sum(margins) / 64, "nll_loss": 1 / (1 + number)}
        curve = [
            {"step": 10 * step, **{name: value * (1 - 0.9**step) for name, value in metrics.items()}}
            for step in range(evaluations)
        ]
        status: dict[str, Any] = {}
        if unfinished and i % 5 == 4:
            status = {"status": "failed", "error": f"Traceback\n{text}\nRuntimeError: out of memory"}
        elif unfinished and i % 5 == 3:
            continue
        elif unfinished and i % 5 == 2:
            status = {"status": "interrupted"}
        make_run(place, metrics, evaluations=curve, declared=DECLARED, seed=seed, **status)
        right = [float(of > 0) for of in margins]
        make_pairs(place, {"rewards/margin": margins, "rewards/accuracy": right})
        sample = {"prompt": text, "answers": {"before training": "", "after training": f"{text} {number}"}}
        samples = [sample | {"prompt": f"{text} {n}", "chosen": text, "rejected": text} for n in range(3)]
        (place / "samples.json").write_text(json.dumps(samples))
        write_run_page(place)
    summary.draw_pictures = lambda *_: {}  # type: ignore[assignment]
    summary.write_summary(folder)
    return folder / "report.html"


def race(folder: Path) -> Path:
    """The same of a race: of four settings one is set aside at its first rung, one at the second."""
    rising = {"0": (0.5, 0.55, 0.6), "0.1": (0.8, 0.9, 0.95), "0.5": (0.78, 0.7, 0.8), "1": (0.75, 0.86, 0.9)}
    points = [{"loss.lam": value, "seed": str(seed)} for value in rising for seed in range(3)]
    places = make_sweep(folder, points)

    def come_to(step: int, status: str) -> None:
        for place, point in zip(places, points, strict=True):
            if (place / "result.json").exists() and "set aside" in (place / "result.json").read_text():
                continue
            at, seed = rising[point["loss.lam"]], int(point["seed"])
            wobble = (0.01 + 0.03 * float(point["loss.lam"])) * (seed - 1)
            curve = [
                {"step": of, "rewards/accuracy": at[i] + wobble} for i, of in enumerate((25, 50, 100)) if of <= step
            ]
            shutil.rmtree(place, ignore_errors=True)
            metrics = {"rewards/accuracy": at[2] + wobble} if status == "completed" else {}
            make_run(place, metrics, evaluations=curve, declared=DECLARED, seed=seed, status=status, steps=step)
            write_run_page(place)

    run = Race(folder, tuple(place.name for place in places), (0.25, 0.5))
    come_to(25, "waiting")
    run.decided(1)
    come_to(50, "waiting")
    run.decided(2)
    come_to(100, "completed")
    summary.write_summary(folder)
    return folder / "report.html"


def pages(folder: Path) -> Iterator[tuple[str, Path]]:
    """Each page by what it is of."""
    of_18 = sweep(folder / "of_18", ["0", "0.05", "0.1", "0.25", "0.5", "1"], 3, 12)
    yield "run", next(of_18.parent.glob("*/report.html"))
    yield "sweep of 18", of_18
    yield "sweep of 200", sweep(folder / "of_200", [f"{i / 100:g}" for i in range(100)], 2, 2000)
    yield "unfinished", sweep(folder / "unfinished", ["0", "0.1", "0.5"], 4, 12, unfinished=True)
    yield "race", race(folder / "race")
    yield "one seed", sweep(folder / "one_seed", ["0", "0.5"], 1, 12)
    yield "hostile", sweep(folder / "hostile", ["0", HOSTILE.replace("/", "")[:60]], 2, 12, HOSTILE, unfinished=True)


def tried(page: Page) -> list[str]:
    """What of the controls does nothing."""
    idle = []

    def changed(what: str, act: Any) -> None:
        before = page.locator("main").inner_html()
        act()
        page.wait_for_timeout(60)
        if page.locator("main").inner_html() == before:
            idle.append(what)

    for select in page.locator("select").all():
        options = select.locator("option").all_inner_texts()
        if len(options) > 1:
            changed(f"choice of {options[1][:40]}", lambda s=select, o=options: s.select_option(o[1]))
    for name in ("button.chip", "th button"):
        for button in page.locator(name).all()[:40]:
            changed(f"{name} {button.inner_text()[:40]}", button.click)
    for search in page.locator("input[type=search]").all():
        changed("filter", lambda s=search: s.fill("zzz"))
        search.fill("")
    for box in page.locator("input[type=checkbox]").all():
        changed("all columns", box.check)
    for opened in page.locator("details > summary").all()[:30]:
        opened.click()
    for button in page.locator("details[open] button").all():
        if button.is_visible():
            changed("copy", button.click)
    dark = page.evaluate("document.documentElement.dataset.theme")
    page.locator("button.theme").click()
    if page.evaluate("document.documentElement.dataset.theme") == dark:
        idle.append("light / dark")
    for plot in page.locator("svg.plot").all():
        box = plot.bounding_box()
        assert box
        plot.hover(position={"x": box["width"] * 0.6, "y": box["height"] * 0.4}, force=True)
    if page.locator("svg.plot path").count() and not page.locator(".tip:not([hidden])").count():
        idle.append("hover over curves")
    return idle


def main() -> int:
    """0 where every page is as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chromium", default="/usr/bin/chromium", help="the browser")
    parser.add_argument("--shots", type=Path, help="a folder for pictures")
    args = parser.parse_args()
    wrong = 0
    with tempfile.TemporaryDirectory() as temporary, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=args.chromium, args=["--no-sandbox"])
        for name, path in pages(Path(temporary)):
            for width, scheme in ((1400, "light"), (400, "light"), (1400, "dark"), (400, "dark")):
                context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # type: ignore[arg-type]
                page = context.new_page()
                said: list[str] = []
                page.on("console", lambda message, to=said: to.append(message.text))
                page.on("pageerror", lambda error, to=said: to.append(str(error)))
                page.on("request", lambda request, to=said, own=path: to.append(request.url)
                        if request.url != own.as_uri() else None)  # fmt: skip
                page.goto(path.as_uri())
                page.wait_for_timeout(300)
                if args.shots:
                    args.shots.mkdir(parents=True, exist_ok=True)
                    shot = args.shots / f"{name.replace(' ', '_')}_{width}_{scheme}.png"
                    page.screenshot(path=str(shot), full_page=True)
                problems = [*said]
                too_wide = page.evaluate("document.documentElement.scrollWidth") - width
                if too_wide > 0:
                    problems.append(f"{too_wide} pixels wider than its window")
                if page.locator("main img, main b").count() or page.title() == "run":
                    problems.append("text became markup")
                if path.stat().st_size > LARGEST:
                    problems.append(f"{path.stat().st_size:,} bytes")
                if scheme == "light":
                    problems += [f"does nothing: {of}" for of in tried(page)] + said[len(problems) :]
                wrong += len(problems)
                print(f"{name}, {width}, {scheme}: {path.stat().st_size:,} bytes; {problems or 'well'}", flush=True)
                context.close()
        browser.close()
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
