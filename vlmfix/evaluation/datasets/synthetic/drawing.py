"""One small painter per category, made of Pillow primitives on the unit square."""

from __future__ import annotations

from collections.abc import Callable

from PIL import ImageDraw

Color = tuple[int, int, int]


class Brush:
    """Draws on the unit square: coordinates from 0 to 1 are scaled to the object's box."""

    def __init__(self, draw: ImageDraw.ImageDraw, width: int, height: int, color: Color) -> None:
        self.draw, self.width, self.height = draw, width - 1, height - 1
        self.color = color
        self.dark = (color[0] * 55 // 100, color[1] * 55 // 100, color[2] * 55 // 100)
        light = sum(color) > 600
        self.line = (70, 70, 74) if light or sum(color) > 150 else (200, 200, 204)
        self.stroke = max(1, round(min(width, height) / 12))

    def points(self, *xy: float) -> list[tuple[float, float]]:
        return [(xy[i] * self.width, xy[i + 1] * self.height) for i in range(0, len(xy), 2)]

    def box(self, x0: float, y0: float, x1: float, y1: float, fill: Color | None = None) -> None:
        self.draw.rectangle(self.points(x0, y0, x1, y1), fill=fill or self.color, outline=self.line)

    def oval(self, x0: float, y0: float, x1: float, y1: float, fill: Color | None = None) -> None:
        self.draw.ellipse(self.points(x0, y0, x1, y1), fill=fill or self.color, outline=self.line)

    def ring(self, x0: float, y0: float, x1: float, y1: float) -> None:
        self.draw.ellipse(self.points(x0, y0, x1, y1), outline=self.color, width=self.stroke + 1)

    def polygon(self, *xy: float, fill: Color | None = None) -> None:
        self.draw.polygon(self.points(*xy), fill=fill or self.color, outline=self.line)

    def lines(self, *xy: float, fill: Color | None = None, width: int | None = None) -> None:
        self.draw.line(self.points(*xy), fill=fill or self.color, width=width or self.stroke)


def bicycle(b: Brush) -> None:
    b.ring(0, 0.4, 0.42, 1)
    b.ring(0.58, 0.4, 1, 1)
    b.lines(0.21, 0.7, 0.36, 0.25, 0.7, 0.25, 0.79, 0.7, 0.5, 0.7, 0.36, 0.25, width=b.stroke + 1)
    b.lines(0.68, 0.25, 0.66, 0.03, 0.82, 0.03, fill=b.line)
    b.lines(0.26, 0.16, 0.44, 0.16, fill=b.line)


def car(b: Brush) -> None:
    b.polygon(0.18, 0.45, 0.32, 0.05, 0.72, 0.05, 0.86, 0.45)
    b.box(0, 0.4, 1, 0.82)
    b.polygon(0.28, 0.42, 0.37, 0.15, 0.66, 0.15, 0.74, 0.42, fill=(190, 225, 240))
    b.oval(0.12, 0.62, 0.36, 1, fill=(40, 40, 40))
    b.oval(0.64, 0.62, 0.88, 1, fill=(40, 40, 40))


def boat(b: Brush) -> None:
    b.polygon(0, 0.66, 1, 0.66, 0.8, 1, 0.2, 1)
    b.lines(0.48, 0, 0.48, 0.66, fill=(110, 80, 50))
    b.polygon(0.54, 0.04, 0.54, 0.58, 0.94, 0.58)
    b.polygon(0.42, 0.16, 0.42, 0.58, 0.12, 0.58, fill=(235, 235, 225))


def traffic_light(b: Brush) -> None:
    b.box(0, 0, 1, 0.8)
    b.box(0.4, 0.8, 0.6, 1, fill=(90, 90, 90))
    b.oval(0.22, 0.04, 0.78, 0.26, fill=(255, 60, 60))
    b.oval(0.22, 0.29, 0.78, 0.51, fill=(255, 225, 70))
    b.oval(0.22, 0.54, 0.78, 0.76, fill=(70, 230, 100))


def stop_sign(b: Brush) -> None:
    b.box(0.44, 0.6, 0.56, 1, fill=(120, 120, 120))
    b.polygon(0.3, 0, 0.7, 0, 1, 0.2, 1, 0.48, 0.7, 0.68, 0.3, 0.68, 0, 0.48, 0, 0.2)
    b.box(0.16, 0.27, 0.84, 0.41, fill=(250, 250, 250) if sum(b.color) < 650 else (60, 60, 60))


def bird(b: Brush) -> None:
    b.polygon(0, 0.3, 0.3, 0.5, 0.25, 0.7)
    b.oval(0.18, 0.35, 0.8, 0.85)
    b.oval(0.62, 0.08, 0.92, 0.5)
    b.polygon(0.9, 0.25, 1, 0.32, 0.9, 0.38, fill=(240, 160, 30))
    b.polygon(0.35, 0.5, 0.7, 0.5, 0.4, 0, fill=b.dark)
    b.lines(0.48, 0.82, 0.48, 1, fill=b.line)
    b.lines(0.58, 0.82, 0.58, 1, fill=b.line)


def cat(b: Brush) -> None:
    b.lines(0.8, 0.9, 0.97, 0.7, 0.95, 0.4, width=b.stroke + 1)
    b.oval(0.2, 0.42, 0.82, 1)
    b.polygon(0.14, 0, 0.4, 0.16, 0.14, 0.36)
    b.polygon(0.74, 0, 0.48, 0.16, 0.74, 0.36)
    b.oval(0.12, 0.1, 0.76, 0.56)
    b.oval(0.26, 0.26, 0.36, 0.38, fill=(250, 250, 120))
    b.oval(0.52, 0.26, 0.62, 0.38, fill=(250, 250, 120))


def dog(b: Brush) -> None:
    for x in (0.14, 0.3, 0.56, 0.7):
        b.box(x, 0.6, x + 0.1, 1)
    b.lines(0.12, 0.5, 0, 0.15, width=b.stroke + 1)
    b.oval(0.08, 0.35, 0.82, 0.8)
    b.oval(0.62, 0.05, 0.98, 0.5)
    b.oval(0.6, 0.08, 0.72, 0.5, fill=b.dark)
    b.oval(0.92, 0.24, 1, 0.36, fill=(20, 20, 20))


def umbrella(b: Brush) -> None:
    b.draw.pieslice(b.points(0, 0, 1, 1), 180, 360, fill=b.color, outline=b.line)
    b.draw.pieslice(b.points(0.33, 0, 0.67, 1), 180, 360, fill=b.dark, outline=b.line)
    b.lines(0.5, 0.5, 0.5, 0.94, 0.64, 0.94, 0.64, 0.84, fill=(100, 70, 40))


def frisbee(b: Brush) -> None:
    b.oval(0, 0.1, 1, 1, fill=b.dark)
    b.oval(0, 0, 1, 0.8)
    b.oval(0.26, 0.18, 0.74, 0.58, fill=b.dark)


def kite(b: Brush) -> None:
    b.polygon(0.5, 0, 1, 0.3, 0.5, 0.7, 0, 0.3)
    b.lines(0.5, 0, 0.5, 0.7, fill=b.line)
    b.lines(0, 0.3, 1, 0.3, fill=b.line)
    b.lines(0.5, 0.7, 0.66, 0.8, 0.4, 0.9, 0.6, 1, fill=b.dark)


def surfboard(b: Brush) -> None:
    b.polygon(0.5, 0, 0.85, 0.2, 1, 0.5, 0.85, 0.85, 0.5, 1, 0.15, 0.85, 0, 0.5, 0.15, 0.2)
    b.lines(0.5, 0.02, 0.5, 0.98, fill=b.line)
    b.lines(0.05, 0.4, 0.95, 0.4, fill=b.dark, width=b.stroke + 2)
    b.lines(0.05, 0.6, 0.95, 0.6, fill=b.dark, width=b.stroke + 2)


def bottle(b: Brush) -> None:
    b.box(0.36, 0, 0.64, 0.12, fill=b.dark)
    b.box(0.38, 0.12, 0.62, 0.36)
    b.polygon(0.38, 0.32, 0.62, 0.32, 1, 0.5, 1, 1, 0, 1, 0, 0.5)
    b.box(0.08, 0.6, 0.92, 0.84, fill=(250, 245, 225))


def cup(b: Brush) -> None:
    b.ring(0.6, 0.2, 1, 0.75)
    b.polygon(0, 0.06, 0.76, 0.06, 0.66, 1, 0.1, 1)
    b.oval(0, 0, 0.76, 0.24, fill=(110, 70, 40))


def fork(b: Brush) -> None:
    b.box(0.4, 0.45, 0.6, 1)
    b.polygon(0, 0.3, 1, 0.3, 0.62, 0.52, 0.38, 0.52)
    for x in (0, 0.28, 0.55, 0.82):
        b.box(x, 0, x + 0.18, 0.34)


def knife(b: Brush) -> None:
    b.polygon(0.25, 0.62, 0.25, 0.1, 0.6, 0, 0.9, 0.3, 0.9, 0.62, fill=(205, 210, 218))
    b.box(0.25, 0.58, 0.9, 1)


def pizza(b: Brush) -> None:
    b.oval(0, 0, 1, 1)
    b.oval(0.1, 0.1, 0.9, 0.9, fill=(246, 206, 110))
    for x, y in ((0.25, 0.3), (0.55, 0.22), (0.62, 0.55), (0.32, 0.6)):
        b.oval(x, y, x + 0.18, y + 0.18)


def couch(b: Brush) -> None:
    b.box(0.1, 0, 0.9, 0.6)
    b.box(0, 0.3, 0.16, 0.9)
    b.box(0.84, 0.3, 1, 0.9)
    b.box(0.16, 0.5, 0.5, 0.84, fill=b.dark)
    b.box(0.5, 0.5, 0.84, 0.84, fill=b.dark)
    b.box(0.06, 0.9, 0.14, 1, fill=(70, 50, 30))
    b.box(0.86, 0.9, 0.94, 1, fill=(70, 50, 30))


def potted_plant(b: Brush) -> None:
    for x, y in ((0, 0.2), (0.62, 0.2), (0.3, 0)):
        b.oval(x, y, x + 0.38, y + 0.45, fill=(50, 140, 60))
    b.lines(0.5, 0.3, 0.5, 0.65, fill=(60, 110, 40))
    b.polygon(0.16, 0.6, 0.84, 0.6, 0.7, 1, 0.3, 1)


def toilet(b: Brush) -> None:
    b.box(0, 0, 0.4, 0.55)
    b.oval(0.1, 0.42, 1, 0.76)
    b.oval(0.24, 0.47, 0.88, 0.65, fill=(170, 215, 235))
    b.polygon(0.22, 0.72, 0.78, 0.72, 0.66, 1, 0.3, 1)


def tv(b: Brush) -> None:
    b.box(0, 0, 1, 0.82)
    b.box(0.08, 0.08, 0.92, 0.7, fill=(120, 180, 210))
    b.lines(0.2, 0.55, 0.5, 0.2, fill=(225, 240, 250))
    b.box(0.3, 0.84, 0.7, 1, fill=b.dark)


def laptop(b: Brush) -> None:
    b.box(0.14, 0, 0.86, 0.62)
    b.box(0.22, 0.08, 0.78, 0.54, fill=(235, 240, 200))
    b.polygon(0.14, 0.64, 0.86, 0.64, 1, 1, 0, 1)
    b.polygon(0.22, 0.72, 0.78, 0.72, 0.84, 0.86, 0.16, 0.86, fill=b.dark)


def mouse(b: Brush) -> None:
    b.lines(0.5, 0.25, 0.5, 0, fill=b.line)
    b.oval(0, 0.2, 1, 1)
    b.lines(0, 0.55, 1, 0.55, fill=b.line)
    b.lines(0.5, 0.22, 0.5, 0.55, fill=b.line)


def remote(b: Brush) -> None:
    b.box(0, 0, 1, 1)
    b.oval(0.3, 0.05, 0.7, 0.19, fill=(255, 70, 70))
    for y in (0.3, 0.48, 0.66, 0.84):
        for x in (0.18, 0.58):
            b.box(x, y, x + 0.24, y + 0.08, fill=(225, 225, 225))


def keyboard(b: Brush) -> None:
    b.box(0, 0, 1, 1)
    for row, y in enumerate((0.12, 0.42, 0.72)):
        for key in range(6 - row % 2):
            x = 0.06 + key * 0.152 + 0.06 * (row % 2)
            b.box(x, y, x + 0.1, y + 0.17, fill=b.dark if sum(b.color) > 150 else (190, 190, 190))


def sink(b: Brush) -> None:
    b.lines(0.5, 0.5, 0.5, 0.05, 0.7, 0.05, 0.7, 0.2, fill=(130, 140, 150), width=b.stroke + 1)
    b.draw.pieslice(b.points(0, -0.1, 1, 1), 0, 180, fill=b.color, outline=b.line)
    b.oval(0, 0.34, 1, 0.6)
    b.oval(0.12, 0.39, 0.88, 0.56, fill=(170, 215, 235))


def book(b: Brush) -> None:
    b.box(0.1, 0.04, 1, 1, fill=(245, 240, 220))
    b.box(0, 0, 0.9, 0.92)
    b.box(0.2, 0.18, 0.72, 0.36, fill=(250, 235, 170))
    b.lines(0.08, 0, 0.08, 0.92, fill=b.line)


def toothbrush(b: Brush) -> None:
    b.box(0.3, 0.02, 0.62, 1)
    for y in (0.03, 0.11, 0.19, 0.27):
        b.box(0.62, y, 1, y + 0.06, fill=(240, 250, 255))


PAINTERS: dict[str, Callable[[Brush], None]] = {
    "bicycle": bicycle,
    "car": car,
    "boat": boat,
    "traffic light": traffic_light,
    "stop sign": stop_sign,
    "bird": bird,
    "cat": cat,
    "dog": dog,
    "umbrella": umbrella,
    "frisbee": frisbee,
    "kite": kite,
    "surfboard": surfboard,
    "bottle": bottle,
    "cup": cup,
    "fork": fork,
    "knife": knife,
    "pizza": pizza,
    "couch": couch,
    "potted plant": potted_plant,
    "toilet": toilet,
    "tv": tv,
    "laptop": laptop,
    "mouse": mouse,
    "remote": remote,
    "keyboard": keyboard,
    "sink": sink,
    "book": book,
    "toothbrush": toothbrush,
}
