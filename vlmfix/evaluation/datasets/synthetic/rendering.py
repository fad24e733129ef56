"""From a scene to pixels: background, objects from back to front, noise."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from vlmfix.evaluation.datasets.synthetic.drawing import PAINTERS, Brush
from vlmfix.evaluation.datasets.synthetic.scenes import COLORS, Scene, SceneObject

BACKGROUNDS = {
    "kitchen": (198, 184, 160),
    "street": (150, 152, 158),
    "living room": (188, 168, 158),
    "office": (176, 182, 192),
    "park": (156, 182, 140),
    "bathroom": (172, 194, 200),
    "beach": (208, 196, 158),
}


def render(scene: Scene) -> Image.Image:
    """Draw a scene as an RGB image of `scene.width` x `scene.height` pixels, the same for the same scene."""
    return Image.fromarray(paint(scene)[0])


def paint(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    """Draw a scene.

    Returns:
        The pixels `(height, width, 3)` uint8, and for each pixel `(height, width)` int8 the position in
        `scene.objects` of the object seen there, -1 for background.
    """
    rng = np.random.default_rng([scene.seed, scene.id, 2 if scene.split == "train" else 3])
    image = _background(scene, rng)
    owner = Image.new("L", image.size, 0)
    for position, item in enumerate(scene.objects):
        x, y, width, height = item.box
        picture, shape = _draw(item, rng)
        image.paste(picture, (x, y), shape.point(lambda v, o=item.opacity: round(v * o)))
        owner.paste(position + 1, (x, y, x + width, y + height), shape)
    pixels = np.asarray(image, dtype=np.int16)
    noise = rng.integers(-9, 10, pixels.shape, dtype=np.int16)
    return np.clip(pixels + noise, 0, 255).astype(np.uint8), np.asarray(owner, dtype=np.int8) - 1


def _background(scene: Scene, rng: np.random.Generator) -> Image.Image:
    base = BACKGROUNDS.get(scene.cluster or "", (176, 176, 176))
    if rng.random() < 0.3:
        red, green, blue = rng.integers(130, 215, 3).tolist()
        base = (red, green, blue)
    color = np.asarray(base, dtype=np.float32) + rng.normal(0, 10, 3)
    slope = np.linspace(-1, 1, scene.height)[:, None, None] * rng.uniform(-16, 16)
    field = np.clip(np.broadcast_to(color + slope, (scene.height, scene.width, 3)), 0, 255)
    image = Image.fromarray(field.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    tint = tuple(int(np.clip(v + rng.choice([-14, 14]), 0, 255)) for v in color)
    texture = rng.integers(4)
    step = int(rng.integers(8, 20))
    if texture in (1, 2):
        for x in range(int(rng.integers(step)), scene.width, step):
            draw.line((x, 0, x, scene.height), fill=tint)
    if texture == 2:
        for y in range(int(rng.integers(step)), scene.height, step):
            draw.line((0, y, scene.width, y), fill=tint)
    if texture == 3:
        for x, y in rng.integers(0, (scene.width, scene.height), (60, 2)).tolist():
            draw.ellipse((x, y, x + 2, y + 2), fill=tint)
    for _ in range(int(rng.integers(0, 4))):
        x, y, w, h = (int(v) for v in rng.integers((0, 0, 4, 4), (scene.width, scene.height, 30, 16)))
        draw.rectangle((x, y, x + w, y + h), fill=tint)
    return image


def _draw(item: SceneObject, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    _, _, width, height = item.box
    jitter = rng.integers(-14, 15, 3)
    red, green, blue = np.clip(np.asarray(COLORS[item.color]) + jitter, 0, 255).tolist()
    mirrored = rng.random() < 0.5
    # Drawn on an impossible colour, so that what stays unpainted is transparent.
    empty = (1, 254, 3)
    picture = Image.new("RGB", (width, height), empty)
    PAINTERS[item.category](Brush(ImageDraw.Draw(picture), width, height, (red, green, blue)))
    if mirrored:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    painted = (np.asarray(picture) != empty).any(-1)
    return picture, Image.fromarray(painted.astype(np.uint8) * 255)
