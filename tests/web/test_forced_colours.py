"""With the system's own few colours (forced colours) nothing that means something is lost."""

from __future__ import annotations

import time

import pytest
from playwright.sync_api import Page, expect

# What cannot be told apart any more from what it stands beside, by name.
LOST = """() => {
  const style = (selector) => getComputedStyle(document.querySelector(selector));
  const isSame = (names, property) =>
    new Set(names.map((own) => style(own)[property])).size < names.length;
  const isMarked = (marked, other) => ['outlineStyle', 'outlineColor', 'borderColor']
    .some((name) => style(marked)[name] !== style(other)[name]);
  const swatch = (tone) => `.filters .swatch[data-tone="${tone}"]`;
  const icon = (severity) => `.row .severity-icon[data-severity="${severity}"] circle`;
  const bar = (severity) => `.bars .${severity}`;
  const severities = ['information', 'warning', 'error'];
  const states = ['pending', 'delivered', 'dead'];
  const canvas = style('.card').backgroundColor;
  const found = [];
  const check = (name, isIt) => isIt && found.push(name);
  check('severities of the filters', isSame(severities.map(swatch), 'backgroundColor'));
  check('states of the filters', isSame(states.map(swatch), 'backgroundColor'));
  check('severities of the rows', isSame(severities.map(icon), 'stroke'));
  check('bars', isSame(severities.map(bar), 'fill'));
  check('bars', severities.some((own) => style(bar(own)).fill === canvas));
  check('texts of the pictures', style('.histogram text').fill !== style('h1').color);
  const isLost = (selector, state) =>
    !isMarked(`${selector}[${state}="true"]`, `${selector}[${state}="false"]`);
  check('the row that is selected', isLost('.row', 'aria-selected'));
  check('the range that is chosen', isLost('.ranges button', 'aria-pressed'));
  check('what is left out', isLost('.not', 'aria-pressed'));
  check('the chips', style('.chip').borderStyle === 'none');
  check('the findings', style('.findings li').borderTopStyle === 'none');
  check('the focus', style('#export').outlineStyle === 'none');
  return found;
}"""

FORGET = """() => {
  for (const sheet of document.styleSheets) {
    for (let index = sheet.cssRules.length - 1; index >= 0; index -= 1) {
      if (sheet.cssRules[index].conditionText?.includes('forced-colors')) sheet.deleteRule(index);
    }
  }
}"""


@pytest.fixture
def varied(agent_site, event, settled):
    """Every severity and every state, and a destination that is away."""
    now = int(time.time() * 1000)
    severities = ("information", "warning", "error", "information")
    agent_site.accept(*(event(f"Type {n}", severity=own) for n, own in enumerate(severities)))
    agent_site.settle(settled.dead(2, now), settled.delivered(3, now))
    agent_site.destination.now = agent_site.destination.now._replace(state="backingOff")
    return agent_site


def looked_at(page: Page) -> None:
    """A row is selected, a value is left out, a range is chosen, and a link has the focus."""
    expect(page.locator(".row")).to_have_count(3)
    expect(page.locator(".bars rect").first).to_be_attached()
    expect(page.locator("#findings li").first).to_be_visible()
    expect(page.locator('.not[aria-pressed="true"]')).to_have_count(1)
    page.locator("#grid").focus()
    page.keyboard.press("j")
    page.locator("#q").focus()
    page.keyboard.press("Tab")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_severity_state_selection_and_focus_are_seen_with_forced_colours(
    varied, open_page, scheme
) -> None:
    page = open_page(f"{varied.url}/?notType=Type+3", scheme=scheme, forced_colors="active")
    looked_at(page)
    assert page.evaluate("matchMedia('(forced-colors: active)').matches")
    assert page.evaluate(LOST) == []
    page.evaluate(FORGET)
    lost = page.evaluate(LOST)
    assert {"severities of the filters", "the range that is chosen", "the chips"} <= set(lost)
