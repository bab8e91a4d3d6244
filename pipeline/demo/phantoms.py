"""Breast-ultrasound phantoms: an anatomy, and the image that a scanner makes of it.

A phantom is a map of echo strength (skin, fat, gland, muscle, perhaps a lesion) that a simulated scanner turns
into an image: random scatterers, point-spread function, envelope, noise, log compression. Benign and malignant
lesions differ as in textbooks, and overlap: a head on an untrained encoder's embeddings predicts most correctly, not all.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

# SciPy is imported where it is used: listing commands must stay fast.

Field = npt.NDArray[np.floating[Any]]
"""(H, W) float32; to NumPy's stubs a product with a Python float is float64."""

HEIGHT, WIDTH = 208, 240


@dataclass(frozen=True)
class Scanner:
    """The properties of a scanner that decide how its images look.

    Attributes
    ----------
    name : str
    gain_db : float
        Added to every echo before it is shown.
    range_db : float
        Echoes from 0 down to ``-range_db`` span white to black.
    noise_db : float
        Electronic noise at the skin; it rises with depth, as the compensation for attenuation does.
    axial_px, lateral_px : float
        Standard deviations of the point-spread function: the size of a speckle grain.
    smoothing_px : float
        Standard deviation of the smoothing of the echoes' power, which calms the speckle.
    """

    name: str
    gain_db: float
    range_db: float
    noise_db: float
    axial_px: float
    lateral_px: float
    smoothing_px: float


SCANNERS = (
    Scanner("A", gain_db=-24, range_db=60, noise_db=-52, axial_px=0.5, lateral_px=0.8, smoothing_px=0.6),
    Scanner("B", gain_db=-20, range_db=52, noise_db=-40, axial_px=0.7, lateral_px=1.2, smoothing_px=0.8),
)


@dataclass(frozen=True)
class Tissue:
    """A breast without its lesion.

    Attributes
    ----------
    skin_depth, fat_depth, gland_depth : float
        Where each layer ends, as a fraction of the image's height; muscle is below.
    fat_db, muscle_db : float
        How strongly they echo, relative to gland.
    septa_db : float
        Brightness of the thin bands of connective tissue.
    lobule_db : float
        Unevenness of the gland.
    attenuation_db : float
        Loss of the beam over the height of the image.
    shadow_db : float
        Strength of the further loss in streaks: poor contact, ligaments.
    """

    skin_depth: float
    fat_depth: float
    gland_depth: float
    fat_db: float
    muscle_db: float
    septa_db: float
    lobule_db: float
    attenuation_db: float
    shadow_db: float


@dataclass(frozen=True)
class Lesion:
    """A lesion in the tissue.

    Attributes
    ----------
    x, depth : float
        Centre, as fractions of the image's width and height.
    radius_px : float
        Geometric mean of the half axes.
    tallness : float
        Height over width.
    contrast_db : float
        How much weaker than gland it echoes.
    attenuation_db : float
        Loss of the beam over its height, beyond that of tissue. Above 0 it casts a shadow; below 0 (fluid) the tissue
        behind it looks enhanced.
    lobulation, spiculation : float
        Amplitudes of the outline's gentle waves and of its spikes, as fractions of the radius.
    edge_px : float
        Width of the transition to tissue.
    capsule_db, halo_db : float
        Brightness of a thin line along the outline, and of a broad, blurred zone around it.
    """

    x: float
    depth: float
    radius_px: float
    tallness: float
    contrast_db: float
    attenuation_db: float
    lobulation: float
    spiculation: float
    edge_px: float
    capsule_db: float
    halo_db: float


@dataclass(frozen=True)
class Anatomy:
    """The tissue under the probe; a normal patient has no `lesion` (None)."""

    tissue: Tissue
    lesion: Lesion | None


@dataclass(frozen=True)
class Phantom:
    """One image, (H, W) uint8, and where its lesion is, (H, W) bool: nowhere in a normal image."""

    image: npt.NDArray[np.uint8]
    lesion_mask: npt.NDArray[np.bool_]


# -- the anatomy ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spread:
    """A normal distribution over patients, clipped to what is plausible."""

    mean: float
    sd: float
    low: float
    high: float

    def draw(self, rng: np.random.Generator) -> float:
        """Draw one patient's value."""
        return min(max(rng.normal(self.mean, self.sd), self.low), self.high)


_TISSUE = {
    "skin_depth": Spread(0.035, 0.007, 0.02, 0.05),
    "fat_depth": Spread(0.22, 0.025, 0.15, 0.29),
    "gland_depth": Spread(0.76, 0.03, 0.68, 0.84),
    "fat_db": Spread(-5, 0.7, -7, -3),
    "muscle_db": Spread(-6, 1, -9, -3),
    "septa_db": Spread(13, 1.5, 9, 17),
    "lobule_db": Spread(3, 0.7, 1, 5),
    "attenuation_db": Spread(18, 2, 13, 23),
    "shadow_db": Spread(4, 1.5, 1, 8),
}
# Place and size do not reveal the class.
_PLACE = {"x": Spread(0.5, 0.05, 0.4, 0.6), "depth": Spread(0.42, 0.04, 0.34, 0.5), "radius_px": Spread(30, 3, 22, 39)}
# Seen in one image, the classes overlap in every single property (`_another_view` adds to the spread), and the untrained
# ResNet18 mostly sees the shadow. So an untrained floor of ROC AUC 0.9 leaves room above it; tuned by measuring.
_LESIONS = {
    "benign": {
        **_PLACE,
        "tallness": Spread(0.7, 0.12, 0.5, 1.1),
        "contrast_db": Spread(13.5, 2, 9, 19),
        "attenuation_db": Spread(-3.5, 1.5, -8, 2),
        "lobulation": Spread(0.06, 0.03, 0.01, 0.15),
        "spiculation": Spread(0.03, 0.06, 0, 0.25),
        "edge_px": Spread(1.3, 0.4, 0.7, 2.5),
        "capsule_db": Spread(5, 3, 0, 12),
        "halo_db": Spread(0.5, 1, 0, 4),
    },
    "malignant": {
        **_PLACE,
        "tallness": Spread(1.0, 0.15, 0.65, 1.4),
        "contrast_db": Spread(14.5, 2, 9, 20),
        "attenuation_db": Spread(7.8, 1.5, 2, 13),
        "lobulation": Spread(0.12, 0.04, 0.03, 0.25),
        "spiculation": Spread(0.5, 0.2, 0.1, 1),
        "edge_px": Spread(2.2, 0.7, 1, 4),
        "capsule_db": Spread(1, 1.5, 0, 5),
        "halo_db": Spread(4, 2, 0, 8),
    },
}


def draw_anatomy(label: str, rng: np.random.Generator) -> Anatomy:
    """Draw the anatomy of a patient of class "benign", "malignant" or "normal"."""
    tissue = Tissue(**{name: spread.draw(rng) for name, spread in _TISSUE.items()})
    if label == "normal":
        return Anatomy(tissue, None)
    return Anatomy(tissue, Lesion(**{name: spread.draw(rng) for name, spread in _LESIONS[label].items()}))


def _another_view(lesion: Lesion, rng: np.random.Generator) -> Lesion:
    """Move, tilt and press the probe a little: another slice through the same lesion."""
    return replace(
        lesion,
        x=lesion.x + rng.normal(0, 0.05),
        depth=lesion.depth + rng.normal(0, 0.02),
        radius_px=lesion.radius_px * math.exp(rng.normal(0, 0.15)),
        tallness=lesion.tallness * math.exp(rng.normal(0, 0.12)),
        contrast_db=lesion.contrast_db + rng.normal(0, 3),
        attenuation_db=lesion.attenuation_db + rng.normal(0, 4.5),
        spiculation=lesion.spiculation * math.exp(rng.normal(0, 0.3)),
    )


# -- the image --------------------------------------------------------------------------------------------------------

_Y = np.arange(HEIGHT, dtype=np.float32)[:, None]
_X = np.arange(WIDTH, dtype=np.float32)[None, :]
_DEPTH = _Y / np.float32(HEIGHT)
_FY = np.fft.fftfreq(HEIGHT).astype(np.float32)[:, None]  # in cycles a pixel
_FX = np.fft.rfftfreq(WIDTH).astype(np.float32)[None, :]


def draw_phantom(anatomy: Anatomy, scanner: Scanner, rng: np.random.Generator) -> Phantom:
    """Image an anatomy once, each time from a slightly different place and angle.

    Parameters
    ----------
    anatomy : Anatomy
    scanner : Scanner
    rng : numpy.random.Generator
        Decides the view, the tissue's texture, the speckle and the noise.

    Returns
    -------
    Phantom
        The image, (HEIGHT, WIDTH) uint8, and the lesion's mask, (HEIGHT, WIDTH) bool.
    """
    echo_db, loss_db = _tissue_maps(anatomy.tissue, rng)
    mask = np.zeros((HEIGHT, WIDTH), np.bool_)
    if anatomy.lesion is not None:
        lesion = _another_view(anatomy.lesion, rng)
        inside_px = _distance_inside(lesion, rng)
        mask = inside_px > 0
        inside = _step(inside_px, lesion.edge_px)
        content_db = 1.5 * _texture(rng, 5, 7) - lesion.contrast_db
        rim_db = lesion.capsule_db * _line(inside_px, 2) + lesion.halo_db * _line(inside_px + 8, 7)
        echo_db += (content_db - echo_db) * inside + rim_db
        loss_db += _lesion_loss(lesion, inside)
    # An echo arrives weakened by all that the beam has passed.
    return Phantom(_scan(echo_db - np.cumsum(loss_db, axis=0), scanner, rng), mask)


def _tissue_maps(tissue: Tissue, rng: np.random.Generator) -> tuple[Field, Field]:
    """Return echo strength in dB relative to gland, and loss in dB per pixel of depth; (H, W) each."""
    tilt = rng.normal(0, 0.12)
    depth = _DEPTH + 0.03 * _texture(rng, 60, 50) - math.tan(tilt) * (_X - WIDTH / 2) / HEIGHT  # along wavy layers
    skin = _step(tissue.skin_depth - _DEPTH, 0.008)
    fat = _step(tissue.fat_depth - depth, 0.02) * (1 - skin)
    muscle = _step(depth - tissue.gland_depth, 0.02)
    gland = 1 - skin - fat - muscle

    lobules, fibres = _texture(rng, 9, 16, tilt), _texture(rng, 1.3, 16, tilt)
    streaks = np.maximum(fibres - 0.4, 0)
    # Where a texture changes its sign it draws thin curved lines, here strung through some of the lobules.
    septa = _line(_texture(rng, 5, 20, 2 * tilt), 0.18) * _step(lobules + 0.5, 1)
    fascia = _line(depth - tissue.gland_depth, 0.012) + _line(depth - tissue.fat_depth, 0.01)

    echo_db = 4 * skin + tissue.fat_db * fat + tissue.muscle_db * muscle + tissue.lobule_db * lobules * gland
    echo_db += (2 * fat + 6 * gland + 8 * muscle) * streaks + 4 * fascia
    echo_db += (fat + 0.5 * gland + 0.6 * muscle) * tissue.septa_db * septa
    loss_db = tissue.attenuation_db + tissue.shadow_db * np.maximum(_texture(rng, 90, 14), 0)
    return echo_db, loss_db / HEIGHT


def _distance_inside(lesion: Lesion, rng: np.random.Generator) -> Field:
    """Return how far inside the outline each pixel is, in pixels along the radius, (H, W); negative outside."""
    x, y = _X - lesion.x * WIDTH, _Y - lesion.depth * HEIGHT
    angle = rng.normal(0, 0.15)
    stretch = math.sqrt(lesion.tallness)
    along = (x * math.cos(angle) + y * math.sin(angle)) * stretch
    down = (y * math.cos(angle) - x * math.sin(angle)) / stretch
    outline = _outline(lesion, rng)
    turn = np.arctan2(down, along) * (outline.size / (2 * math.pi))  # below 0 it counts from the outline's end
    inside_px: Field = lesion.radius_px * outline[turn.astype(np.intp)] - np.sqrt(along**2 + down**2)
    return inside_px


def _outline(lesion: Lesion, rng: np.random.Generator) -> Field:
    """Draw the outline: its distance from the centre in units of the radius, at 720 angles."""
    angle = np.arange(720) * (2 * math.pi / 720)
    outline = np.ones_like(angle)
    for n_waves in range(2, 7):
        height = lesion.lobulation * rng.normal() / math.sqrt(n_waves)
        outline += height * np.cos(n_waves * angle + rng.uniform(0, 2 * math.pi))
    for _ in range(rng.integers(6, 14)):
        off = (angle - rng.uniform(0, 2 * math.pi)) % (2 * math.pi) - math.pi  # from the spike, -pi to pi
        outline += lesion.spiculation * rng.uniform(0, 1) * np.exp(-((off / rng.uniform(0.06, 0.16)) ** 2))
    return np.maximum(outline, 0.3).astype(np.float32)


def _lesion_loss(lesion: Lesion, inside: Field) -> Field:
    """Return the loss of the beam in the lesion, in dB per pixel of depth, (H, W); negative for fluid."""
    from scipy import ndimage

    height_px = 2 * lesion.radius_px * math.sqrt(lesion.tallness)
    crossed: Field = ndimage.gaussian_filter1d(inside, 2.5, axis=1)  # a beam is wide
    return crossed * (lesion.attenuation_db / height_px)


def _scan(received_db: Field, scanner: Scanner, rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Turn what arrives from each place into an image with speckle and noise."""
    from scipy import ndimage

    amplitude = np.exp(received_db * (math.log(10) / 20))
    grain_px = (scanner.axial_px, scanner.lateral_px)
    power = np.zeros_like(amplitude)
    for _ in range(2):  # in phase, and in quadrature
        scatterers = amplitude * (rng.random((HEIGHT, WIDTH), np.float32) - 0.5)
        power += ndimage.gaussian_filter(scatterers, grain_px) ** 2
    # Neither the scatterers' variance of 1/12 nor larger grains may darken the image.
    power *= 12 * 2 * math.pi * math.prod(grain_px)
    power = ndimage.gaussian_filter(power, scanner.smoothing_px)
    noise_db = scanner.noise_db + 14 * _DEPTH
    power += rng.standard_exponential((HEIGHT, WIDTH), np.float32) * 10 ** (noise_db / 10)
    shown_db = np.log(power) * (10 / math.log(10)) + scanner.gain_db + rng.normal(0, 1)
    return np.clip((shown_db / scanner.range_db + 1) * 255, 0, 255).astype(np.uint8)


def _texture(rng: np.random.Generator, axial_px: float, lateral_px: float, tilt: float = 0) -> Field:
    """Return smooth noise with mean 0 and variance 1, (H, W); its grains have this size and a tilt in radians."""
    from scipy import fft  # for float32 several times as fast as NumPy's

    white = rng.random((HEIGHT, WIDTH), np.float32)  # quicker than normal numbers; smoothed, they are normal
    across, along = _FY * math.cos(tilt) - _FX * math.sin(tilt), _FX * math.cos(tilt) + _FY * math.sin(tilt)
    transfer = np.exp(-2 * math.pi**2 * ((axial_px * across) ** 2 + (lateral_px * along) ** 2))
    transfer[0, 0] = 0  # the mean
    smooth: Field = fft.irfft2(fft.rfft2(white) * transfer, s=white.shape)
    smooth /= smooth.std()
    return smooth


def _step(signed: Field, width: float) -> Field:
    """Return 0 far below zero, 1 far above, smooth in between."""
    rise: Field = np.tanh(signed / width)
    return 0.5 + 0.5 * rise


def _line(signed: Field, width: float) -> Field:
    """Return 1 at zero, falling to 0 on both sides."""
    peak: Field = np.exp(-((signed / width) ** 2))
    return peak
