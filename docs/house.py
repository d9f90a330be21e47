"""Draw docs/house.svg, the picture of ARCHITECTURE.md, from the layers that tests hold.

Run: .venv/bin/python -m docs.house
"""

from __future__ import annotations

from html import escape
from pathlib import Path

from tests.test_layering import LAYERS

PICTURE = Path(__file__).parent / "house.svg"
WIDTH, BAND, GAP = 1000, 74, 10
LEFT, BOX = 44, 50
# What a room is of: flow 1, flow 2, flow 3, or all of them.
FLOWS = {
    "#dbeafe": "io preprocessing backbones inference extraction extract",
    "#dcfce7": "annotations evaluation segmentation evaluate segment",
    "#fef3c7": "tuning tune",
}
KEY = {
    "#dbeafe": "flow 1: extract, the only place that runs a backbone",
    "#dcfce7": "flow 2: evaluate and segment, from the cache alone",
    "#fef3c7": "flow 3: tune",
    "#f3f4f6": "all flows",
}
SIGNS = {
    ">": "\u2039",
    "|": "\u2016",
}  # may import what stands left of it; neither imports the other
WORDS = {
    "stores": "what is on disk: arrays, receipts, claims, tables, a folder or a bucket",
    "types": "slices, headers",
    "recipe": "what changes values",
    "config": "the YAML",
    "results": "scores on file",
    "shared": "pseudonyms, paths",
    "io": "files to slices",
    "preprocessing": "pixels scaled",
    "annotations": "labels and masks",
    "backbones": "names to networks",
    "inference": "batches on a device",
    "extraction": "discover, sync, embed",
    "evaluation": "splits, heads, metrics",
    "segmentation": "heads on tokens",
    "datasets": "demo, public sets",
    "tuning": "networks trained",
    "outlook": "will labels join?",
    "extract": "FLOW 1",
    "evaluate": "FLOW 2",
    "segment": "FLOW 2, masks",
    "tune": "FLOW 3",
    "report": "the page",
    "benchmark": "sets by backbones",
    "studies": "speed, precision",
    "doctor": "what is missing",
    "fitted": "models of answers",
    "api": "notebooks",
    "commands": "arguments, printing",
    "cli": "exit codes",
}


def colour(room: str) -> str:
    """Return the colour of a room's flow."""
    return next((c for c, rooms in FLOWS.items() if room in rooms.split()), "#f3f4f6")


def signs(layer: str) -> list[tuple[str, str]]:
    """Return the rooms of a layer from left to right, each with the sign that stands before it."""
    spaced = layer.replace(">", " > ").replace("|", " | ").replace(",", " , ").split()
    before = ["", *spaced[1::2]]
    return list(zip(before, spaced[::2], strict=True))


def text(x: float, y: float, words: str, size: int, *, weight: int = 400) -> str:
    """Return words centred at a place."""
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" font-size="{size}" font-weight="{weight}" '
        f'text-anchor="middle" fill="#111827">{escape(words)}</text>'
    )


def band(number: int, layer: str, top: float) -> list[str]:
    """Return what draws one layer."""
    rooms = signs(layer)
    width = (WIDTH - LEFT - GAP) / len(rooms)
    parts = [
        f'<rect x="0" y="{top}" width="{WIDTH}" height="{BAND - 6}" fill="#f9fafb"/>',
        text(LEFT / 2, top + 40, str(number), 18, weight=700),
    ]
    for place, (sign, room) in enumerate(rooms):
        x = LEFT + place * width
        parts.append(
            f'<rect x="{x + GAP:.0f}" y="{top + 9}" width="{width - 2 * GAP:.0f}" height="{BOX}" '
            f'rx="6" fill="{colour(room)}" stroke="#6b7280"/>'
        )
        if sign in (">", "|"):
            parts.append(text(x, top + 40, SIGNS[sign], 20))
        parts.append(text(x + width / 2, top + 31, room, 15, weight=600))
        parts.append(text(x + width / 2, top + 49, WORDS[room], 11))
    return parts


def svg() -> str:
    """Return the picture: the doors above, what is on disk below."""
    layers = LAYERS.strip().splitlines()
    parts: list[str] = []
    for place, (number, layer) in enumerate(reversed(list(enumerate(layers, start=1)))):
        parts += band(number, layer, place * BAND)
    below = len(layers) * BAND + 16
    for place, (fill, words) in enumerate(KEY.items()):
        x = LEFT + GAP + (0, 350, 690, 800)[place]
        parts.append(f'<rect x="{x}" y="{below - 10}" width="12" height="12" fill="{fill}"/>')
        parts.append(
            f'<text x="{x + 18}" y="{below + 1}" font-size="12" fill="#111827">'
            f"{escape(words)}</text>"
        )
    height = below + 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        f'font-family="system-ui, sans-serif" role="img" '
        f'aria-label="The layers of radprobe, from the doors down to the store">\n'
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>\n'
        + "\n".join(parts)
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    PICTURE.write_text(svg(), encoding="utf-8")
