"""The page about a run: complete, self-contained, escaped, and seen in a browser."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import Browser
from matplotlib.image import imread
from run_by_hand import write_evaluation, write_run
from small_runs import quiet

from fastdqn.cli import main
from fastdqn.commands import report
from fastdqn.trainer import train

# one second of green, 32x32, H.264
MP4 = base64.b64decode(
    "AAAAIGZ0eXBpc29tAAACAGlzb21pc28yYXZjMW1wNDEAAAMPbW9vdgAAAGxtdmhkAAAAAAAAAAAAAAAAAAAD6AAAA+gAAQAAAQAAAAAAAAAA"
    "AAAAAAEAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAgAAAl50cmFrAAAAXHRr"
    "aGQAAAADAAAAAAAAAAAAAAABAAAAAAAAA+gAAAAAAAAAAAAAAAAAAAAAAAEAAAAAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAABAAAAAACAA"
    "AAAgAAAAAAAkZWR0cwAAABxlbHN0AAAAAAAAAAEAAAPoAAAAAAABAAAAAAHWbWRpYQAAACBtZGhkAAAAAAAAAAAAAAAAAABAAAAAQABVxAAA"
    "AAAALWhkbHIAAAAAAAAAAHZpZGUAAAAAAAAAAAAAAABWaWRlb0hhbmRsZXIAAAABgW1pbmYAAAAUdm1oZAAAAAEAAAAAAAAAAAAAACRkaW5m"
    "AAAAHGRyZWYAAAAAAAAAAQAAAAx1cmwgAAAAAQAAAUFzdGJsAAAAwXN0c2QAAAAAAAAAAQAAALFhdmMxAAAAAAAAAAEAAAAAAAAAAAAAAAAA"
    "AAAAACAAIABIAAAASAAAAAAAAAABDExhdmMgbGlieDI2NAAAAAAAAAAAAAAAAAAAAAAAAAAAGP//AAAAN2F2Y0MBZAAK/+EAGWdkAAqscgRJ"
    "bARAAAADAEAAAAMBA8SJYRgBAAdo6EOBhLIs/fj4AAAAABBwYXNwAAAAAQAAAAEAAAAUYnRydAAAAAAAAAEwAAABMAAAABhzdHRzAAAAAAAA"
    "AAEAAAACAAAgAAAAABRzdHNzAAAAAAAAAAEAAAABAAAAHHN0c2MAAAAAAAAAAQAAAAEAAAACAAAAAQAAABxzdHN6AAAAAAAAAAAAAAACAAAA"
    "GQAAAA0AAAAUc3RjbwAAAAAAAAABAAADPwAAAD11ZHRhAAAANW1ldGEAAAAAAAAAIWhkbHIAAAAAAAAAAG1kaXJhcHBsAAAAAAAAAAAAAAAA"
    "CGlsc3QAAAAIZnJlZQAAAC5tZGF0AAAAFWWIgQACn/6tRp5lJq2EaJ2K01NTmQAAAAlBmggtiCX/Y0A="
)
GIF = base64.b64decode("R0lGODlhAgACAIAAAP8AAAAA/yH5BAAAAAAALAAAAAACAAIAAAIDRAIFADs=")
VOID = {"meta", "link", "img", "br", "path"}  # elements without an end tag; path ends itself


class Page(HTMLParser):
    """Elements with their attributes, the text, and whether every element that opens also closes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.words: list[str] = []
        self._open: list[str] = []
        self.feed(path.read_text())
        assert not self._open, f"never closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def make(run: Path) -> Page:
    assert main(["report", str(run)]) == 0
    return Page(run / "report.html")


def full_run(path: Path) -> Path:
    """A Breakout run with everything a page can show."""
    run = write_run(path, [0.02 * i for i in range(300)], preset="fast", n_step=5, frames=9_600)
    write_evaluation(run, 6.5)
    (run / "videos").mkdir()
    (run / "videos" / "game.mp4").write_bytes(MP4)
    return run


def test_everything_the_page_refers_to_is_inside_it(tmp_path: Path) -> None:
    page = make(full_run(tmp_path / "run"))
    refers = {"src", "href", "srcset", "poster", "action", "data", "background", "xlink:href", "formaction", "cite"}
    for tag, attributes in page.elements:
        assert tag not in {"script", "iframe", "object", "embed", "base", "form"}
        for name, value in attributes.items():
            assert not name.startswith("on")
            assert name not in refers or value.startswith(("data:", "#")), f"{tag} {name}={value[:60]}"
            assert "url(" not in value
    text = (tmp_path / "run" / "report.html").read_text()
    assert "@import" not in text and "url(" not in text and not re.search(r"https?://", text)
    policy = next(one["content"] for one in page.all("meta") if "http-equiv" in one)
    assert policy.startswith("default-src 'none';")


def test_the_page_has_its_sections_and_their_figures(tmp_path: Path) -> None:
    page = make(full_run(tmp_path / "run"))
    sections = [
        "Summary",
        "Curves",
        "Where the time went",
        "Evaluation",
        "Video",
        "Configuration",
        "Hardware and versions",
    ]
    places = [page.text.index(name) for name in sections]
    assert places == sorted(places)
    assert len(page.all("svg")) == 4 and len(page.all("video")) == 1
    assert "score, last 100 games 4.99" in page.text and "human-normalised 11.4%" in page.text
    assert "random play 1.7; human 30.5 (above)" in page.text
    assert "n_step 5 3 3" in page.text  # this run, preset, default
    assert "learn 50.0%" in page.text and "77" in page.text and "5.50 to 7.50" in page.text
    assert "Some CPU" in page.text and "torch 2.13.0" in page.text and "fastdqn train --preset fast" in page.text


def test_the_foot_says_what_a_frame_is(tmp_path: Path) -> None:
    assert "frames are emulator frames, 4 per env step." in make(full_run(tmp_path / "atari")).text
    assert "Scores are unclipped; a frame is an env step." in make(write_run(tmp_path / "catch", [1.0])).text


def test_only_settings_that_differ_from_the_preset_are_listed(tmp_path: Path) -> None:
    same = make(write_run(tmp_path / "same", [1.0]))
    assert "Nothing differs from preset catch." in same.text
    # vectors instead of a screen: frame_stack and encoder follow from the env and are no difference of their own
    page = make(write_run(tmp_path / "other", [1.0], preset="fast", env="CartPole-v1", learning_rate=1e-3))
    table = page.text.split("What differs from preset fast.")[1].split("Every field")[0].strip()
    assert (
        table == "field this run preset default env CartPole-v1 Breakout-v5 Breakout learning_rate 0.001 0.0005 0.00025"
    )


def test_a_preset_that_no_longer_ships_is_compared_with_the_defaults(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0])
    (run / "config.toml").write_text((run / "config.toml").read_text().replace('preset = "catch"', 'preset = "lost"'))
    assert "the defaults (preset lost does not ship with this version)" in make(run).text


def test_what_files_hold_is_escaped(tmp_path: Path) -> None:
    attack = '"><img src=x onerror=alert(1)><script>alert(2)</script>'
    run = write_run(tmp_path / "<i>run", [1.0] * 20)
    (run / "command.txt").write_text(attack)
    (run / "environment.json").write_text(json.dumps({"cpu": attack, attack: attack}))
    (run / "status.json").write_text(json.dumps({"state": attack, "time": attack}))
    write_evaluation(run, 1.0, protocol="sticky")
    result = next((run / "eval").glob("*.json"))
    result.write_text(result.read_text().replace('"sticky"', json.dumps(attack)))
    config = (run / "config.toml").read_text().replace('preset = "catch"', f"preset = '{attack}'")
    (run / "config.toml").write_text(config)
    row = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    row[f"perf/{attack}_frac"] = 0.1
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")
    (run / "videos").mkdir()
    (run / "videos" / '"><script>.gif').write_bytes(GIF)
    page = make(run)
    assert not page.all("script") and not page.all("i")
    assert [image["alt"] for image in page.all("img")] == ['"><script>.gif']
    assert page.text.count("alert(2)") >= 6


def test_files_are_read_and_written_as_utf_8_whatever_the_locale(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [1.0])
    (run / "command.txt").write_text("fastdqn train --run-dir é", encoding="utf-8")
    locale = {**os.environ, "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "LC_ALL": "C"}
    command = [sys.executable, "-m", "fastdqn", "report", str(run)]
    done = subprocess.run(command, capture_output=True, text=True, env=locale)
    assert done.returncode == 0, done.stderr
    assert "--run-dir é" in (run / "report.html").read_text(encoding="utf-8")


def test_a_folder_whose_name_is_no_text_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "caf\udce9", [1.0])
    assert main(["report", str(run)]) == 0
    assert "caf?" in (run / "report.html").read_text(encoding="utf-8")


def test_a_pipe_or_device_is_written_to_and_not_replaced_by_a_file(tmp_path: Path) -> None:
    run, pipe = write_run(tmp_path / "run", [1.0]), tmp_path / "page.html"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDWR)  # of a pipe opened so, writing waits for nobody
    assert main(["report", str(run), "-o", str(pipe)]) == 0
    assert pipe.is_fifo() and os.read(reader, 100).lower().startswith(b"<!doctype html>")
    os.close(reader)


def test_a_run_that_has_just_begun_has_a_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", preset="fast")
    for name in ("episodes.csv", "metrics.jsonl", "status.json", "environment.json", "command.txt"):
        (run / name).unlink()
    page = make(run)
    assert "no finished game yet" in page.text and "Nothing to draw yet." in page.text
    assert "Nothing logged yet." in page.text and "fastdqn eval" in page.text and "fastdqn record" in page.text


def test_the_newest_video_below_the_limit_is_embedded_and_a_larger_one_named(tmp_path: Path, monkeypatch) -> None:
    run = full_run(tmp_path / "run")
    (run / "videos" / "newer.gif").write_bytes(GIF)
    (run / "videos" / "newest.mp4").write_bytes(MP4 + bytes(100))
    (run / "videos" / "begun.mp4").write_bytes(b"")
    for age, name in enumerate(["begun.mp4", "newest.mp4", "newer.gif", "game.mp4"]):
        os.utime(run / "videos" / name, (1_000_000 - age, 1_000_000 - age))
    assert make(run).all("video")[0]["aria-label"] == "newest.mp4"
    monkeypatch.setattr(report, "VIDEO_LIMIT_BYTES", len(MP4))
    page = make(run)
    assert (
        not page.all("video") and page.all("img")[0]["src"] == f"data:image/gif;base64,{base64.b64encode(GIF).decode()}"
    )
    assert "newer.gif; newest.mp4 (0.0 MB) is larger than 0 MB and left out" in page.text


@pytest.mark.parametrize(("preset", "said"), [("fast", "fastdqn record {} makes one"), ("catch", "draws no picture")])
def test_what_is_missing_is_told_with_a_line_to_copy_where_there_is_one(preset: str, said: str, tmp_path: Path) -> None:
    run = write_run(tmp_path / "a run", preset=preset)
    text = make(run).text
    assert said.format(f"'{run}'") in text and f"fastdqn eval '{run}' plays 100 games" in text


def test_json_names_the_page_and_a_folder_that_is_missing_is_one_line(tmp_path: Path, capsys) -> None:
    run = write_run(tmp_path / "run", [1.0])
    out = tmp_path / "page.html"
    assert main(["report", str(run), "-o", str(out), "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["report"] == str(out) and figures["bytes"] == out.stat().st_size
    assert main(["report", str(run), "-o", str(tmp_path / "no" / "page.html")]) == 2
    error = capsys.readouterr().err
    assert "cannot be written (No such file or directory); name another file" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("report") / "run"
    train(quiet("catch", run, total_frames=6_000))
    return run


def test_a_run_that_was_really_trained_can_be_plotted_compared_and_reported(trained: Path, capsys) -> None:
    assert main(["compare", str(trained), "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["groups"]
    assert row["frames"] >= 6_000 and row["frames_per_second"] > 0 and -1 <= row["iqm"] <= 1
    assert main(["plot", str(trained), "--ascii", "--metric", "fps"]) == 0
    page = make(trained)
    assert "state finished" in page.text and len(page.all("svg")) == 4
    assert "Nothing differs from preset catch" not in page.text and "total_frames 6000 60000 40000000" in page.text


def test_a_browser_shows_the_page_at_phone_and_desktop_width(trained: Path, tmp_path: Path) -> None:
    program = shutil.which("chromium") or shutil.which("chromium-browser")
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    runs = [full_run(tmp_path / "full"), trained]
    (trained / "videos" / "game.gif").write_bytes(GIF)
    for run in runs:
        make(run)
    browser = Browser(program, tmp_path / "profile")
    try:
        for run in runs:
            for width, height in ((390, 844), (1280, 900)):
                colours = {}
                for scheme in ("light", "dark"):
                    browser.resize(width, height, scheme=scheme)
                    browser.open((run / "report.html").resolve().as_uri())
                    picture = tmp_path / f"{run.name}-{width}-{scheme}.png"
                    colours[scheme] = look_at(browser, width, picture)
                assert colours["light"] > 0.8 and colours["dark"] < 0.2  # the page's background
        assert browser.errors() == []
        assert all(url.startswith(("file://", "data:")) for url in browser.requests())
    finally:
        browser.close()


def look_at(browser: Browser, width: int, picture: Path) -> float:
    """Checks what is on the screen; returns how bright the page's upper left corner is."""
    sizes = "[...document.querySelectorAll('svg, img')].map(e => e.getBoundingClientRect())"
    drawn = json.loads(browser.evaluate(f"JSON.stringify({sizes}.map(r => [r.width, r.height]))"))
    assert len(drawn) >= 4 and all(w > 0 and h > 0 for w, h in drawn)
    assert all(w > 250 for w, _ in drawn[:4])  # charts are not thumbnails
    assert browser.evaluate("[...document.images].every(i => i.complete && i.naturalWidth > 0)")
    metadata = """Promise.all([...document.querySelectorAll('video')].map(v => v.error ? 0 : v.videoWidth ||
        new Promise(done => { v.onloadedmetadata = () => done(v.videoWidth); v.onerror = () => done(0); })))"""
    assert all(size == 32 for size in browser.evaluate(metadata))
    assert browser.evaluate("document.documentElement.scrollWidth") <= width  # nothing makes the page scroll sideways
    browser.screenshot(picture)
    pixels = imread(picture)[..., :3]
    assert pixels.shape[1] == width and pixels.shape[0] > 800
    assert pixels.std() > 0.02 and len({tuple(pixel) for pixel in pixels[::7, ::7].reshape(-1, 3).tolist()}) > 20
    return float(pixels[2, 2].mean())
