"""What the pages look like in a real browser: nothing sticks out, all text can be read, in every scheme."""

import copy
import io
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from compressor.report.compare import write_comparison
from compressor.report.page import write_report
from tests.report.browser import LOOKS, Browser, browser, installed

KEEP = os.environ.get("COMPRESSOR_SCREENSHOTS")
"""A folder to leave the pictures in, for people to look at."""

LOOKED = """(() => {
  const channels = colour => {
    const values = colour.match(/[\\d.]+/g).map(Number);
    return {rgb: values.slice(0, 3), alpha: values.length > 3 ? values[3] : 1};
  };
  const light = rgb => rgb
    .map(value => value / 255)
    .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4)
    .reduce((sum, value, at) => sum + value * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = element => {
    for (let at = element; at; at = at.parentElement) {
      const found = channels(getComputedStyle(at).backgroundColor);
      if (found.alpha > 0) return found.rgb;
    }
    return [255, 255, 255];
  };
  const texts = [...document.body.querySelectorAll('*')].filter(element =>
    element.tagName != 'STYLE' && element.getClientRects().length &&
    [...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim()));
  const contrasts = texts.map(element => {
    const style = getComputedStyle(element), drawn = element instanceof SVGElement;
    const ink = channels(drawn ? style.fill : style.color).rgb;
    const inks = [light(ink), light(behind(element))]
      .sort((a, b) => a - b);
    return {text: element.textContent.trim().slice(0, 30), ratio: (inks[1] + 0.05) / (inks[0] + 0.05)};
  });
  const out = texts.filter(element => element instanceof HTMLElement && !element.closest('.wide, pre, svg'))
    .filter(element => element.getBoundingClientRect().right > innerWidth + 1)
    .map(element => element.textContent.trim().slice(0, 30));
  const small = [...document.querySelectorAll('svg text')]
    .filter(element => element.getBoundingClientRect().height < 8).map(element => element.textContent.trim());
  return {
    width: document.documentElement.scrollWidth, inner: innerWidth, texts: texts.length, out, small,
    faint: contrasts.filter(one => one.ratio < 4.5), background: getComputedStyle(document.body).backgroundColor,
    figures: document.querySelectorAll('svg.plot').length, requests: performance.getEntriesByType('resource').length,
  };
})()"""


@pytest.fixture(scope="module")
def window() -> Iterator[Browser]:
    program = installed()
    if program is None:
        pytest.skip("no Chromium or Chrome is installed here")
    with browser(program) as opened:
        yield opened


Page = Callable[[str], Path]


@pytest.fixture
def page(request: pytest.FixtureRequest, tmp_path: Path) -> Page:
    def write(kind: str) -> Path:
        if kind != "comparison":
            return write_report(request.getfixturevalue(kind), tmp_path)
        one = copy.deepcopy(request.getfixturevalue("results"))
        return write_comparison([one, request.getfixturevalue("family")], tmp_path / "page.html")

    return write


@pytest.mark.parametrize("look", LOOKS)
@pytest.mark.parametrize("kind", ["results", "family", "perplexity", "comparison"])
def test_a_page_in_a_real_browser(window: Browser, page: Page, kind: str, look: str) -> None:
    found, picture = window.look(page(kind), LOOKS[look], LOOKED)
    if KEEP:
        (Path(KEEP) / f"{kind}-{look}.png").write_bytes(picture)
    assert found["width"] <= found["inner"] == LOOKS[look].width, "the page scrolls sideways"
    assert found["out"] == [], "text sticks out"
    assert found["faint"] == [], "text without contrast"
    assert found["small"] == [], "text in a figure too small to read"
    assert found["texts"] > 50
    assert found["figures"] >= 1
    assert found["requests"] == 0, "the page is not self-contained"
    dark = sum(map(int, re.findall(r"\d+", found["background"])[:3])) < 150
    assert dark == (LOOKS[look].scheme == "dark")
    with Image.open(io.BytesIO(picture)) as image:
        assert image.width == LOOKS[look].width
        assert image.height > 800
        assert len(image.convert("RGB").getcolors(1 << 24)) > 20, "nothing is drawn"
