"""The whole page in a real browser, on a real run whose file names are hostile: every feature, keys, and axe-core."""

from __future__ import annotations

import csv
import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepcluster.explore.explorer import Explorer
from explore.browse import Site, served

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed; `make test` installs it")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT = 90_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine: install Debian's, or Chrome")
    with playwright.sync_playwright() as tool:
        opened = tool.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def site(explorer: Explorer) -> Iterator[Site]:
    with served(explorer) as opened:
        yield opened


@pytest.fixture
def page(browser: Any, site: Site) -> Iterator[Any]:
    """The page, opened; whatever it complains of fails the test."""
    context = browser.new_context(viewport={"width": 1300, "height": 820}, accept_downloads=True)
    opened = context.new_page()
    opened.set_default_timeout(WAIT)
    complaints: list[str] = []

    def on_console(message: Any) -> None:
        if message.type in ("error", "warning"):
            complaints.append(message.text)

    def on_request(request: Any) -> None:
        if not request.url.startswith((site.address, "blob:")):
            complaints.append(request.url)

    opened.on("console", on_console)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("request", on_request)
    opened.goto(site.entry)
    opened.locator(".cell img").first.wait_for()
    opened.locator("#progress").wait_for(state="hidden")
    yield opened
    complaints = [one for one in complaints if "status of 409" not in one]  # a refusal that tests provoke
    assert opened.title() != "owned" and not complaints
    context.close()


def state(site: Site, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The server's state once it is as wanted."""
    for _ in range(300):
        found: dict[str, Any] = site.get("/api/state")
        if wanted(found):
            return found
        time.sleep(0.1)
    raise AssertionError(found)


def open_view(page: Any, site: Site, view: str) -> None:
    page.goto(f"{site.address}#/{view}")


def heading(page: Any, text: str) -> None:
    page.locator("main h2").filter(has_text=text).first.wait_for()


def test_clusters_are_listed_sorted_searched_and_opened(page: Any, site: Site, explorer: Explorer) -> None:
    rows = page.locator("#rows .row")
    assert rows.count() == len(explorer.catalog.table().number)
    listed = page.locator("#rows .row").evaluate_all("rows => rows.map((row) => Number(row.dataset.id))")
    assert listed == [row["id"] for row in explorer.catalog.rows()["rows"]], "the page opens with the clearest clusters"
    page.select_option("#sort", "size-1")
    largest = max(int(row["size"]) for row in explorer.catalog.rows()["rows"])
    page.locator("#rows .row").first.get_by_text(str(largest)).first.wait_for()
    sizes = [int(text.split("\n")[0]) for text in page.locator("#rows .numbers").all_inner_texts()]
    assert sizes == sorted(sizes, reverse=True)
    page.select_option("#sort", "size-0")
    page.locator("#rows .row").first.get_by_text(str(min(sizes))).first.wait_for()
    page.fill("#search", "<i>gray")
    page.locator("#list-count").filter(has_text=" of ").wait_for()
    clusters = sum(row["id"] >= 0 for row in explorer.catalog.rows()["rows"])
    assert page.locator("#list-count").inner_text().endswith(f" of {clusters} clusters")
    page.locator("#rows .row", has_not_text="<i>gray").first.wait_for(state="detached")
    assert all("<i>gray" in text for text in page.locator("#rows .what").all_inner_texts())
    page.press("#search", "Enter")
    heading(page, "<i>gray")
    assert "<i>gray" in page.locator("main .facts").inner_text() and page.locator("main i").count() == 0
    page.locator(".strip button").first.click()
    page.fill("#search", "")
    page.locator("main .grid .cell").first.wait_for()


def test_suggestions_are_taken_and_left_with_a_key(page: Any, site: Site, explorer: Explorer) -> None:
    names = [explorer.source.path(i).split("/")[0] for i in range(len(explorer.groups))]
    green, blue = (explorer.groups.group[names.index(name)] for name in ("green", "blue"))
    site.post("/api/edits", {"op": "merge", "clusters": [int(green), int(blue)]})  # now it looks like two
    shown = site.get("/api/suggestions")["suggestions"]
    split = next(place for place, each in enumerate(shown) if each["op"] == "split")
    open_view(page, site, "suggestions")
    for place in range(split):
        left = f"{len(shown) - place} suggestion"
        page.locator("main [role=status]").filter(has_text=left).wait_for()
        page.keyboard.press("n")
    page.locator(".suggestion").filter(has_text="It looks like two").wait_for()
    page.keyboard.press("y")
    number = shown[split]["clusters"][0]["id"]
    state(site, lambda now: now["undo"] == f"split cluster {number} in 2")
    page.get_by_role("link", name="look at them").click()
    heading(page, "Near-duplicates")


def test_images_neighbors_and_hostile_names(page: Any, site: Site, explorer: Explorer) -> None:
    names = [explorer.source.path(i) for i in range(len(explorer.groups))]
    fiends = [i for i, name in enumerate(names) if name.startswith("red/") and not name[4:7].isdigit()]
    assert len(fiends) == 5
    for index in fiends:
        open_view(page, site, f"image/{index}")
        page.locator("main dd").filter(has_text=names[index].split("\n")[0].split("/")[1][:6]).first.wait_for()
        assert page.locator("main dl dd").nth(2).evaluate("node => node.textContent") == names[index]
        assert page.locator("main dl b, main dl img").count() == 0
    page.locator(".grid .cell").first.wait_for()
    similar = [float(text) for text in page.locator(".grid .tag").all_inner_texts()]
    assert similar == sorted(similar, reverse=True) and len(similar) > 5
    page.locator(".grid .cell").first.click()
    page.wait_for_url(lambda url: f"image/{fiends[-1]}" not in url)
    page.keyboard.press("Escape")
    page.wait_for_url(f"**/#/image/{fiends[-1]}")
    page.locator("main dd a").click()
    page.locator("main .facts").wait_for()


def test_edits_by_mouse_and_by_keys(page: Any, site: Site, explorer: Explorer) -> None:
    before = explorer.groups.group.copy()
    cluster = explorer.catalog.rows()["rows"][0]["id"]
    fiend = "<script>alert('x')</script> \N{FOX FACE}"
    page.get_by_role("button", name="Rename").click()
    page.fill("#dialog-text", fiend)
    page.keyboard.press("Enter")
    heading(page, fiend)
    page.locator("#rows .name").filter(has_text=fiend).wait_for()
    page.keyboard.press("s")
    page.fill("#dialog-number", "3")
    page.keyboard.press("Enter")
    state(site, lambda now: (now["undo"] or "").startswith("split"))
    page.locator("#toast").filter(has_text="Split in 3").wait_for()
    rows = page.locator("#rows .row")
    order = [row["id"] for row in explorer.catalog.rows()["rows"]]
    playwright.expect(rows).to_have_count(
        len(order), timeout=WAIT
    )  # no key is pressed before the list has its new order
    part = max(order)  # the smallest part, which is merged into the open cluster again
    page.locator(f"#rows .row[data-id='{cluster}'] .tick").click()
    page.locator("#marked-text").filter(has_text="1 marked").wait_for()
    page.keyboard.press("l")
    for key in ("Home", *["ArrowDown"] * order.index(part), "x"):
        page.keyboard.press(key)
    page.locator("#marked-text").filter(has_text="2 marked").wait_for()
    page.keyboard.press("m")
    state(site, lambda now: now["undo"] == "merge 2 clusters")
    page.locator("#marked").wait_for(state="hidden")
    page.keyboard.press("h")
    state(site, lambda now: now["hidden"] == 1)
    shown = explorer.catalog.rows()["total"]
    playwright.expect(rows).to_have_count(shown, timeout=WAIT)
    page.check("#show-hidden")
    page.locator("#rows .row.put-aside").wait_for()
    playwright.expect(rows).to_have_count(shown + 1, timeout=WAIT)
    for _ in range(4):
        page.click("#undo")
        page.locator("#toast").filter(has_text="Undone").wait_for()
        page.locator("#toast").filter(has_text="Undone").evaluate("node => { node.textContent = '' }")
    assert state(site, lambda now: now["undo"] is None)["hidden"] == 0
    assert (explorer.groups.group == before).all() and not explorer.groups.names
    page.keyboard.press("U")
    state(site, lambda now: (now["undo"] or "").startswith("rename"))
    heading(page, fiend)


def test_undo_in_a_window_that_does_not_know_of_an_edit(page: Any, site: Site, explorer: Explorer) -> None:
    one = site.get("/api/clusters?limit=1")["rows"][0]["id"]
    page.locator(".cell .tick").first.click()
    state(site, lambda now: now["selected"] == 1)
    page.locator("#undo[title^='undo: select']").wait_for()
    site.post("/api/edits", {"op": "rename", "cluster": one, "name": "elsewhere"})
    page.click("#undo")
    page.locator("#toast").filter(has_text="another window").wait_for()
    assert explorer.groups.name(one) == "elsewhere"
    page.locator("#undo[title^='undo: rename']").wait_for()
    page.click("#undo")
    page.locator("#toast").filter(has_text=f"Undone: rename cluster {one}").wait_for()
    assert state(site, lambda now: now["undo"].startswith("select"))["selected"] == 1


def test_images_are_selected_moved_and_exported(page: Any, site: Site, explorer: Explorer, tmp_path: Path) -> None:
    page.locator(".cell .tick").first.click()
    page.locator(".cell[aria-selected=true]").wait_for()
    places = page.locator(".cell").evaluate_all("cells => cells.map((cell) => Number(cell.dataset.position))")
    assert places == sorted(places)  # read out in the order they are seen in
    page.locator(".cell").nth(3).click(modifiers=["Shift"])
    assert state(site, lambda now: now["selected"] == 4)
    page.locator(".grid").focus()
    page.keyboard.press("End")
    page.keyboard.press("Space")
    state(site, lambda now: now["selected"] == 5)
    page.keyboard.press("6")
    heading(page, "Selection")
    page.locator("main .quiet").filter(has_text="5 images").wait_for()
    page.get_by_role("button", name="New cluster").click()
    state(site, lambda now: now["undo"] == "move the selection")
    chosen = explorer.groups.selected
    assert set(explorer.groups.group[chosen]) == {explorer.groups.original.max() + 1}
    for kind, name in (("csv", "labels.csv"), ("coco", "coco.json")):
        page.keyboard.press("e")
        page.select_option("#export-kind", kind)
        page.check("#export-only")
        page.get_by_role("button", name="Export", exact=True).click()
        with page.expect_download() as download:
            page.get_by_role("link", name="Download").click()
        file = tmp_path / name
        download.value.save_as(file)
        if kind == "csv":
            rows = list(csv.DictReader(file.open(newline="", encoding="utf-8")))
            assert len(rows) == 5 and {int(row["cluster"]) for row in rows} == {explorer.groups.original.max() + 1}
        else:
            assert len(json.loads(file.read_text())["annotations"]) == 5
        page.get_by_role("button", name="Close").last.click()
    page.click("#export")
    page.select_option("#export-kind", "folders")
    page.get_by_role("button", name="Export", exact=True).click()
    page.locator("dialog code").filter(has_text="folders").wait_for()
    links = [path for path in (explorer.folder / "exports" / "folders").rglob("*") if path.is_symlink()]
    assert len(links) == int((explorer.groups.group >= 0).sum())
    page.get_by_role("button", name="Close").last.click()
    page.get_by_role("button", name="Clear").click()
    state(site, lambda now: now["selected"] == 0)
    page.locator("main .quiet").filter(has_text="No image is selected").wait_for()
    assert not page.get_by_role("button", name="New cluster").is_visible(), "there is nothing to move"


def test_a_photo_is_dropped_and_picked(page: Any, site: Site, explorer: Explorer, photos: Path) -> None:
    index = 40
    photo = photos / explorer.source.path(index)
    page.set_input_files("#file", str(photo))
    cluster = explorer.catalog.name(int(explorer.groups.group[index]))
    page.locator("#photo-cluster").filter(has_text=cluster).wait_for()
    page.locator(".grid .cell").first.wait_for()
    assert page.locator("figure img").evaluate("node => node.src.startsWith('blob:') && node.naturalWidth > 0")
    content = list(photo.read_bytes())
    page.evaluate(
        """content => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(content)], '<img src=x>.png', {type: 'image/png'}));
            for (const name of ['dragenter', 'dragover', 'drop'])
                document.body.dispatchEvent(new DragEvent(name, {dataTransfer: data, bubbles: true, cancelable: true}));
        }""",
        content,
    )
    heading(page, "<img src=x>.png")
    page.locator("#photo-cluster").filter(has_text=cluster).wait_for()
    page.locator("#drop").wait_for(state="hidden")


def test_the_way_out_of_a_photo(page: Any, site: Site, explorer: Explorer, photos: Path) -> None:
    index = 40
    cluster = int(explorer.groups.group[index])
    open_view(page, site, f"cluster/{cluster}")
    heading(page, explorer.catalog.name(cluster))
    photo = photos / explorer.source.path(index)
    page.set_input_files("#file", str(photo))
    page.click("#photo-cluster")
    heading(page, explorer.catalog.name(cluster))
    page.go_back()
    heading(page, photo.name)
    page.reload()
    page.locator("main .cell img").first.wait_for()
    assert page.title().startswith("cluster ")


def test_a_photo_whose_neighbors_fail_says_so(page: Any, site: Site, explorer: Explorer, photos: Path) -> None:
    page.route(
        "**/api/images/0/neighbors*",
        lambda asked: asked.fulfill(status=409, content_type="application/json", body='{"error": "There is no room."}'),
    )

    def without_neighbors(asked: Any) -> None:
        answer = asked.fetch()
        asked.fulfill(response=answer, json={**answer.json(), "neighbors": None})

    page.route("**/api/photo", without_neighbors)
    page.set_input_files("#file", str(photos / explorer.source.path(40)))
    page.locator("main p.quiet").filter(has_text="There is no room.").wait_for()
    assert not page.locator("main p").filter(has_text="follow once").count()


def test_the_map_colors_by_edits_made_while_it_was_laid_out(page: Any, site: Site, explorer: Explorer) -> None:
    asked: list[str] = []

    def on_request(request: Any) -> None:
        if "/api/map/" in request.url:
            asked.append(request.url.rpartition("/")[2])

    page.on("request", on_request)
    open_view(page, site, "map")
    page.locator("main .quiet").filter(has_text="Drag to move").wait_for()
    assert asked[-1] == "groups", "groups are asked for when the layout has come"
    assert asked.index("groups") < asked.index("neighborhoods"), "the main axes are drawn meanwhile"


def test_the_map_and_its_lasso(page: Any, site: Site, explorer: Explorer) -> None:
    open_view(page, site, "map")
    page.locator("main .quiet").filter(has_text="Drag to move").wait_for()
    drawn = (
        "node => node.getContext('2d').getImageData(0, 0, node.width, node.height).data"
        ".reduce((count, value) => count + (value > 0), 0)"
    )
    assert page.locator("canvas").evaluate(drawn) > 200
    page.get_by_role("button", name="nearer").click()
    page.locator("canvas").focus()
    for key in ("+", "ArrowLeft", "-", "0"):
        page.keyboard.press(key)
    box = page.locator("canvas").bounding_box()
    corners = [(0.02, 0.02), (0.98, 0.02), (0.98, 0.98), (0.02, 0.98), (0.02, 0.03)]
    page.get_by_role("button", name="Lasso").click()
    for k, (x, y) in enumerate(corners):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if k == 0:
            page.mouse.down()
    page.mouse.up()
    heading(page, "Selection")
    assert state(site, lambda now: now["selected"] > 0)["selected"] == int((explorer.groups.group >= 0).sum())


def test_the_map_is_pinched_with_two_fingers(browser: Any, site: Site) -> None:
    context = browser.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    page = context.new_page()
    page.goto(site.entry)
    open_view(page, site, "map")
    page.locator("main .quiet").filter(has_text="pinch to zoom").wait_for(timeout=WAIT)
    assert "wheel" not in page.locator("main .quiet").inner_text()

    def pixels() -> np.ndarray:
        page.wait_for_timeout(100)
        script = "node => [...node.getContext('2d').getImageData(0, 0, node.width, node.height).data]"
        return np.array(page.locator("canvas").evaluate(script))

    whole, box = pixels(), page.locator("canvas").bounding_box()
    middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    touch = context.new_cdp_session(page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 90), ("touchEnd", None)):
        fingers = [{"x": middle[0] + way * (apart or 0), "y": middle[1], "id": way} for way in (0, 1)] if apart else []
        for finger in fingers:
            finger["x"] -= (apart or 0) / 2
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": fingers})
    pinched = pixels()
    page.get_by_role("button", name="All").click()
    for _ in range(2):
        page.get_by_role("button", name="nearer").click()
    nearer = pixels()
    assert (pinched != nearer).mean() < 0.005 < 0.02 < (whole != nearer).mean(), "2.25 times apart is 1.5 x 1.5 nearer"
    open_view(page, site, "clusters")
    page.locator(".cell").first.wait_for()
    assert page.locator(".cell .tick").nth(1).evaluate("node => getComputedStyle(node).opacity") == "1"
    page.get_by_role("button", name="Select all").tap()
    page.locator("#toast").filter(has_text="Selected").wait_for()
    assert "with u" not in page.locator("#toast").inner_text()
    context.close()


def test_outliers_duplicates_and_history(page: Any, site: Site, explorer: Explorer, outlier: int) -> None:
    open_view(page, site, "outliers")
    page.locator(".grid .cell").first.wait_for()
    scores = [float(text.split()[0]) for text in page.locator(".grid .tag").all_inner_texts()]
    assert scores == sorted(scores, reverse=True) and scores[0] > 1 and len(scores) < len(explorer.groups) / 5
    page.locator("main .quiet").filter(has_text="two standard deviations").wait_for()
    open_view(page, site, "duplicates")
    page.locator("main [role=status]").filter(has_text="in all").wait_for()
    page.locator("#least").evaluate("node => { node.value = 1; node.dispatchEvent(new Event('input')) }")
    page.locator("main output").filter(has_text="1.000").wait_for()
    page.locator("#least").evaluate("node => { node.value = 0.995; node.dispatchEvent(new Event('input')) }")
    page.locator(".card").first.wait_for()
    page.get_by_role("button", name="Select all but the first").first.click()
    state(site, lambda now: now["selected"] >= 1)
    open_view(page, site, "history")
    page.locator("main output").filter(has_text="3 of 3").wait_for()
    page.locator("#epoch").focus()
    page.keyboard.press("Home")
    page.locator("main output").filter(has_text="1 of 3").wait_for()
    page.locator("main h3").filter(has_text="Cluster sizes at epoch 1").wait_for()
    assert page.locator(".chart").count() > 5


def test_colors_help_and_reading_by_machines(page: Any, site: Site) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is not installed")
    script = (Path(axe.__file__).parent / "axe.min.js").read_text()

    def serious(where: str) -> None:
        page.evaluate(script + "; undefined")  # by the debugger, which the page's policy does not bind
        found = page.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
        bad = [(one["id"], one["nodes"][0]["html"][:200]) for one in found if one["impact"] in ("serious", "critical")]
        assert not bad, (where, bad)

    index = 5
    for theme in ("light", "dark"):
        page.emulate_media(color_scheme=theme)
        for view in (
            "clusters",
            "suggestions",
            f"image/{index}",
            "map",
            "outliers",
            "duplicates",
            "history",
            "selection",
        ):
            open_view(page, site, view)
            page.locator("main h2").first.wait_for()
            page.locator("#progress").wait_for(state="hidden")
            page.wait_for_timeout(150)
            serious(f"{view}, {theme}")
        page.keyboard.press("?")
        page.locator("dialog").wait_for()
        serious(f"help, {theme}")
        page.keyboard.press("Escape")
        page.locator("dialog").wait_for(state="detached")
    open_view(page, site, "clusters")
    page.locator(".cell .tick").first.click()
    page.locator("#rows .tick").first.click()
    page.set_viewport_size({"width": 380, "height": 760})
    serious("phone")
    page.click("#open-list")
    page.locator("aside.on").wait_for()
    page.wait_for_timeout(400)
    serious("phone, list")
    page.locator("#rows .row").nth(1).click()
    page.locator("aside.on").wait_for(state="detached")
    assert page.evaluate("document.documentElement.scrollWidth") <= 380, "nothing sticks out at the side"
