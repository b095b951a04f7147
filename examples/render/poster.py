#!/usr/bin/env python3
"""Puts the portraits of the worlds together into one poster, a PNG.

    poster.py DIR POSTER.png

Finds every portrait below DIR (NAME.rgb beside NAME.json, as render.py writes them),
hangs them in rows with their names, and says under each which node computed it. The
letters are drawn as strokes, the PNG is packed by hand: Python's standard library only.
"""

import json
import math
import os
import struct
import sys
import zlib

# Letters as strokes on a grid four wide and six high, the base line at 0. A stroke is a
# string of points "xy"; strokes are parted by blanks.
STROKES = {
    "A": "002640 1232", "B": "000636454433 033342413000", "C": "4130100105163645", "D": "00062644422000",
    "E": "40000646 0333", "F": "000646 0333", "G": "453616050110304143 4323", "H": "0006 4046 0343",
    "I": "2026", "J": "364641301001", "K": "0006 4603 1440", "L": "060040", "M": "0006234640",
    "N": "00064046", "O": "103041453616050110", "P": "000636454433 0333", "Q": "103041453616050110 2240",
    "R": "000636454433 0333 2340", "S": "011030414233130405163645", "T": "2026 0646", "U": "060110304146",
    "V": "062046", "W": "0610233046", "X": "0046 0640", "Y": "062346 2320", "Z": "06460040",
    "0": "103041453616050110", "1": "152620", "2": "05163645440040", "3": "05163645443313 334241301001",
    "4": "30360242", "5": "460603334241301001", "6": "453616050110304142331302", "7": "064610",
    "8": "133344453616050413 1302011030414233", "9": "011030414536160504133344", ".": "1010", ",": "1100",
    "-": "1333", "/": "0046", "'": "2624", ":": "1111 1414", "·": "2323", "_": "0040",
}


def strokes(letter):
    for word in STROKES.get(letter, "").split():
        yield [(int(word[i]), int(word[i + 1])) for i in range(0, len(word), 2)]


class Canvas:
    """A picture of width x height pixels, three bytes each."""

    def __init__(self, width, height, ground):
        self.width, self.height = width, height
        self.pixels = bytearray(bytes(ground) * (width * height))

    def paste(self, left, top, size, picture):
        for row in range(size):
            at = ((top + row) * self.width + left) * 3
            self.pixels[at : at + size * 3] = picture[row * size * 3 : (row + 1) * size * 3]

    def blend(self, x, y, paint, cover):
        if 0 <= x < self.width and 0 <= y < self.height:
            at = (y * self.width + x) * 3
            for i in range(3):
                old = self.pixels[at + i]
                self.pixels[at + i] = int(old + (paint[i] - old) * cover)

    def line(self, x0, y0, x1, y1, thick, paint):
        """A stroke with round ends; each pixel is covered by its distance from the stroke."""
        half = thick / 2.0
        dx, dy = x1 - x0, y1 - y0
        length = dx * dx + dy * dy
        for y in range(int(min(y0, y1) - half - 1), int(max(y0, y1) + half + 2)):
            for x in range(int(min(x0, x1) - half - 1), int(max(x0, x1) + half + 2)):
                px, py = x + 0.5 - x0, y + 0.5 - y0
                t = max(0.0, min(1.0, (px * dx + py * dy) / length)) if length else 0.0
                far = math.hypot(px - t * dx, py - t * dy)
                cover = half + 0.5 - far
                if cover > 0.0:
                    self.blend(x, y, paint, min(1.0, cover))

    def text(self, middle, base, words, height, paint, thick, space=2.2):
        """Writes `words` centred on `middle`; `height` is that of a capital."""
        unit = height / 6.0
        advance = (4 + space) * unit
        left = middle - (len(words) * advance - space * unit) / 2.0
        for letter in words.upper():
            for points in strokes(letter):
                for (ax, ay), (bx, by) in zip(points, points[1:]):
                    self.line(left + ax * unit, base - ay * unit, left + bx * unit, base - by * unit, thick, paint)
            left += advance

    def png(self):
        def chunk(kind, data):
            return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

        row = self.width * 3
        rows = b"".join(b"\0" + self.pixels[at : at + row] for at in range(0, len(self.pixels), row))
        head = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows, 6)) + chunk(b"IEND", b"")


def find(root):
    """Every portrait below `root`, in order of its file's name."""
    found = []
    for folder, _, files in os.walk(root):
        for name in files:
            if name.endswith(".json") and name[:-5] + ".rgb" in files:
                with open(os.path.join(folder, name), encoding="utf-8") as file:
                    about = json.load(file)
                with open(os.path.join(folder, name[:-5] + ".rgb"), "rb") as file:
                    about["picture"] = file.read()
                if len(about["picture"]) != about["size"] ** 2 * 3:
                    sys.exit(f"{name}: the picture is cut short")
                found.append((name, about))
    return [about for _, about in sorted(found, key=lambda pair: pair[0])]


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    worlds = find(sys.argv[1])
    if not worlds:
        sys.exit(f"no portraits below {sys.argv[1]}")
    size = worlds[0]["size"]
    if any(world["size"] != size for world in worlds):
        sys.exit("the portraits differ in size")

    columns = min(4, len(worlds))
    rows = -(-len(worlds) // columns)
    gap, label = size // 12, size // 4
    head = size * 5 // 8
    width = columns * size + (columns + 1) * gap
    height = head + rows * (size + label) + gap
    canvas = Canvas(width, height, (7, 9, 17))
    ink, soft, gold = (232, 230, 222), (126, 134, 158), (224, 178, 104)
    fine = max(1.0, size / 340)

    nodes = sorted({world["node"] for world in worlds})
    middle = width / 2
    canvas.text(middle, head * 0.50, "A planetary mesh", size / 7.5, ink, fine * 1.7, space=3.6)
    words = f"{len(worlds)} worlds computed by {len(nodes)} node{'s' if len(nodes) != 1 else ''}: {' · '.join(nodes)}"
    canvas.text(middle, head * 0.73, words, size / 26, gold, fine * 0.9, space=3.0)

    for place, world in enumerate(worlds):
        row, column = divmod(place, columns)
        left = gap + column * (size + gap)
        top = head + row * (size + label)
        canvas.paste(left, top, size, world["picture"])
        for x0, y0, x1, y1 in ((0, 0, size, 0), (0, size, size, size), (0, 0, 0, size), (size, 0, size, size)):
            canvas.line(left + x0, top + y0, left + x1, top + y1, fine * 0.8, (44, 50, 70))
        centre = left + size / 2
        canvas.text(centre, top + size + label * 0.34, world["name"], size / 20, ink, fine)
        canvas.text(centre, top + size + label * 0.55, world["words"], size / 40, soft, fine * 0.8)
        canvas.text(centre, top + size + label * 0.74, f"by {world['node']}", size / 40, gold, fine * 0.8)

    with open(sys.argv[2], "wb") as file:
        file.write(canvas.png())
    print(f"{sys.argv[2]}: {width} x {height} pixels, {len(worlds)} worlds by {', '.join(nodes)}")


if __name__ == "__main__":
    main()
