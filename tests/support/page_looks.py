"""What can be measured of a page's looks: its width, its contrast."""

from __future__ import annotations

from typing import Any

WIDTHS = (390, 1280)
"""CSS pixels of a phone and of a laptop."""
SCHEMES = ("light", "dark")
LEAST_CONTRAST = 4.5
"""Of text that is not large: WCAG 2.2, success criterion 1.4.3 (level AA)."""

# Of every text on the screen, by the ground that is behind it: those with too little contrast.
# https://www.w3.org/TR/WCAG22/#dfn-contrast-ratio
_PALE = """least => {
    const parse = (colour) => {
        const parts = colour.match(/[\\d.]+/g).map(Number);
        const scale = colour.startsWith("color(") ? 255 : 1;
        return [...parts.slice(0, 3).map((part) => part * scale), parts[3] ?? 1];
    };
    const over = (top, below) =>
        top.slice(0, 3).map((v, i) => v * top[3] + below[i] * (1 - top[3]));
    const light = (rgb) => rgb.map((v) => v / 255)
        .map((v) => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
    const ground = (element) => {
        const back = parse(getComputedStyle(element).backgroundColor);
        if (back[3] === 1) return back.slice(0, 3);
        const dark = matchMedia("(prefers-color-scheme: dark)").matches;
        const paper = dark ? [0, 0, 0] : [255, 255, 255];
        return over(back, element.parentElement ? ground(element.parentElement) : paper);
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const text = walker.currentNode.textContent.trim();
        const element = walker.currentNode.parentElement;
        const style = getComputedStyle(element);
        const unread = "svg, script, style, [disabled], [aria-disabled=true]";
        if (!text || element.closest(unread)) continue;
        if (!element.checkVisibility({opacityProperty: true, visibilityProperty: true})) continue;
        // for screen readers only
        if (style.clipPath !== "none" || element.getBoundingClientRect().width <= 1) continue;
        let opacity = 1;
        for (let e = element; e; e = e.parentElement) opacity *= getComputedStyle(e).opacity;
        const back = ground(element);
        const ink = parse(style.color);
        const [a, b] = [light(over([...ink.slice(0, 3), ink[3] * opacity], back)), light(back)];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < least) found.push(`${ratio.toFixed(2)}: ${text.slice(0, 60)}`);
    }
    return found;
}"""


def pale_texts(page: Any) -> list[str]:
    """Texts on the screen with less contrast than :data:`LEAST_CONTRAST`, with their ratio."""
    found: list[str] = page.evaluate(_PALE, LEAST_CONTRAST)
    return found


def scroll_width(page: Any) -> int:
    """CSS pixels; more than the window's where one has to scroll sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth"))
