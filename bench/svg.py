"""Charts as SVG text. Greys that can be read on white and on black, and no background."""
import math
from html import escape

TEXT, LINE = "#7d8590", "#7d859055"
COLOURS = ["#2f81f7", "#e3742f", "#3fa45b", "#a371f7", "#d4a017", "#d1495b", "#17a2a2", "#8c6d5a"]
FONT = "font-family='system-ui, sans-serif'"


class Chart:
    """A plot area of width x height inside margins; x and y are functions from data to pixels."""

    def __init__(self, title, width, height, left=70, right=20, top=40, bottom=50):
        self.left, self.top, self.width, self.height = left, top, width, height
        self.size = (left + width + right, top + height + bottom)
        self.parts = []
        self.text(left, 22, title, size=15)

    def linear(self, low, high):
        return lambda v: (v - low) / (high - low)

    def log(self, low, high):
        return lambda v: math.log(v / low) / math.log(high / low)

    def x(self, share):
        return self.left + share * self.width

    def y(self, share):
        return self.top + (1 - share) * self.height

    def text(self, x, y, words, size=12, anchor="start", colour=TEXT, turn=0):
        turned = f" transform='rotate({turn} {x:.1f} {y:.1f})'" if turn else ""
        self.parts.append(f"<text x='{x:.1f}' y='{y:.1f}' font-size='{size}' fill='{colour}' "
                          f"text-anchor='{anchor}'{turned}>{escape(str(words))}</text>")

    def line(self, x1, y1, x2, y2, colour=LINE, width=1, dash=""):
        dashed = f" stroke-dasharray='{dash}'" if dash else ""
        self.parts.append(f"<line x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}' "
                          f"stroke='{colour}' stroke-width='{width}'{dashed}/>")

    def bar(self, x, y, width, height, colour, note=""):
        self.parts.append(f"<rect x='{x:.1f}' y='{y:.1f}' width='{max(width, 0.5):.1f}' "
                          f"height='{height:.1f}' fill='{colour}'><title>{escape(note)}</title></rect>")

    def dot(self, x, y, colour, note="", radius=4, hollow=False):
        fill = "none" if hollow else colour
        self.parts.append(f"<circle cx='{x:.1f}' cy='{y:.1f}' r='{radius}' fill='{fill}' "
                          f"stroke='{colour}'><title>{escape(note)}</title></circle>")

    def axis_x(self, label, ticks):
        """ticks: (share, text)"""
        for share, text in ticks:
            self.line(self.x(share), self.top, self.x(share), self.top + self.height)
            self.text(self.x(share), self.top + self.height + 16, text, 11, "middle")
        self.text(self.x(0.5), self.top + self.height + 36, label, 12, "middle")

    def axis_y(self, label, ticks):
        for share, text in ticks:
            self.line(self.left, self.y(share), self.left + self.width, self.y(share))
            self.text(self.left - 6, self.y(share) + 4, text, 11, "end")
        middle = self.top + self.height / 2
        self.text(16, middle, label, 12, "middle", turn=-90)

    def legend(self, names):
        """(name, colour), on the right of the title's line"""
        x = self.size[0] - 10
        for words, colour in reversed(names):
            x -= 7 * len(words)
            self.text(x, 22, words, 12)
            x -= 12
            self.bar(x, 13, 9, 9, colour)
            x -= 14

    def render(self):
        width, height = self.size
        return (f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width:.0f} {height:.0f}' "
                f"width='{width:.0f}' height='{height:.0f}' {FONT}>\n" + "\n".join(self.parts) +
                "\n</svg>\n")


def powers_of_ten(low, high):
    """Powers of ten around a range, as (smallest, largest, all of them)."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    last = max(last, first + 1)
    return 10.0 ** first, 10.0 ** last, [10.0 ** e for e in range(first, last + 1)]


def short(value):
    """1000 -> 1,000; 0.1 -> 0.1"""
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"
