"""A small anti-aliased canvas in numpy: shapes at sub-pixel positions, drawn only inside their bounding box."""

import math

import numpy as np

Colour = tuple[float, float, float]
PALETTE: dict[str, Colour] = {
    "wood": (164, 106, 54),
    "metal": (172, 178, 190),
    "glass": (132, 226, 222),
    "rubber": (196, 44, 84),
    "stone": (104, 108, 88),
    "water": (46, 104, 168),
    "red": (236, 52, 40),
    "yellow": (244, 208, 40),
    "green": (48, 216, 84),
    "blue": (56, 104, 244),
}
OPACITY = {"glass": 0.6}
LIGHT = np.array([255.0, 250.0, 225.0], np.float32)


class Canvas:
    """An RGB picture of height 1 and width `aspect`; (0, 0) is the top left corner. Later shapes cover earlier ones."""

    def __init__(self, height: int, width: int, rng: np.random.Generator) -> None:
        self.height, self.width = height, width
        self.aspect = width / height
        self._y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
        self._x = ((np.arange(width, dtype=np.float32) + 0.5) / height)[None, :]
        wall = rng.uniform(45, 110) + rng.uniform(-18, 18, 3)
        self.ground = tuple(wall * rng.uniform(0.45, 0.75))
        shade = 1 + 0.25 * (0.5 - self._y) + rng.uniform(-0.1, 0.1) * (self._x - self.aspect / 2)
        self._background = (shade[..., None] * wall).astype(np.float32)
        self._pixels = self._background.copy()

    def clear(self) -> None:
        """Paint the whole picture with the background, a muted gradient that is random per canvas."""
        self._pixels[:] = self._background

    def image(self) -> np.ndarray:
        """The picture as uint8 (height, width, 3)."""
        return (np.clip(self._pixels, 0, 255) + 0.499).astype(np.uint8)

    def rectangle(self, left: float, top: float, right: float, bottom: float, colour: Colour) -> None:
        """A filled rectangle with sharp corners."""
        self._box_shape((left + right) / 2, (top + bottom) / 2, (right - left) / 2, (bottom - top) / 2, colour, 1.0)

    def floor(self, y: float, glow: float = 0.0) -> None:
        """The ground below y, lit up by `glow` in 0..1."""
        red, green, blue = (min(255.0, c * (1 + 0.6 * glow)) for c in self.ground)
        self.rectangle(0.0, y, self.aspect, 1.0, (red, green, blue))

    def ellipse(self, x: float, y: float, radius_x: float, radius_y: float, colour: Colour, alpha: float = 1.0) -> None:
        """A filled ellipse."""
        window = self._window(x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        if window is None or alpha <= 0.01:
            return
        _, _, cover = self._ellipse_cover(window, x, y, radius_x, radius_y)
        self._blend(window, cover * alpha, np.asarray(colour, np.float32))

    def ring(
        self, x: float, y: float, radius_x: float, radius_y: float, thickness: float, colour: Colour, alpha: float
    ) -> None:
        """The outline of an ellipse."""
        window = self._window(
            x - radius_x - thickness, y - radius_y - thickness, x + radius_x + thickness, y + radius_y
        )
        if window is None or alpha <= 0.01:
            return
        u, v = (self._x[:, window[1]] - x) / radius_x, (self._y[window[0]] - y) / radius_y
        distance = np.abs(np.sqrt(u * u + v * v) - 1) * min(radius_x, radius_y) * 1.5
        cover = np.clip((thickness - distance) * self.height * 0.5 + 0.5, 0, 1)
        self._blend(window, cover * alpha, np.asarray(colour, np.float32))

    def ball(self, x: float, y: float, radius_x: float, radius_y: float, material: str, angle: float = 0.0) -> None:
        """A ball of a material, turned by `angle`."""
        window = self._window(x - radius_x, y - radius_y, x + radius_x, y + radius_y)
        if window is None:
            return
        u, v, cover = self._ellipse_cover(window, x, y, radius_x, radius_y)
        turned_u = u * math.cos(angle) + v * math.sin(angle)
        turned_v = v * math.cos(angle) - u * math.sin(angle)
        light = 1.05 - 0.28 * (u * u + v * v) + _texture(material, turned_u, turned_v)
        spot = np.exp(-((u + 0.35) ** 2 + (v + 0.4) ** 2) / (0.03 if material in ("metal", "glass") else 0.12))
        shine = {"metal": 0.9, "glass": 1.0, "rubber": 0.35}.get(material, 0.12) * spot
        colour = light[..., None] * np.asarray(PALETTE[material], np.float32) + 110 * shine[..., None]
        self._blend(window, cover * OPACITY.get(material, 1.0), colour)

    def box(self, x: float, y: float, half_width: float, half_height: float, material: str, glow: float = 0.0) -> None:
        """An upright block of a material, brightened by `glow` in 0..1."""
        self._box_shape(x, y, half_width, half_height, PALETTE[material], OPACITY.get(material, 1.0), material, glow)

    def capsule(self, x0: float, y0: float, x1: float, y1: float, radius: float, colour: Colour) -> None:
        """A thick line with round ends."""
        window = self._window(min(x0, x1) - radius, min(y0, y1) - radius, max(x0, x1) + radius, max(y0, y1) + radius)
        if window is None:
            return
        dx, dy = x1 - x0, y1 - y0
        u, v = self._x[:, window[1]] - x0, self._y[window[0]] - y0
        along = np.clip((u * dx + v * dy) / max(dx * dx + dy * dy, 1e-9), 0, 1)
        distance = np.sqrt((u - along * dx) ** 2 + (v - along * dy) ** 2)
        self._blend(window, np.clip((radius - distance) * self.height + 0.5, 0, 1), np.asarray(colour, np.float32))

    def halo(self, x: float, y: float, radius: float, colour: Colour, strength: float) -> None:
        """Soft light that fades from (x, y) outwards; the mark of a sound in the picture."""
        window = self._window(x - 2 * radius, y - 2 * radius, x + 2 * radius, y + 2 * radius)
        if window is None or strength <= 0.02:
            return
        square = (self._x[:, window[1]] - x) ** 2 + (self._y[window[0]] - y) ** 2
        cover = min(1.0, strength) * np.exp(-square / (0.6 * radius * radius))
        self._blend(window, cover, np.asarray(colour, np.float32))

    def sparks(self, x: float, y: float, glow: float) -> None:
        """The flash where two bodies meet."""
        self.halo(x, y, 0.08 + 0.08 * glow, (255, 250, 225), 0.9 * glow)

    def _box_shape(
        self,
        x: float,
        y: float,
        half_width: float,
        half_height: float,
        colour: Colour,
        alpha: float,
        material: str | None = None,
        glow: float = 0.0,
    ) -> None:
        window = self._window(x - half_width, y - half_height, x + half_width, y + half_height)
        if window is None:
            return
        u, v = self._x[:, window[1]] - x, self._y[window[0]] - y
        cover = np.clip((half_width - np.abs(u)) * self.height + 0.5, 0, 1) * np.clip(
            (half_height - np.abs(v)) * self.height + 0.5, 0, 1
        )
        paint = np.asarray(colour, np.float32)
        if material is not None:
            light = 1 - 0.2 * v / half_height + _texture(material, u / half_width, v / half_height)
            paint = light[..., None] * paint
            paint = paint + 0.6 * glow * (LIGHT - paint)
        self._blend(window, cover * alpha, paint)

    def _window(self, left: float, top: float, right: float, bottom: float) -> tuple[slice, slice] | None:
        """Rows and columns that a shape within these bounds can touch; None when it is outside."""
        row0, row1 = max(0, math.floor(top * self.height) - 1), min(self.height, math.ceil(bottom * self.height) + 1)
        column0, column1 = (
            max(0, math.floor(left * self.height) - 1),
            min(self.width, math.ceil(right * self.height) + 1),
        )
        return (slice(row0, row1), slice(column0, column1)) if row0 < row1 and column0 < column1 else None

    def _ellipse_cover(
        self, window: tuple[slice, slice], x: float, y: float, radius_x: float, radius_y: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        radius_x, radius_y = max(radius_x, 1e-3), max(radius_y, 1e-3)
        u, v = (self._x[:, window[1]] - x) / radius_x, (self._y[window[0]] - y) / radius_y
        return u, v, np.clip((1 - np.sqrt(u * u + v * v)) * min(radius_x, radius_y) * self.height + 0.5, 0, 1)

    def _blend(self, window: tuple[slice, slice], cover: np.ndarray, colour: np.ndarray) -> None:
        region = self._pixels[window]
        region += cover[..., None] * (colour - region)


def _texture(material: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Change of lightness of a material over a body's own coordinates in -1..1."""
    if material == "wood":
        return 0.14 * np.sin(7 * u + 1.5 * np.sin(2.5 * v))
    if material == "stone":
        return 0.16 * np.sin(17 * u + 5 * np.sin(9 * v)) * np.sin(19 * v + 4 * np.sin(7 * u))
    if material == "metal":
        return 0.22 * np.sin(3 * (u + v))
    if material == "rubber":
        return -0.25 * (np.abs(v) < 0.16)
    return 0.1 * (u - v)
