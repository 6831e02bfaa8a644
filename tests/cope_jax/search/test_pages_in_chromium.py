"""The search page in a browser: results in place, clear error messages, and an empty console."""

import pytest
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from cope_jax.search.result_views import results_page
from cope_jax.search.uploads import MAX_FILE
from data_prep.synthetic.videos import encode
from tests.browser import DESKTOP, PHONE, chromium, console_messages, needs_chromium, resize
from tests.shop import HOSTILE, make_shop, picture, serve_shop

pytestmark = needs_chromium


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Address of a served shop."""
    with serve_shop(tmp_path_factory.mktemp("shop")) as (_, port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser():
    with chromium() as driver:
        yield driver


@pytest.fixture
def page(browser, address):
    resize(browser)
    browser.get(address)
    yield browser
    assert console_messages(browser) == []


def until(page, css: str):
    """Waits for the first element of a selector."""
    return WebDriverWait(page, 20).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, css))[0]


def hits(page) -> list[str]:
    until(page, ".hit")
    shown = page.find_elements(By.CSS_SELECTOR, ".hit .pictures > :first-child img")
    return [image.get_attribute("alt") for image in shown]


def test_typed_title_shows_results_in_place(page):
    page.find_element(By.ID, "text").send_keys("a dress of kind 3", Keys.ENTER)
    assert hits(page)[:3] == ["page 103", "video 103, picture 1 of 3", "live 103, picture 1 of 4"]
    assert page.current_url.endswith("/")
    assert page.find_element(By.ID, "text").get_attribute("value") == "a dress of kind 3"
    assert not page.find_elements(By.CSS_SELECTOR, "[aria-busy]")


def test_selected_picture_is_previewed_and_found(page, tmp_path):
    (tmp_path / "mine.png").write_bytes(picture(4))
    page.find_element(By.ID, "pictures").send_keys(str(tmp_path / "mine.png"))
    assert until(page, "#previews img").get_attribute("alt") == "mine.png"
    page.find_element(By.ID, "go").click()
    assert hits(page)[0] == "page 104"
    page.find_element(By.ID, "clear").click()
    assert not page.find_elements(By.CSS_SELECTOR, "#previews img")


def test_video_is_previewed_and_its_hits_play_from_their_time(browser, tmp_path):
    encode(tmp_path / "show.mp4", [picture(3, size=(64, 48), kind="JPEG")] * 730)
    encode(tmp_path / "clip.mp4", [picture(3, size=(64, 48), kind="JPEG")] * 2)
    (tmp_path / "shop").mkdir()
    with serve_shop(tmp_path / "shop", recording="show.mp4", videos=tmp_path) as (_, port):
        browser.get(f"http://127.0.0.1:{port}")
        browser.find_element(By.ID, "pictures").send_keys(str(tmp_path / "clip.mp4"))
        until(browser, "#previews video")
        assert browser.find_element(By.CSS_SELECTOR, "[name=domain]:checked").get_attribute("value") == "video"
        browser.find_element(By.ID, "go").click()
        link = until(browser, ".hit a.play")
        assert link.text == "▶ 11:52–12:00"
        link.click()
        video = until(browser, ".hit .pictures video")
        WebDriverWait(browser, 20).until(lambda _: video.get_property("currentTime") > 712)
        assert console_messages(browser) == []


def test_damaged_file_shows_an_error(browser, address, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(picture(4, kind="JPEG")[:-40])
    browser.get(address)
    browser.find_element(By.ID, "pictures").send_keys(str(tmp_path / "broken.jpg"))
    browser.find_element(By.ID, "go").click()
    assert until(browser, ".problem").text.startswith("broken.jpg cannot be read as a picture")
    # Chromium logs every 4xx response, and that the preview cannot be shown.
    assert all("415" in line or "ERR_" in line for line in console_messages(browser))


def test_oversized_file_shows_an_error_before_it_is_sent(page, tmp_path):
    (tmp_path / "huge.jpg").write_bytes(b"\xff" * (MAX_FILE + 200_000))
    page.find_element(By.ID, "pictures").send_keys(str(tmp_path / "huge.jpg"))
    assert until(page, ".problem").text == "huge.jpg has 10.2 MB: 10.0 MB at most."
    assert page.find_element(By.ID, "pictures").get_attribute("value") == ""


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([MAX_FILE + 200_000], "0.jpg has 10.2 MB: at most 10.0 MB per picture."),
        ([MAX_FILE - 1] * 7, "The pictures are too large: at most 60.0 MB together."),
    ],
)
def test_oversized_files_sent_without_scripts_show_an_error(browser, address, sizes, message):
    """Without scripts, only the server checks the form."""
    browser.get(address)
    browser.execute_script(
        "const files = new DataTransfer();"
        "arguments[0].forEach((size, i) => files.items.add(new File([new Uint8Array(size)], i + '.jpg')));"
        "document.getElementById('pictures').files = files.files;"
        "document.getElementById('form').submit();",
        sizes,
    )
    assert until(browser, ".problem").text == message
    assert all("413" in line for line in console_messages(browser))


def test_hostile_title_is_harmless(page, address):
    page.get(f"{address}/?domain=video&item=102")
    assert hits(page)[0] == "page 102"
    shown = page.find_element(By.CSS_SELECTOR, ".hit .text")
    assert shown.get_attribute("textContent") == HOSTILE
    page.find_element(By.ID, "text").send_keys("kind 1 <script>document.title='stolen'</script>", Keys.ENTER)
    until(page, ".query .text")
    assert page.title == "Product search"


def test_more_like_this(page):
    page.find_element(By.CSS_SELECTOR, ".samples a").click()
    assert {alt.split()[0] for alt in hits(page)} == {"video", "live"}
    page.find_element(By.CSS_SELECTOR, ".more").click()
    assert "domain=video&item=101" in page.current_url


def test_pictures_are_enlarged_and_more_hits_are_shown(page):
    """Twelve hits follow six, and the focus is on the first new one."""
    page.find_element(By.ID, "text").send_keys("kind 3", Keys.ENTER)
    assert len(hits(page)) >= 6
    until(page, ".hit a.zoom").send_keys(Keys.ENTER)
    picture = until(page, "#zoom[open] img")
    WebDriverWait(page, 20).until(lambda _: picture.get_property("naturalWidth") == 32)
    assert picture.get_attribute("alt") == "page 103"
    ActionChains(page).send_keys(Keys.ESCAPE).perform()
    assert not page.find_elements(By.CSS_SELECTOR, "#zoom[open]")
    until(page, "button.next").send_keys(Keys.ENTER)
    WebDriverWait(page, 20).until(lambda _: len(page.find_elements(By.CSS_SELECTOR, ".hit")) == 12)
    assert page.execute_script("return [...document.querySelectorAll('.more')].indexOf(document.activeElement)") == 6


def test_keyboard_reaches_everything_and_pictures_have_texts(page):
    reached = []
    for _ in range(11):
        ActionChains(page).send_keys(Keys.TAB).perform()
        element = page.switch_to.active_element
        reached.append(element.get_attribute("id") or element.get_attribute("name") or element.tag_name)
    search = ["domain", "search", "search", "search", "group", "where"]
    assert reached == ["pictures", "text", *search, "summary", "go", "a"]
    assert all(image.get_attribute("alt") for image in page.find_elements(By.TAG_NAME, "img"))
    outline = page.execute_script("return getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_page_fits_the_screen_and_follows_the_color_scheme(page, size, dark):
    resize(page, size, dark=dark)
    page.find_element(By.ID, "text").send_keys("kind 3", Keys.ENTER)
    hits(page)
    width, ground = page.execute_script(
        "return [document.documentElement.scrollWidth, getComputedStyle(document.body).backgroundColor]"
    )
    assert width <= size[0]
    assert (ground == "rgb(18, 21, 26)") == dark


def test_results_page_obeys_its_own_policy(page, tmp_path):
    """Styles apply and pictures load, and a script does not run."""
    html = results_page([make_shop(tmp_path).search_item("video", 102, top=3)], "Search")
    (tmp_path / "search.html").write_text(html.replace("<main>", "<main><script>document.title='stolen'</script>"))
    page.get((tmp_path / "search.html").as_uri())
    assert page.title == "Search"
    assert page.execute_script("return document.querySelector('.hit img').naturalWidth") > 0
    assert page.find_element(By.CSS_SELECTOR, ".hits").value_of_css_property("display") == "grid"
    (message,) = console_messages(page)
    assert "script-src" in message
