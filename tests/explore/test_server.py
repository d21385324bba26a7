"""The server: who may ask, what is answered, and that nothing but images leaves by nothing but their index."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import webbrowser
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from PIL import Image, ImageFile

from deepcluster.cli.explore import open_in_browser
from deepcluster.cli.main import main
from deepcluster.data.decode import MOST_PIXELS, decode, upright_size
from deepcluster.data.formats import PIXELS
from deepcluster.data.open import open_images
from deepcluster.engine.run import Run
from deepcluster.errors import BadImage, DeepClusterError
from deepcluster.explore.explorer import Explorer, open_explorer
from deepcluster.explore.thumbs import Thumbs
from explore.browse import Site, served


@pytest.fixture
def site(explorer: Explorer) -> Iterator[Site]:
    with served(explorer) as opened:
        yield opened


def test_only_this_machine_under_its_own_name_may_ask(site: Site) -> None:
    own = f"127.0.0.1:{site.port}"
    for host in ("evil.example", f"evil.example:{site.port}", "", f"localhost.evil.example:{site.port}", "127.0.0.1.x"):
        assert site.ask("GET", "/", headers={"Host": host})[0] == 421
    for host in (own, f"localhost:{site.port}", "localhost:9999"):  # the last is what a tunnel looks like
        assert site.ask("GET", "/api/state", headers={"Host": host})[0] == 200
    edit = {"op": "select", "images": [0], "on": True}
    for origin in (
        "http://evil.example",
        "null",
        f"https://{own}",
        "http://127.0.0.1:1",
        f"http://localhost:{site.port}",
    ):
        assert site.post("/api/edits", edit, Origin=origin)[0] == 403
        assert site.ask("GET", "/api/state", headers={"Origin": origin})[0] == 403
    assert site.ask("GET", "/thumb/0", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert site.get("/api/state")["selected"] == 0
    assert site.post("/api/edits", edit, Origin=f"http://{own}")[0] == 200
    assert site.get("/api/state")["selected"] == 1


def test_nothing_is_answered_without_the_token(site: Site) -> None:
    edit = json.dumps({"op": "select", "images": [0], "on": True}).encode()
    nobody = [{"X-Token": token} for token in ("", site.token[:-1], "\xe9")]
    nobody.append({"X-Token": "", "Cookie": f"deepcluster-1={site.token}"})
    for headers in nobody:
        for path in ("/", "/?token=", f"/?token={site.token[:-1]}", "/static/main.js", "/thumb/0", "/image/0",
                     "/api/state", f"/api/state?token={site.token}", "/api/exports/csv"):  # fmt: skip
            status, answered, content = site.ask("GET", path, headers=headers)
            assert status == 403 and "set-cookie" not in answered and site.token.encode() not in content, path
        for path in ("/api/edits", "/api/undo", "/api/redo", "/api/export", "/api/photo"):
            assert site.ask("POST", path, edit, headers)[0] == 403
    assert site.ask("GET", "/api/edits")[0] == 405
    assert site.ask("DELETE", "/api/state")[0] in (405, 411)
    assert site.ask("POST", "/api/photo", b"", {"Content-Length": str(1 << 40)})[0] == 413
    assert site.get("/api/state")["selected"] == 0


def test_the_address_gives_a_cookie_that_only_this_page_can_use(site: Site) -> None:
    status, headers, content = site.ask(
        "GET", site.entry.removeprefix(site.address.rstrip("/")), headers={"X-Token": ""}
    )
    assert status == 200 and site.token.encode() not in content, "the token is in the address only"
    cookie, *how = headers["set-cookie"].split("; ")
    assert cookie == f"deepcluster-{site.port}={site.token}" and {"HttpOnly", "SameSite=strict"} <= set(how)
    own = {"X-Token": "", "Cookie": cookie}
    edit = json.dumps({"op": "select", "images": [0], "on": True}).encode()
    for path in ("/", "/static/main.js", "/thumb/0", "/api/state"):
        status, headers, content = site.ask("GET", path, headers=own)
        assert status == 200 and "set-cookie" not in headers and site.token.encode() not in content
    assert site.ask("POST", "/api/edits", edit, own)[0] == 403, "a browser tells the page that asks for a change"
    assert site.ask("POST", "/api/edits", edit, {**own, "Origin": "http://127.0.0.1:1"})[0] == 403
    assert site.ask("POST", "/api/edits", edit, {**own, "Origin": site.address.rstrip("/")})[0] == 200


def test_a_browser_is_given_a_file_that_nobody_else_can_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command line is seen by all users of the machine. One that a killed explorer left goes."""
    (tmp_path / ".open-killed.html").touch()
    opened: list[str] = []
    monkeypatch.setattr(webbrowser, "open", opened.append)
    with contextlib.ExitStack() as held:
        open_in_browser("http://127.0.0.1:1/?token=secret", held, tmp_path)
        (file,) = tmp_path.iterdir()
        assert opened == [file.as_uri()] and file.stat().st_mode & 0o077 == 0 and "?token=secret" in file.read_text()
    assert not list(tmp_path.iterdir())


def test_every_answer_is_armed(site: Site) -> None:
    for path in ("/", "/static/main.js", "/api/state", "/thumb/0", "/nothing", "/api/clusters/999"):
        _, headers, _ = site.ask("GET", path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
        assert headers["cross-origin-resource-policy"] == "same-origin" and "server" not in headers
        assert "access-control-allow-origin" not in headers
    page = site.ask("GET", "/")[2].decode()
    assert "<script>" not in page and "style=" not in page and " onclick" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/static/../server.py", "/static/..%2fserver.py", "/static/%2e%2e/server.py", "/static//etc/passwd",
        "/static/explore.html", "/static/", "/api/duplicates?similarity=x", "/thumb/../../run.json",
        "/thumb/..%2f..%2frun.json", "/thumb/0/../../run.json",
        "/thumb/1e3", "/thumb/-1", "/thumb/0x1", "/thumb/99999999", "/thumb/0?side=../../x", "/thumb/0?side=1000000",
        "/image/%00", "/api/exports/../../run.json", "/api/exports/csv", "/api/map/..%2fx", "/api/clusters/..",
        "/api/clusters/1/members?offset=-1", "/api/clusters/1/members?limit=x", "/run.json",
    ],
)  # fmt: skip
def test_no_path_leads_to_a_file(site: Site, path: str) -> None:
    status, _, content = site.ask("GET", path)
    assert status in (400, 404) and b"fingerprint" not in content and b"import" not in content


@pytest.mark.parametrize("path", ["/thumb/{}", "/image/{}", "/api/images/{}", "/api/history/{}", "/api/clusters/{}"])
def test_a_number_of_thousands_of_digits_is_refused(site: Site, path: str) -> None:
    status, _, content = site.ask("GET", path.format("1" * 5000))
    assert status == 400 and "chosen by its number" in json.loads(content)["error"]


def test_images_by_index_with_a_tag(site: Site, explorer: Explorer) -> None:
    status, headers, content = site.ask("GET", "/thumb/3")
    assert status == 200 and headers["content-type"] == "image/png" and "immutable" in headers["cache-control"]
    picture = np.asarray(Image.open(io.BytesIO(content)))
    np.testing.assert_array_equal(picture, explorer.source.read(3))
    assert site.ask("GET", "/thumb/3", headers={"If-None-Match": headers["etag"]})[0] == 304
    assert np.asarray(Image.open(io.BytesIO(site.ask("GET", "/image/3")[2]))).shape == (16, 16, 3)
    broken = next(i for i in range(len(explorer.groups)) if "broken" in explorer.source.path(i))
    status, headers, content = site.ask("GET", f"/thumb/{broken}")
    assert status == 200 and headers["x-image"] == "missing" and headers["cache-control"] == "no-store"
    Image.open(io.BytesIO(content)).load()
    about = site.get(f"/api/images/{broken}")
    assert about["cluster"] == -1 and about["reason"]
    assert site.get(f"/api/images/{broken}/neighbors") == {"total": 0, "images": []}


def test_a_run_that_is_not_finished_is_said_to_be_none(site: Site, explorer: Explorer) -> None:
    assert b"has finished" not in site.ask("GET", "/")[2] and b"3 epochs" in site.ask("GET", "/")[2]
    explorer.run.config["settings"]["epochs"] = 10
    assert b"This run has finished 3 of 10 epochs" in site.ask("GET", "/")[2]


def test_what_the_page_asks_for(site: Site, explorer: Explorer, outlier: int) -> None:
    rows = site.get("/api/clusters?limit=500")["rows"]
    assert sum(row["size"] for row in rows) == len(explorer.groups)
    one = rows[0]["id"]
    assert site.get(f"/api/clusters/{one}")["classes"][0]["share"] == pytest.approx(rows[0]["purity"], abs=1e-3)
    assert len(site.get(f"/api/clusters/{one}/nearest")["clusters"]) >= 3
    members = site.get(f"/api/clusters/{one}/members?limit=500")["images"]
    assert {image["path"] for image in members} == {explorer.source.path(i) for i in explorer.groups.members(one)}
    first = site.get("/api/images/0/neighbors?limit=5")["images"]
    table = explorer.vectors()
    order = np.argsort(-(table.rows @ table.rows[0]))
    assert [image["id"] for image in first] == [i for i in order if i != 0][:5]
    for name in ("axes", "neighborhoods"):
        site_map = None
        while site_map is None:
            status, _, content = site.ask("GET", f"/api/map/{name}")
            site_map = np.frombuffer(content, "<i2").reshape(-1, 2) if status == 200 else None
        assert len(site_map) == len(explorer.groups)
    np.testing.assert_array_equal(np.frombuffer(site.ask("GET", "/api/map/groups")[2], "<i4"), explorer.groups.group)
    twin = [
        i
        for i in range(len(explorer.groups))
        if explorer.source.path(i).split("/")[-1] in ("twin of 001.png", "001.png")
    ]
    found = site.get("/api/duplicates?similarity=0.9999")
    assert any(len({image["id"] for image in group["images"]} & set(twin)) == 2 for group in found["groups"])
    large = site.get("/api/duplicates?similarity=-1")["groups"]
    for group, expected in zip(large, explorer.jobs["duplicates"].result.groups(-1), strict=False):
        assert group["ids"] == expected.tolist() and len(group["ids"]) == group["total"]
        assert [image["id"] for image in group["images"]] == group["ids"][:60]
    outliers, far = site.get("/api/outliers"), explorer.catalog.outliers()[0]
    assert [image["id"] for image in outliers["images"]] == far.tolist() and outliers["total"] == len(far)
    assert far[0] == outlier
    history = site.get("/api/history")
    assert len(history["rows"]) == 3 and history["kept"] == [0, 1, 2]
    sizes = site.get("/api/history/0")
    assert sizes["known"] and sum(sizes["sizes"]) == len(explorer.groups) - 1
    assert not site.get("/api/history/77")["known"]


def test_a_photo_finds_its_cluster(site: Site, explorer: Explorer, photos: Path) -> None:
    index = 30
    site.get("/api/images/0/neighbors")
    content = (photos / explorer.source.path(index)).read_bytes()
    status, found = site.post("/api/photo", content)
    assert status == 200 and found["cluster"]["id"] == explorer.groups.group[index]
    # the kept distance is of the training, whose features may have been computed in bfloat16
    assert found["distance"] == pytest.approx(float(explorer.catalog.distance[index]), abs=0.05)
    assert found["neighbors"]["images"][0]["similarity"] == pytest.approx(1, abs=1e-3)
    other = next(row["id"] for row in explorer.catalog.rows()["rows"] if row["id"] not in (-1, found["cluster"]["id"]))
    site.post("/api/edits", {"op": "merge", "clusters": [found["cluster"]["id"], other], "into": other})
    assert site.post("/api/photo", content)[1]["cluster"]["id"] == other, "edits count for new images too"
    for nonsense in (b"", b"<svg onload=alert(1)>", b"\x89PNG"):
        status, found = site.post("/api/photo", nonsense)
        assert status == 400 and "cannot be read as a picture" in found["error"]


def test_huge_pictures_are_one_sentence_at_once(explorer: Explorer, photos: Path, tmp_path: Path) -> None:
    """Of 200 million pixels in 25 kB: neither shown nor looked for, and not decoded for it; JPEGs shrink as they are
    read."""
    Image.new("P", (20_000, 10_000)).save(tmp_path / "huge.png")
    Image.new("L", (11_000, 8_000)).save(tmp_path / "large.jpg", quality=1)
    with mock.patch.object(ImageFile.ImageFile, "load") as decoded:
        with pytest.raises(DeepClusterError, match=r"too large: 20,000 x 10,000 pixels, and 67,108,864 are the most"):
            explorer.photo((tmp_path / "huge.png").read_bytes(), 3)
        shown = Thumbs(lambda: open_images([str(tmp_path / name) for name in ("huge.png", "large.jpg")]))
        with pytest.raises(BadImage, match="too large: 20,000 x 10,000"):
            shown.get(0, 96)
    assert not decoded.called
    assert shown.get(1, 96)
    assert decode(tmp_path / "large.jpg", 96).shape[0] == 96 and MOST_PIXELS.get() == PIXELS


def test_two_pictures_are_decoded_at_once(
    site: Site, explorer: Explorer, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of all that are shown, looked at and dropped: each may take a gigabyte."""
    explorer.jobs["vectors"].start().wait(60)
    lock, seen = threading.Lock(), [0, 0]

    def slowly(read: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        def counted(*arguments: Any, **options: Any) -> np.ndarray:
            with lock:
                seen[0] += 1
                seen[1] = max(seen)
            time.sleep(0.05)
            with lock:
                seen[0] -= 1
            return read(*arguments, **options)

        return counted

    monkeypatch.setattr(explorer.source, "read", slowly(explorer.source.read))
    monkeypatch.setattr("deepcluster.explore.explorer.decode", slowly(decode))
    content = (photos / explorer.source.path(0)).read_bytes()
    with ThreadPoolExecutor(15) as threads:
        paths = [f"/{kind}/{index}" for index in range(4) for kind in ("thumb", "image", "api/images")]
        asked: list[Any] = [threads.submit(site.ask, "GET", path) for path in paths]
        asked += [threads.submit(site.post, "/api/photo", content) for _ in range(3)]
    assert {one.result()[0] for one in asked} == {200} and seen == [0, 2]


def test_sizes_are_read_from_the_head_of_regular_files(tmp_path: Path) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("L", (30, 20)).save(tmp_path / "turned.jpg", exif=turned)
    assert upright_size(tmp_path / "turned.jpg") == (30, 20)
    os.mkfifo(tmp_path / "pipe.jpg")
    with pytest.raises(OSError, match="no regular file"):
        upright_size(tmp_path / "pipe.jpg")


def test_edits_are_kept_and_undone(site: Site, explorer: Explorer) -> None:
    before = explorer.groups.group.copy()
    one, two = (row["id"] for row in site.get("/api/clusters?sort=size&limit=2")["rows"])
    assert site.post("/api/edits", {"op": "merge", "clusters": [one, two]})[1]["undo"] == "merge 2 clusters"
    status = 202
    while status == 202:
        status, state = site.post("/api/edits", {"op": "split", "cluster": one, "into": 3})
    assert status == 200 and state["undo"] == f"split cluster {one} in 3"
    assert len(np.unique(explorer.groups.group)) == len(np.unique(before)) + 1
    again = Explorer(explorer.run)
    np.testing.assert_array_equal(again.groups.group, explorer.groups.group)
    again.close()
    assert site.post("/api/undo")[0] == site.post("/api/undo")[0] == 200
    np.testing.assert_array_equal(explorer.groups.group, before)
    assert site.post("/api/undo")[0] == 400
    assert site.post("/api/redo")[1]["redo"] == f"split cluster {one} in 3"
    for nonsense in (
        b"",
        b"[]",
        b"{",
        b'{"op": "merge", "clusters": null}',
        b'{"op": "split", "cluster": 0, "into": 1e9}',
        b'{"op": "move", "images": [1' + b"0" * 30 + b'], "to": null}',
        b'{"op": "move", "images": [0], "to": 1' + b"0" * 30 + b"}",
        b'{"op": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"op": ' + b"[" * 900 + b"]" * 900 + b"}",
        b'{"op": "merge", "clusters": [0, 1], "into": true}',
    ):
        assert site.post("/api/edits", nonsense)[0] == 400
    status, begun = site.post("/api/export", {"kind": "csv"})
    assert status == 200
    explorer.jobs["export"].wait(30)
    content = site.ask("GET", "/api/exports/csv")[2]
    assert content == Path(begun["path"]).read_bytes() and content.count(b"\n") >= len(before)
    assert (np.load(explorer.run.folder / "assignment.npy") == before).all()


def test_undo_takes_back_what_the_page_knows_and_nothing_else(site: Site, explorer: Explorer) -> None:
    one = site.get("/api/clusters?limit=1")["rows"][0]["id"]
    first = site.post("/api/edits", {"op": "rename", "cluster": one, "name": "here"})[1]
    second = site.post("/api/edits", {"op": "rename", "cluster": one, "name": "in another window"})[1]
    status, answer = site.post("/api/undo", {"revision": first["revision"]})
    assert status == 409 and "another window" in answer["error"] and explorer.groups.name(one) == "in another window"
    assert site.get("/api/state")["revision"] == second["revision"]
    status, state = site.post("/api/undo", {"revision": second["revision"]})
    assert status == 200 and state["turned"] == f"rename cluster {one}" and explorer.groups.name(one) == "here"
    assert site.post("/api/redo", {"revision": second["revision"]})[0] == 409
    assert site.post("/api/redo", {"revision": state["revision"]})[1]["turned"] == f"rename cluster {one}"
    for nonsense in ("1", True, [1]):
        assert site.post("/api/undo", {"revision": nonsense})[0] == 400


def test_images_that_are_gone_are_told_of(run: Run) -> None:
    run.config["data"] = str(run.folder / "nowhere")
    explorer = Explorer(run)
    with served(explorer) as site:
        assert site.ask("GET", "/thumb/0")[1]["x-image"] == "missing"
        assert "cannot be shown" in site.get("/api/state")["notices"][0]
        assert site.get("/api/clusters")["total"] > 2
        status, _, content = site.ask("GET", "/api/images/0/neighbors")
        while status == 202:
            status, _, content = site.ask("GET", "/api/images/0/neighbors")
        assert status == 400 and "nowhere" in json.loads(content)["error"]


def test_other_images_are_assigned_and_kept_apart(run: Run, photos: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.npy"
    np.save(other, np.random.default_rng(0).integers(0, 255, (9, 16, 16, 3)).astype(np.uint8))
    explorer = open_explorer(run, str(other))
    np.testing.assert_array_equal(explorer.groups.group, run.assign(str(other)).cluster)
    explorer.edit({"op": "select", "images": [1], "on": True})
    explorer.close()
    again = open_explorer(run, str(other))
    assert again.groups.selected.tolist() == [False, True] + [False] * 7
    again.close()
    moved = open_explorer(run, str(photos))  # the run's own images, given by their path
    assert moved.folder == run.folder / "explore" and not moved.groups.selected.any()
    moved.close()


def test_mistakes_end_in_a_sentence(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(*words: object) -> str:
        assert main(["explore", *map(str, words)]) == 2
        return capsys.readouterr().err

    assert "does not exist" in said(tmp_path / "nothing")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(1)
        sentence = said(run.folder, "--port", taken.getsockname()[1])
        assert "cannot be had" in sentence and "--port 0" in sentence and sentence.count("\n") == 1
    assert "no port" in said(run.folder, "--port", 70000)
    assert "no file or folder" in said(run.folder, "--data", tmp_path / "gone")


@pytest.mark.slow
def test_the_command_serves_until_it_is_stopped(run: Run) -> None:
    command = [sys.executable, "-m", "deepcluster", "explore", str(run.folder), "--port", "0", "--device", "cpu"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line and "?token=" in line, process.stderr.read() if process.stderr else ""
        assert Site(line.split()[1]).get("/api/state")["images"] == len(run.assignment)
        second = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert second.returncode == 2 and "is open in another explorer" in second.stderr
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0 and out.strip() == "stopped" and err == ""
    finally:
        process.kill()
