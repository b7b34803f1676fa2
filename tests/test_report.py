"""The page of results: what it shows, and that it filters and plays in a browser."""
import base64
import contextlib
import csv
import io
import re
import shutil
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import ROOT, SAMPLE_RATE, load_json, made_once, read_table, run, tone

import eval_network
import models
import utils

HOSTILE = "<script>window.broken=1<", "\"'><img src=x onerror=window.broken=1>", "\N{BELL} & 'b',\""
# Ending of the name, format and subtype.
FORMATS = [(".wav", "WAV", "PCM_16"), (".flac", "FLAC", "PCM_16"), (".ogg", "OGG", "VORBIS"),
           (".mp3", "MP3", "MPEG_LAYER_III"), (".aiff", "AIFF", "PCM_16"),
           ("24.wav", "WAV", "PCM_24"), ("f.wav", "WAV", "FLOAT"), ("24.flac", "FLAC", "PCM_24"),
           (" 100% #1?.wav", "WAV", "PCM_16")]
SLOW = "2k.wav"  # at 2 kHz, which MP3 lacks
N_MISTAKES = len(FORMATS) + 1
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))),
                None)


@pytest.fixture(scope="module")
def report(tmp_path_factory, trained):
    """A folder with Results/data/report.html of 39 tones.

    Ten of the third class are wrong: three sound like the first class, seven like the second.
    """
    def make(folder):
        network, training = models.load_network(trained / "weights.keras")
        training.classes = sorted(HOSTILE)  # they were high, low and middle
        models.save_network(network, training, folder / "weights.keras")
        rng = np.random.default_rng(5)
        n = len(FORMATS)
        pitches_of = [1800] * n, [200] * n, [1800] * 3 + [200] * 6
        for label, pitches in zip(training.classes, pitches_of):
            (folder / "data" / label).mkdir(parents=True)
            for hertz, (ending, *kind) in zip(pitches, FORMATS):
                y = np.repeat(tone(rng, hertz, 2)[:, None], 2, axis=1)
                soundfile.write(folder / "data" / label / f"x{ending}", y, SAMPLE_RATE,
                                format=kind[0], subtype=kind[1])
            if label != training.classes[0]:
                soundfile.write(folder / "data" / label / f"x{SLOW}", y[::4], SAMPLE_RATE // 4)
        for k in range(10):
            soundfile.write(folder / f"data/{label}/xx{k}.wav", tone(rng, 600, 2), SAMPLE_RATE)
        said = run("eval_network.py", "--data", "data", cwd=folder).stdout
        (folder / "eval.txt").write_text(said)
    return made_once(tmp_path_factory, "report", make)


def page_of(folder):
    return (folder / "report.html").read_text()


def decode(uri):
    """The samples and the rate of a sound in a page."""
    kind, data = uri.split(",")
    assert kind == "data:audio/mpeg;base64"
    return soundfile.read(io.BytesIO(base64.b64decode(data)))


# ---------------------------------------------------------------- the file

def test_the_page_is_one_file_that_holds_all_its_sounds(report):
    page = page_of(report / "Results/data")
    links = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert {link.split(",")[0][:10] for link in links} == {
        "data:", "data:image", "data:audio", "#examples"}
    assert not re.search(r"https?:|@import|url\(", page)
    sounds = [decode(link) for link in links if link.startswith("data:audio")]
    assert len(sounds) == N_MISTAKES + 9
    for y, sample_rate in sounds:
        assert sample_rate == SAMPLE_RATE and abs(y).max() == pytest.approx(0.33, abs=0.06)
        assert len(y) / sample_rate == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("channels, rate, network_channels, mp3_rate", [
    (1, 8000, 1, 8000), (6, 16000, 2, 16000), (1, 1000, 1, 8000), (3, 9000, 3, 11025),
    (1, 96000, 1, 48000)])
def test_page_holds_the_first_seconds_of_a_sound(tmp_path, channels, rate, network_channels,
                                                 mp3_rate):
    settings = utils.FeatureSettings(rate, 96, 512, 128, network_channels, fmax=rate // 2)
    time = np.arange(12 * rate) / rate
    y = np.repeat(0.3 * np.sin(2 * np.pi * 300 * time)[:, None], channels, axis=1)
    soundfile.write(tmp_path / "long.aiff", y, rate)
    playable, seconds = eval_network.choose_playback(settings, 1)
    y, found_rate = decode(eval_network.embed_sound("long.aiff", tmp_path, settings, playable,
                                                    seconds))
    assert found_rate == mp3_rate and y.size == 10 * mp3_rate * min(network_channels, 2)
    assert 0.25 < abs(y[1000:-1000]).max() < 0.35


def test_sound_in_the_page_holds_no_more_than_the_network_hears(tmp_path):
    settings = utils.FeatureSettings(2000, 40, 256, 64)
    for hertz, low, high in ((300, 0.25, 0.4), (3000, 0, 0.05)):
        y = tone(np.random.default_rng(0), hertz, 2)
        soundfile.write(tmp_path / "x.wav", y, SAMPLE_RATE, "PCM_24")
        y, _ = decode(eval_network.embed_sound("x.wav", tmp_path, settings,
                                               *eval_network.choose_playback(settings, 1)))
        assert low <= abs(y[1000:-1000]).max() <= high


@pytest.mark.parametrize("sample_rate", [8000, 11025, 12000, 16000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
def test_page_of_many_noisy_sounds_can_be_mailed(tmp_path, sample_rate, channels):
    settings = utils.FeatureSettings(sample_rate, 40, 512, 128, channels)
    y = np.random.default_rng(0).normal(0, 0.2, (11 * sample_rate, channels))
    soundfile.write(tmp_path / "x.wav", y, sample_rate)
    for n in (100, 600):
        playback = eval_network.choose_playback(settings, n)
        assert 1 <= playback[1] <= 10
        uri = eval_network.embed_sound("x.wav", tmp_path, settings, *playback)
        assert n * len(uri) < 24e6


@pytest.mark.parametrize("sample_rate", [2000, 8000])
def test_sound_of_one_sample_is_too_short_to_be_played(tmp_path, sample_rate):
    soundfile.write(tmp_path / "x.wav", np.ones(1) / 2, 44100)
    settings = utils.FeatureSettings(sample_rate, 40, 256, 64)
    with pytest.raises(utils.UserError, match="x.wav: too short"):
        eval_network.embed_sound("x.wav", tmp_path, settings,
                                 *eval_network.choose_playback(settings, 1))


@pytest.mark.parametrize("seconds", [1, 3])
def test_page_says_where_a_sound_is_only_begun(report, evaluate, tmp_path, monkeypatch, seconds):
    monkeypatch.setattr(eval_network, "MAX_SECONDS", seconds)
    evaluate(report, "--data", "data", "--results", tmp_path)
    page = page_of(tmp_path / "data")
    assert page.count("You hear the first 1 s") == (page.count("<audio") if seconds == 1 else 0)


def test_page_of_many_mistakes_holds_some_of_each_pair_and_says_so(report, evaluate, tmp_path,
                                                                   monkeypatch):
    monkeypatch.setattr(eval_network, "MAX_CARDS", 4)
    monkeypatch.setattr(eval_network, "MAX_CELLS", 2)
    evaluate(report, "--data", "data", "--results", tmp_path)
    page = page_of(tmp_path / "data")
    pairs = re.findall(r'<li tabindex="-1" data-label="(.)" data-predicted="(.)"', page)
    assert sorted(pairs) == [("2", "0")] * 2 + [("2", "1")] * 2
    confidences = re.findall(r"predicted .* \(([01]\.\d+)\)</h3>", page)
    assert len(confidences) == 4 and confidences == sorted(confidences, reverse=True)
    assert f"The page holds 4 of {N_MISTAKES} mistakes, of as many pairs" in page
    assert page.count("<audio") == 4 + 3
    assert "The confusion matrix of 3 classes is below" in page
    assert '<table class="matrix"' not in page


def test_only_numbers_with_mistakes_on_the_page_are_buttons(report, evaluate, tmp_path,
                                                            monkeypatch):
    monkeypatch.setattr(eval_network, "MAX_CARDS", 1)
    evaluate(report, "--data", "data", "--results", tmp_path)
    page = page_of(tmp_path / "data")
    buttons = re.findall(r'<button data-label="(\d)" data-predicted="(\d)"', page)
    assert buttons == re.findall(r'<li tabindex="-1" data-label="(\d)" data-predicted="(\d)"', page)


def test_page_names_its_data_network_date_and_versions(report):
    found = load_json(report / "Results/data/metrics.json")
    assert re.fullmatch(r"20\d\d-\d\d-\d\d \d\d:\d\d", found["date"])
    page = page_of(report / "Results/data")
    assert f"Made on {found['date']}. Data: data. Weights: weights.keras, network" in page
    assert f", keras {found['versions']['keras']}, " in page


def test_scores_of_few_sounds_have_two_decimals(report):
    scores = page_of(report / "Results/data").split("Made on")[0].split("<header>")[1]
    table = page_of(report / "Results/data").split("<tbody>")[1]
    for text in (scores, table):
        assert set(map(len, re.findall(r"\b[01]\.(\d+)", text))) == {2}


def test_recipe_moves_wrong_labels_and_overwrites_nothing(tmp_path):
    recipe = re.search("```python\n(.*?)```", (ROOT / "docs/evaluation.md").read_text(), re.DOTALL)
    names = ["a/new\nline, \".wav", "a/right.wav", "a/taken.wav", "<b>/deep/x.wav"]
    for name in names:
        utils.save_text(tmp_path / "Samples" / name, name)
    utils.save_text(tmp_path / "Doubtful/a/taken.wav", "mine")
    verdicts = "wrong", "right", "wrong", "wrong"
    rows = [[name, name.split("/")[0], verdict] for name, verdict in zip(names, verdicts)]
    utils.save_csv(tmp_path / "marks.csv", [["file", "label", "verdict"], *rows])
    for _ in range(2):  # again with the same marks
        subprocess.run([sys.executable, "-c", recipe[1]], cwd=tmp_path, check=True)
        found = [path for path in tmp_path.glob("[SD]*/**/*") if path.is_file()]
        assert {str(path.relative_to(tmp_path)): path.read_text() for path in found} == {
            f"Doubtful/{names[0]}": names[0], f"Samples/{names[1]}": names[1],
            f"Samples/{names[2]}": names[2], f"Doubtful/{names[2]}": "mine",
            f"Doubtful/{names[3]}": names[3]}


def predictions_of(y, probabilities):
    names = [f"{k}/{i}" for i, k in enumerate(y)]
    classes = [f"c{k}" for k in range(probabilities.shape[1])]
    return eval_network.Predictions(names, y, probabilities, probabilities, names, classes)


def test_examples_are_the_most_confident_of_the_classes_in_the_mistakes(monkeypatch):
    y = np.repeat(range(4), 5)
    predictions = predictions_of(y, np.eye(4)[y] * np.linspace(0.5, 1, 20)[:, None])
    mistake = eval_network.Mistake("0/0", "c1", "c3", 0.9, 0.1, False)
    some = eval_network.list_examples(predictions, [mistake])
    assert some == ["1/9", "1/8", "1/7", "3/19", "3/18", "3/17"]
    for n_cards, n_examples in ((300, 12), (9, 8), (3, 3)):
        monkeypatch.setattr(eval_network, "MAX_CARDS", n_cards)
        assert len(eval_network.list_examples(predictions, [])) == n_examples


def test_picture_of_a_long_spectrogram_is_small():
    spectrogram = np.random.default_rng(0).uniform(-80, 0, (96, 200)).astype(np.float32)
    short = eval_network.embed_spectrogram(spectrogram)
    assert eval_network.embed_spectrogram(np.repeat(spectrogram, 100, axis=1)) == short
    assert 1000 < len(short) < 30_000


def test_sounds_that_are_not_there_are_named_and_other_picture_formats_are_shown(
        report, evaluate, tmp_path):
    shutil.copytree(report / "data", tmp_path / "data")
    with contextlib.chdir(tmp_path):
        run("preprocess_data.py", "--samples", "data", cwd=tmp_path)
        shutil.rmtree("data")
        shutil.move("Preproc", "data")
    for kind, tag in (("svg", 'src="data:image/svg+xml;base64,'), ("pdf", 'href="coverage.pdf"')):
        evaluate(tmp_path, "--data", "data", "--weights", report / "weights.keras", "--format",
                 kind)
        page = page_of(tmp_path / "Results/data")
        assert page.count("The sound is not in data, or") == N_MISTAKES + 9 and tag in page
        assert "You hear the first" not in page


def test_page_without_mistakes_has_examples_and_no_filter(report, evaluate, tmp_path):
    label = sorted(HOSTILE)[1]
    shutil.copytree(report / "data" / label, tmp_path / "data" / label)
    evaluate(tmp_path, "--data", "data", "--weights", report / "weights.keras")
    page = page_of(tmp_path / "Results/data")
    assert "10 of 10 test sounds are right</h1>" in page and "<p>No mistakes.</p>" in page
    assert "<form" not in page and page.count("<audio") == 3


# ---------------------------------------------------------------- labels in doubt

def test_labels_in_doubt_are_those_of_confident_learning():
    y = np.array([0] * 4 + [1] * 4)

    def find(*of_zero):
        p = np.array(of_zero)
        return eval_network.find_doubtful(predictions_of(y, np.stack([p, 1 - p], axis=1))).nonzero()

    # The means are 0.55 and 0.5. Four labels may be wrong, with margins of 0.2, 0.8, 0.1 and 0.9.
    assert find(0.9, 0.8, 0.4, 0.1, 0.2, 0.3, 0.55, 0.95)[0].tolist() == [3, 7]
    # The fifth is not as probable as a label of the first class is.
    assert find(0.98, 0.97, 0.96, 0.95, 0.9, 0.1, 0.1, 0.1)[0].tolist() == []
    # Of three in four of the second class, the label has less chance than the prediction.
    assert find(0.9, 0.8, 0.9, 0.1, 0.9, 0.9, 0.9, 0.1)[0].tolist() == [3]


def test_labels_in_doubt_are_marked_in_the_table_and_counted(report):
    said = (report / "eval.txt").read_text()
    rows = read_table(report / "Results/data/mistakes.csv")
    marks = [row["label_in_doubt"] for row in rows]
    assert len(rows) == N_MISTAKES and set(marks) <= {"yes", "no"} and "yes" in marks
    assert f"Labels in doubt: {marks.count('yes')}, marked in mistakes.csv" in said
    page = page_of(report / "Results/data")
    assert page.count("A wrong label, or a hard sound.") == marks.count("yes")


# ---------------------------------------------------------------- in a browser

@pytest.fixture(scope="module")
def browser():
    """A headless Chromium."""
    driver = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("there is no Chromium: apt install chromium")
    with driver.sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking",
                 "--autoplay-policy=no-user-gesture-required"]
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=flags)


@pytest.fixture
def page(browser, report):
    """The page in the browser. The test fails for an error in its console, and for a dialog."""
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    faults = []
    page.on("console", lambda message: faults.append(message.text))
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("request", lambda request: faults.append(request.url)
            if not request.url.startswith(("data:", "file:")) else None)
    page.goto((report / "Results/data/report.html").as_uri())
    yield page
    assert not page.evaluate("window.broken") and faults == []
    page.close()


def visible(page, selector):
    return page.locator(selector).locator("visible=true")


def test_hostile_names_are_shown_and_not_run(page):
    names = page.locator("tbody th button").all_inner_texts()
    assert names == sorted(HOSTILE)
    headings = page.locator("#mistakes h3").all_inner_texts()
    pairs = Counter(heading[:heading.rindex(" (")] for heading in headings)
    assert pairs == {f"{names[2]}, predicted {names[0]}": 3, f"{names[2]}, predicted {names[1]}": 7}
    assert page.locator("#mistakes .file").first.inner_text().startswith(f"{names[2]}/x")


def test_a_click_on_a_cell_or_class_shows_its_mistakes_and_correct_examples(page):
    names = sorted(HOSTILE)
    assert visible(page, "#mistakes > li").count() == 10
    for k, n in ((0, 3), (1, 7)):
        page.get_by_role("button", name=f"{n} of {names[2]} predicted {names[k]}").click()
        assert page.locator("#count").inner_text() == f"{n} of the 10 mistakes on this page"
        assert visible(page, "#mistakes > li").count() == n
        assert page.locator("[aria-pressed=true]").count() == 1
        assert visible(page, "#examples h3").all_inner_texts() == [names[k], names[2]]
    page.get_by_role("button", name=names[0], exact=True).click()
    assert visible(page, "#mistakes > li").count() == 0
    page.get_by_role("button", name="show all").click()
    page.wait_for_function("document.getElementById('count').textContent.startsWith('10 of')")
    assert visible(page, "#examples li").count() == 9
    page.locator("#predicted").select_option(index=1)
    assert visible(page, "#mistakes > li").count() == 3
    page.locator("#predicted").select_option(index=0)
    page.get_by_label("only labels in doubt").check()
    n_doubtful = page.get_by_text("A wrong label, or a hard sound.").count()
    assert visible(page, "#mistakes > li").count() == n_doubtful


PLAYING = "[...document.querySelectorAll('audio')].filter(audio => !audio.paused)"


def test_arrow_keys_walk_through_the_mistakes_and_play_each_alone(page):
    mistakes = page.locator("#mistakes > li")
    for key, position in (("Right", 0), ("Right", 1), ("Right", 2), ("Left", 1)):
        page.keyboard.press(f"Arrow{key}")
        source = mistakes.nth(position).locator("audio").get_attribute("src")
        page.wait_for_function(f"source => {PLAYING}.some(audio => audio.currentTime > 0 && "
                               "audio.getAttribute('src') === source)", arg=source)
        assert page.evaluate(f"{PLAYING}.length") == 1
        assert mistakes.nth(position).get_attribute("aria-current") == "true"


def test_fast_arrow_keys_select_and_play_the_last(page):
    for _ in range(N_MISTAKES):
        page.keyboard.press("ArrowRight")
    page.wait_for_timeout(500)  # the players report late
    last = page.locator("#mistakes > li").last
    assert last.get_attribute("aria-current") == "true"
    assert page.evaluate(f"{PLAYING}.length") == 1
    assert last.locator("audio").evaluate("audio => !audio.paused")


def test_arrow_keys_are_left_to_what_uses_them_itself(page):
    current = page.locator("#mistakes > li[aria-current]")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    first = current.locator(".file").inner_text()
    page.keyboard.press("Shift+ArrowRight")
    page.keyboard.press("Tab")  # to the player, in which the keys seek
    assert page.evaluate("document.activeElement.tagName") == "AUDIO"
    page.keyboard.press("ArrowRight")
    page.get_by_label("Confusion matrix").focus()
    page.keyboard.press("ArrowRight")
    assert current.locator(".file").inner_text() == first
    page.locator("#label").focus()
    page.keyboard.press("ArrowRight")
    assert current.locator(".file").inner_text() == first


def test_arrow_keys_walk_on_from_the_mistake_that_was_played(page):
    mistakes = page.locator("#mistakes > li")
    mistakes.nth(3).locator("audio").click(position={"x": 20, "y": 15})
    page.wait_for_function(f"{PLAYING}.length === 1")
    assert mistakes.nth(3).get_attribute("aria-current") == "true"
    page.keyboard.press("ArrowRight")
    assert mistakes.nth(4).get_attribute("aria-current") == "true"
    assert page.evaluate("document.activeElement.tagName") == "LI"


def test_arrow_keys_walk_through_the_mistakes_of_a_cell_from_the_first(page):
    for button in page.locator(".matrix button").all():
        for _ in range(2):  # again while one of them is current
            button.click()
            page.keyboard.press("ArrowRight")
            page.wait_for_function(f"{PLAYING}.length === 1")
            assert visible(page, "#mistakes > li").first.get_attribute("aria-current") == "true"
            page.keyboard.press("ArrowRight")
            assert visible(page, "#mistakes > li").nth(1).get_attribute("aria-current") == "true"


def test_marks_of_labels_are_saved_as_a_table_and_survive_a_reload(page, report, tmp_path):
    rows = [[row["file"], row["class"]] for row in read_table(report / "Results/data/mistakes.csv")]
    download = page.locator("#download")
    page.keyboard.press("w")  # no mistake is selected
    assert download.is_disabled()
    for key in ("ArrowRight", "w", "ArrowRight", "r", "ArrowRight", "w", "w", "ArrowRight", "w",
                "r", "Control+w"):
        page.keyboard.press(key)
    page.locator("#mistakes > li").nth(5).get_by_role("button", name="wrong").click()
    page.locator("#label").focus()
    page.keyboard.press("r")
    for _ in range(2):
        pressed = page.locator("[data-verdict][aria-pressed=true]").all_inner_texts()
        assert pressed == ["wrong", "right", "right", "wrong"]
        assert download.inner_text() == "Download marks (4)"
        with page.expect_download() as event:
            download.click()
        event.value.save_as(tmp_path / "marks.csv")
        assert event.value.suggested_filename == "marks.csv"
        with open(tmp_path / "marks.csv", newline="", encoding="utf-8") as file:
            assert list(csv.reader(file)) == [
                ["file", "label", "verdict"], [*rows[0], "wrong"], [*rows[1], "right"],
                [*rows[3], "right"], [*rows[5], "wrong"]]
        page.reload()


def test_each_spectrogram_has_its_frequencies_and_its_length(page):
    for card in (page.locator("#mistakes > li").first, page.locator("#examples li").first):
        ticks = card.locator(".hertz span").all_inner_texts()
        assert ticks == ["4 kHz", "1.79", "0.78", "0"]
        seconds = card.locator(".seconds span").all_inner_texts()
        assert seconds == ["0", "2.00\N{NO-BREAK SPACE}s"]
        axis = card.locator(".seconds").bounding_box()
        image = card.locator("img").bounding_box()
        assert (axis["x"], axis["width"]) == (image["x"], image["width"])
        assert card.locator(".hertz").bounding_box()["height"] == image["height"]
    filters = utils.FeatureSettings(SAMPLE_RATE, 96, 512, 128).filters.toarray()
    for tick, share in zip(ticks[1:3], (2 / 3, 1 / 3)):
        assert filters[:, round(float(tick) * 512 / 8)].argmax() == pytest.approx(96 * share, abs=2)


def test_a_player_started_by_a_key_keeps_the_focus(page):
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{PLAYING}.length === 1")
    page.keyboard.press("Tab")
    for n_playing in (0, 1):
        page.keyboard.press("Space")
        page.wait_for_function(f"{PLAYING}.length === {n_playing}")
        assert page.evaluate("document.activeElement.tagName") == "AUDIO"


def test_a_click_on_a_spectrogram_plays_and_stops_it_alone(page):
    for selector in ("#mistakes > li", "#examples li"):
        images = visible(page, f"{selector} .spectrogram")
        images.first.click()
        page.wait_for_function(f"{PLAYING}.length === 1")
        assert visible(page, f"{selector} audio").first.evaluate("audio => !audio.paused")
        images.nth(1).click()
        page.wait_for_function(f"{PLAYING}.length === 1")
        images.nth(1).click()
        assert page.evaluate(f"{PLAYING}.length") == 0


def test_a_sound_stops_when_its_mistake_is_hidden(page):
    page.get_by_role("button", name="3 of").click()
    page.keyboard.press("ArrowRight")
    page.wait_for_function(f"{PLAYING}.length === 1")
    page.locator("#predicted").select_option(index=2)
    assert page.evaluate(f"{PLAYING}.length") == 0


def test_sounds_of_all_formats_play(page):
    durations = page.evaluate("""() => Promise.all([...document.querySelectorAll("audio")].map(
        audio => new Promise(resolve => {
            audio.onloadedmetadata = () => resolve(audio.duration);
            audio.onerror = () => resolve(null);
            audio.load();
        })))""")
    assert durations == pytest.approx([2] * (N_MISTAKES + 9), abs=0.1)


def test_every_picture_player_and_button_has_a_name_for_a_screen_reader(page):
    card = page.locator("#mistakes > li").first
    file = card.locator(".file").inner_text()
    assert file.startswith(sorted(HOSTILE)[2])
    assert card.locator("audio").get_attribute("aria-label") == file
    assert card.locator("img").get_attribute("alt") == f"Spectrogram of {file}"
    labels = [button.get_attribute("aria-label") for button in page.locator(".matrix button").all()]
    names = sorted(HOSTILE)
    assert labels == [f"{n} of {names[2]} predicted {names[k]}" for k, n in ((0, 3), (1, 7))]
    alts = [image.get_attribute("alt") for image in page.locator("img.plot").all()]
    assert alts == [name.replace("_", " ") for name in eval_network.PLOTS]


def test_the_matrix_is_beside_the_classes_on_a_wide_screen(page):
    page.evaluate("""for (const row of document.querySelectorAll(".matrix tr"))
        for (let k = 0; k < 60; k++) row.append(row.lastElementChild.cloneNode(true))""")
    for width, is_beside in ((1600, True), (1280, True), (360, False)):
        page.set_viewport_size({"width": width, "height": 900})
        tops = [section.bounding_box()["y"] for section in page.locator(".tables section").all()]
        assert (tops[0] == tops[1]) == is_beside
        assert page.evaluate("document.documentElement.scrollWidth") == width


def test_the_page_fits_a_phone_and_is_dark_and_printable(page):
    assert visible(page, ".compare").count() == 0
    page.set_viewport_size({"width": 360, "height": 780})
    assert visible(page, ".compare").count() == 10
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    paper = "getComputedStyle(document.body).backgroundColor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    page.emulate_media(color_scheme="dark")
    assert page.evaluate(paper) == "rgb(21, 25, 29)"
    page.emulate_media(media="print", color_scheme="light")
    assert visible(page, "audio, .verdict").count() == 0
    assert visible(page, "#mistakes > li").count() == 10
    page.set_viewport_size({"width": 1200, "height": 800})  # of paper on its side
    style = "getComputedStyle(document.getElementById('examples')).overflowY"
    assert page.evaluate(style) == "visible"
