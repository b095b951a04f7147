#!/usr/bin/env python3
"""Renders the portrait of one world: a JSON description in, raw pixels out.

    render.py WORLD.json SIZE OUTDIR

Writes OUTDIR/NAME.rgb (SIZE x SIZE pixels, three bytes each, top row first) and
OUTDIR/NAME.json (what it is, and which node of the mesh made it). Every pixel of the
disc is a ray that hits a sphere: its height and colour come from fractal noise, its
light from one sun, with clouds, rings, seas, city lights or glowing cracks as the
description asks for. Nothing but Python's standard library.
"""

import json
import math
import os
import random
import sys
import time


# ---------------------------------------------------------------- noise


def make_noise(seed):
    """Smooth value noise in three dimensions, about -1 to 1, of lattice points drawn from `seed`."""
    rng = random.Random(seed)
    order = list(range(256))
    rng.shuffle(order)
    order += order
    values = [rng.uniform(-1.0, 1.0) for _ in range(256)]
    values += values
    floor = math.floor

    def noise(x, y, z):
        fx, fy, fz = floor(x), floor(y), floor(z)
        x -= fx
        y -= fy
        z -= fz
        fx &= 255
        fy &= 255
        fz &= 255
        u = x * x * x * (x * (x * 6.0 - 15.0) + 10.0)
        v = y * y * y * (y * (y * 6.0 - 15.0) + 10.0)
        w = z * z * z * (z * (z * 6.0 - 15.0) + 10.0)
        a = order[fx] + fy
        b = order[fx + 1] + fy
        aa, ab = order[a & 255] + fz, order[(a + 1) & 255] + fz
        ba, bb = order[b & 255] + fz, order[(b + 1) & 255] + fz
        c = values[aa]
        d = values[ab]
        c += u * (values[ba] - c)
        d += u * (values[bb] - d)
        e = values[aa + 1]
        f = values[ab + 1]
        e += u * (values[ba + 1] - e)
        f += u * (values[bb + 1] - f)
        c += v * (d - c)
        e += v * (f - e)
        return c + w * (e - c)

    return noise


def make_fbm(noise):
    """Sums octaves of noise, each twice as fine and half as strong."""

    def fbm(x, y, z, octaves):
        total = 0.0
        strength = 0.5
        for _ in range(octaves):
            total += strength * noise(x, y, z)
            x, y, z = x * 2.03 + 17.1, y * 2.03 + 5.3, z * 2.03 + 29.7
            strength *= 0.5
        return total

    return fbm


# ---------------------------------------------------------------- small tools


def clamp(x):
    return 0.0 if x < 0.0 else 1.0 if x > 1.0 else x


def smooth(low, high, x):
    x = clamp((x - low) / (high - low))
    return x * x * (3.0 - 2.0 * x)


def mix(a, b, t):
    return (a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, a[2] + (b[2] - a[2]) * t)


def unit(v):
    length = math.sqrt(v[0] * v[0] + v[1] * v[1] + v[2] * v[2])
    return (v[0] / length, v[1] / length, v[2] / length)


def colour(text):
    """`#rrggbb` as light, not as paint: linear values from 0 to 1."""
    return tuple((int(text[i : i + 2], 16) / 255.0) ** 2.2 for i in (1, 3, 5))


def make_ramp(stops):
    """A table of 512 colours between [position, "#rrggbb"] stops."""
    stops = [(float(at), colour(text)) for at, text in stops]
    table = []
    for i in range(512):
        t = i / 511.0
        left, right = stops[0], stops[-1]
        for stop in stops:
            if stop[0] <= t:
                left = stop
        for stop in reversed(stops):
            if stop[0] >= t:
                right = stop
        span = right[0] - left[0]
        table.append(mix(left[1], right[1], (t - left[0]) / span if span > 0 else 0.0))
    return table


def look_up(table, t):
    return table[0 if t <= 0.0 else 511 if t >= 1.0 else int(t * 511.0)]


# ---------------------------------------------------------------- the surface


class Surface:
    """What a point of the sphere looks like: colour, height, gleam and own light."""

    def __init__(self, world):
        self.noise = make_noise(world["seed"])
        self.fbm = make_fbm(self.noise)
        self.ramp = make_ramp(world["ramp"])
        self.scale = world.get("scale", 1.8)
        self.relief = world.get("relief", 0.0)
        self.bands = world.get("bands")
        self.sea = world.get("sea")
        self.sea_ramp = make_ramp([[0, self.sea["deep"]], [1, self.sea["shallow"]]]) if self.sea else None
        self.ice = world.get("ice")
        self.ice_colour = colour(world.get("ice_colour", "#eef6ff"))
        self.cracks = world.get("cracks")
        self.crack_colour = colour(self.cracks["colour"]) if self.cracks else None
        self.lights = colour(world["lights"]) if "lights" in world else None
        self.clouds = world.get("clouds")
        self.cloud_colour = colour(world.get("cloud_colour", "#ffffff"))
        self.craters = world.get("craters")
        self.bowls = {}

    def height(self, x, y, z, octaves):
        s = self.scale
        bend = 0.55 * self.noise(x * s * 0.9 + 40.0, y * s * 0.9, z * s * 0.9)
        h = 0.5 + self.fbm(x * s + bend, y * s + bend, z * s - bend, octaves)
        return h + self.crater(x, y, z) if self.craters else h

    def at(self, x, y, z):
        """(colour, gleam, own light, slope of the ground) at a point of the unit sphere."""
        if self.bands:
            return self.gas(x, y, z)
        h = self.height(x, y, z, 7)
        gleam, glow, slope = 0.0, None, None
        if self.sea and h < self.sea["level"]:
            depth = h / self.sea["level"]
            ground = look_up(self.sea_ramp, smooth(0.45, 1.0, depth))
            gleam = 1.0
        else:
            low = self.sea["level"] if self.sea else 0.0
            ground = look_up(self.ramp, (h - low) / (1.0 - low))
            if self.relief:
                e = 0.008
                slope = (
                    (self.height(x + e, y, z, 7) - h) / e,
                    (self.height(x, y + e, z, 7) - h) / e,
                    (self.height(x, y, z + e, 7) - h) / e,
                )
            if self.lights:
                where = self.fbm(x * 3.1 + 9.0, y * 3.1, z * 3.1, 3)
                spark = self.noise(x * 85.0, y * 85.0, z * 85.0)
                town = smooth(0.02, 0.28, where) * smooth(0.25, 0.75, spark + 0.35 * where)
                near_shore = smooth(low + 0.25, low, h)
                glow = tuple(c * town * (0.4 + near_shore) * 1.6 for c in self.lights)
        if self.cracks:
            s = self.cracks["scale"]
            wander = 0.35 * self.fbm(x * s * 1.7, y * s * 1.7, z * s * 1.7 + 8.0, 3)
            ridge = 1.0 - abs(self.noise(x * s + wander, y * s + wander + 3.0, z * s)) * self.cracks["thin"]
            fine = 1.0 - abs(self.noise(x * s * 2.3 - wander, y * s * 2.3, z * s * 2.3 + wander)) * self.cracks["thin"]
            heat = max(smooth(0.55, 1.0, ridge), 0.6 * smooth(0.6, 1.0, fine)) * smooth(0.75, 0.3, h)
            if self.cracks.get("dark"):
                ground = mix(ground, self.crack_colour, 0.85 * heat)
            else:
                hot = tuple(c * heat * (0.5 + heat) * 2.4 for c in self.crack_colour)
                glow = hot if glow is None else tuple(a + b for a, b in zip(glow, hot))
        if self.ice:
            edge = abs(y) + 0.18 * self.fbm(x * 3.0, y * 3.0, z * 3.0 + 60.0, 4)
            white = smooth(self.ice - 0.03, self.ice + 0.05, edge)
            ground = mix(ground, self.ice_colour, white)
            gleam *= 1.0 - white
        return ground, gleam, glow, slope

    def crater(self, x, y, z):
        """Bowls with raised rims, three sizes of them, one in each cell of a lattice."""
        total = 0.0
        for cells, depth in ((3.1, 0.20), (7.3, 0.10), (15.0, 0.05)):
            px, py, pz = x * cells, y * cells, z * cells
            cell = (cells, math.floor(px), math.floor(py), math.floor(pz))
            bowl = self.bowls.get(cell)
            if bowl is None:
                rng = random.Random(hash(cell))
                middle = [at + rng.uniform(0.4, 0.6) for at in cell[1:]]
                bowl = self.bowls[cell] = (*middle, rng.uniform(0.14, 0.30))
            dx, dy, dz = px - bowl[0], py - bowl[1], pz - bowl[2]
            d = (dx * dx + dy * dy + dz * dz) / (bowl[3] * bowl[3])
            if d < 1.0:
                total += depth * bowl[3] * 3.0 * (1.3 * d - 1.0)
            elif d < 1.7:
                total += depth * bowl[3] * 0.9 * smooth(1.7, 1.0, d)
        return total * self.craters

    def gas(self, x, y, z):
        b = self.bands
        s = self.scale
        swirl = self.fbm(x * s * 1.3, y * s * 3.4, z * s * 1.3, 4)
        fine = self.fbm(x * s * 2.0 + swirl * 2.2, y * s * 9.0, z * s * 2.0 + swirl * 2.2, 4)
        storm = 0.0
        for sx, sy, sz, size in b.get("storms", ()):
            dx, dy, dz = x - sx, (y - sy) * 1.8, z - sz
            d = math.sqrt(dx * dx + dy * dy + dz * dz) / size
            if d < 1.6:
                turn = 3.0 * (1.6 - d)
                ring = self.fbm(dx * 7.0 * math.cos(turn) - dy * 7.0 * math.sin(turn), dx * 7.0 * math.sin(turn) + dy * 7.0 * math.cos(turn), z, 3)
                storm = max(storm, smooth(1.15, 0.55, d + 0.35 * ring))
        lat = y * b["count"] + b["turbulence"] * swirl + 0.25 * b["turbulence"] * fine
        t = 0.5 + 0.34 * math.sin(lat) + 0.16 * math.sin(lat * 2.7 + 1.3) + 0.16 * fine
        ground = look_up(self.ramp, t)
        if storm:
            ground = mix(ground, colour(b["storm_colour"]), 0.85 * storm)
        return mix(ground, self.ice_colour, 0.35 * smooth(0.75, 1.0, abs(y)) if self.ice else 0.0), 0.0, None, None

    def cover(self, x, y, z):
        """How much of a point the clouds hide."""
        c = self.clouds
        s = c.get("scale", 2.6)
        w = 0.9 * self.noise(x * s * 0.6 + 70.0, y * s * 0.9, z * s * 0.6)
        v = self.fbm(x * s + w + 31.0, y * s * 1.7 - w, z * s + w, 5)
        return c["amount"] * smooth(c.get("from", 0.0), c.get("from", 0.0) + 0.34, v)


# ---------------------------------------------------------------- rings


class Rings:
    """A flat, banded disc around the world, seen at an angle."""

    def __init__(self, spec, seed):
        self.inner, self.outer = spec["inner"], spec["outer"]
        self.normal = unit(spec["normal"])
        self.colour = colour(spec["colour"])
        self.density = spec.get("density", 0.9)
        noise = make_noise(seed + 1)
        self.table = []
        for i in range(1024):
            t = i / 1023.0
            band = 0.55 + 0.5 * noise(t * 9.0, 3.0, 0.0) + 0.4 * noise(t * 31.0, 7.0, 0.0) + 0.25 * noise(t * 90.0, 1.0, 0.0)
            gap = 1.0 - 0.95 * smooth(0.02, 0.0, abs(t - 0.62))
            self.table.append(clamp(band) * gap * smooth(0.0, 0.06, t) * smooth(1.0, 0.93, t))

    def thickness(self, r):
        t = (r - self.inner) / (self.outer - self.inner)
        return self.density * self.table[int(t * 1023.0)] if 0.0 <= t <= 1.0 else 0.0

    def crossing(self, x, y):
        """Depth at which the ray through (x, y) crosses the plane of the rings."""
        n = self.normal
        return -(n[0] * x + n[1] * y) / n[2]


# ---------------------------------------------------------------- the picture


def render(world, size, tell):
    surface = Surface(world)
    sun = unit(world.get("sun", [-0.62, 0.48, 0.62]))
    radius = world.get("radius", 0.66)
    cx, cy = world.get("centre", [0.0, 0.0])
    tilt, spin = math.radians(world.get("tilt", 18)), math.radians(world.get("spin", 0))
    ct, st, cs, ss = math.cos(tilt), math.sin(tilt), math.cos(spin), math.sin(spin)
    air = colour(world["air"]["colour"]) if "air" in world else None
    thick = world["air"].get("thick", 1.0) if air else 0.0
    rings = Rings(world["rings"], world["seed"]) if "rings" in world else None
    moon = world.get("moon")
    moon_noise = make_fbm(make_noise(world["seed"] + 5))
    moon_colour = colour(moon["colour"]) if moon else None
    sky = make_noise(world["seed"] + 9)
    sky_fbm = make_fbm(sky)
    haze = colour(world.get("haze", "#1b2a5c"))
    exposure = world.get("exposure", 1.9)
    pixel = 2.0 / size / radius  # one pixel, in radii of the world

    stars = {}
    rng = random.Random(world["seed"] + 3)
    for _ in range(150):
        sx, sy = rng.uniform(-1, 1), rng.uniform(-1, 1)
        light, warm = rng.random() ** 5 * 2.6 + 0.1, rng.uniform(-0.2, 0.2)
        px, py = (sx + 1) / 2 * size, (sy + 1) / 2 * size
        wide = (0.35 + 0.45 * min(1.0, light)) * max(1.0, size / 420)
        reach = int(3 * wide) + 1
        for j in range(int(py) - reach, int(py) + reach + 1):
            for i in range(int(px) - reach, int(px) + reach + 1):
                d2 = ((i + 0.5 - px) ** 2 + (j + 0.5 - py) ** 2) / (wide * wide)
                if d2 < 9:
                    g = light * math.exp(-d2)
                    old = stars.get((i, j), (0.0, 0.0, 0.0))
                    stars[i, j] = (old[0] + g * (1 + warm), old[1] + g, old[2] + g * (1 - warm))

    # The haze between the stars is soft: a coarse grid of it is enough.
    grid = 32
    haze_at = [
        [smooth(-0.45, 0.6, sky_fbm(i / grid * 2.4, j / grid * 2.4, 4.3, 4)) ** 2 for i in range(grid + 2)]
        for j in range(grid + 2)
    ]

    def background(i, j):
        u, v = i / size * grid, j / size * grid
        a, b = int(u), int(v)
        u -= a
        v -= b
        top = haze_at[b][a] + u * (haze_at[b][a + 1] - haze_at[b][a])
        low = haze_at[b + 1][a] + u * (haze_at[b + 1][a + 1] - haze_at[b + 1][a])
        g = 0.004 + 0.42 * (top + v * (low - top))
        s = stars.get((i, j))
        r = (haze[0] * g + 0.0012, haze[1] * g + 0.0015, haze[2] * g + 0.003)
        return (r[0] + s[0], r[1] + s[1], r[2] + s[2]) if s else r

    def sunlit(x, y, z):
        """How much sun reaches a point (for the rings: less in the world's shadow)."""
        along = x * sun[0] + y * sun[1] + z * sun[2]
        if along >= 0.0:
            return 1.0
        off = math.sqrt(max(0.0, x * x + y * y + z * z - along * along))
        return 0.03 + 0.97 * smooth(0.96, 1.03, off)

    def ring_light(x, y):
        """(colour, thickness, depth) of the rings on the ray through (x, y)."""
        z = rings.crossing(x, y)
        t = rings.thickness(math.sqrt(x * x + y * y + z * z))
        if t <= 0.0:
            return None
        g = sunlit(x, y, z) * (0.35 + 0.65 * abs(sum(a * b for a, b in zip(rings.normal, sun)))) * 1.1
        return (rings.colour[0] * g, rings.colour[1] * g, rings.colour[2] * g), t, z

    def ground(x, y):
        """Light that comes from the sphere at (x, y), in radii from its centre."""
        z = math.sqrt(max(0.0, 1.0 - x * x - y * y))
        tx, ty = x * ct + y * st, y * ct - x * st  # the axis leans
        qx, qz = tx * cs + z * ss, z * cs - tx * ss  # the world has turned
        base, gleam, glow, slope = surface.at(qx, ty, qz)
        nx, ny, nz = x, y, z
        if slope:
            # The slope is in the world's own frame: turn it back before it bends the normal.
            gx, gz = slope[0] * cs - slope[2] * ss, slope[0] * ss + slope[2] * cs
            gx, gy = gx * ct - slope[1] * st, gx * st + slope[1] * ct
            k = surface.relief * 0.3
            nx, ny, nz = unit((x - k * gx, y - k * gy, z - k * gz))
        direct = x * sun[0] + y * sun[1] + z * sun[2]
        bent = nx * sun[0] + ny * sun[1] + nz * sun[2]
        day = smooth(-0.10, 0.22, direct)
        light = max(0.0, bent) * day * 1.25
        if surface.clouds:
            cover = surface.cover(qx, ty, qz)
            if cover > 0.0:
                shade = surface.cover(qx + 0.02 * sun[0], ty + 0.02 * sun[1], qz)
                white = 0.82 + 0.5 * (cover - shade)
                base = mix(base, tuple(c * white for c in surface.cloud_colour), cover)
                gleam *= 1.0 - cover
                light = mix((light, 0, 0), (max(0.0, direct) * day * 1.25, 0, 0), cover)[0]
                if glow:
                    glow = tuple(c * (1.0 - 0.8 * cover) for c in glow)
        if rings:
            # The shadow of the rings: where the way to the sun crosses their plane.
            n = rings.normal
            down = n[0] * sun[0] + n[1] * sun[1] + n[2] * sun[2]
            way = -(n[0] * x + n[1] * y + n[2] * z) / down if down else -1.0
            if way > 0.0:
                hx, hy, hz = x + way * sun[0], y + way * sun[1], z + way * sun[2]
                light *= 1.0 - 0.8 * rings.thickness(math.sqrt(hx * hx + hy * hy + hz * hz))
        dusk = smooth(0.30, 0.0, direct) * day if air else 0.0
        r = base[0] * light * (1.0 + 0.5 * dusk) + base[0] * 0.006
        g = base[1] * light * (1.0 - 0.1 * dusk) + base[1] * 0.006
        b = base[2] * light * (1.0 - 0.4 * dusk) + base[2] * 0.008
        if gleam:
            hx, hy, hz = unit((sun[0], sun[1], sun[2] + 1.0))
            shine = max(0.0, x * hx + y * hy + z * hz)
            shine = gleam * day * (0.6 * shine**110 + 0.07 * shine**18)
            r, g, b = r + shine, g + shine * 0.93, b + shine * 0.82
        if glow:
            night = 1.0 - 0.85 * day if surface.lights else 1.0
            r, g, b = r + glow[0] * night, g + glow[1] * night, b + glow[2] * night
        if air:
            rim = (1.0 - z) ** 2.6 * thick * (0.03 + 1.15 * day)
            r += air[0] * rim
            g += air[1] * rim
            b += air[2] * rim
        return (r, g, b)

    tone = [
        int(255.0 * clamp(1.0 - math.exp(-exposure * i / 1024.0)) ** (1 / 2.2) * 16.0) for i in range(4097)
    ]
    dither = random.Random(world["seed"])
    picture = bytearray(size * size * 3)
    told = -1
    at = 0
    for j in range(size):
        y = ((1.0 - (2 * j + 1) / size) - cy) / radius
        for i in range(size):
            x = ((2 * i + 1) / size - 1.0 - cx) / radius
            far = math.sqrt(x * x + y * y)
            cover = clamp(0.5 + (1.0 - far) / pixel)  # of the pixel by the disc
            light = background(i, j) if cover < 1.0 else (0.0, 0.0, 0.0)
            if moon and cover < 1.0:
                mx, my = (x - moon["at"][0]) / moon["size"], (y - moon["at"][1]) / moon["size"]
                m2 = mx * mx + my * my
                part = clamp(0.5 + (1.0 - math.sqrt(m2)) * moon["size"] / pixel)
                if part > 0.0:
                    mz = math.sqrt(max(0.0, 1.0 - m2))
                    g = 1.0 + 0.9 * moon_noise(mx * 2.6, my * 2.6, mz * 2.6, 4)
                    g *= max(0.0, mx * sun[0] + my * sun[1] + mz * sun[2]) * 1.2 + 0.004
                    light = mix(light, tuple(c * g for c in moon_colour), part)
            if air and cover < 1.0:
                # The halo: air beyond the edge, brightest towards the sun.
                side = (x * sun[0] + y * sun[1]) / far
                g = math.exp(-(far - 1.0) / (0.045 * thick)) * thick * (0.04 + 0.85 * smooth(-0.5, 0.9, side)) * 0.8
                light = (light[0] + air[0] * g, light[1] + air[1] * g, light[2] + air[2] * g)
            ring = ring_light(x, y) if rings else None
            if ring and ring[2] < 0.0:
                light = mix(light, ring[0], ring[1])
            if cover > 0.0:
                k = 1.0 if far < 0.9999 else 0.9999 / far
                light = mix(light, ground(x * k, y * k), cover)
            if ring and ring[2] >= 0.0:
                light = mix(light, ring[0], ring[1])
            for c in light:
                v = c * 1024.0
                # Sixteenths of a level are settled by chance, or dark skies would show steps.
                v = tone[int(v) if v < 4096.0 else 4096] + int(dither.random() * 16.0)
                picture[at] = v >> 4 if v < 4096 else 255
                at += 1
        percent = (j + 1) * 100 // size
        if percent != told:
            told = percent
            tell(percent)
    return bytes(picture)


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    path, size, out = sys.argv[1], int(sys.argv[2]), sys.argv[3]
    if not 16 <= size <= 4096:
        sys.exit(f"size is {size}; 16 to 4096 pixels are possible")
    with open(path, encoding="utf-8") as file:
        world = json.load(file)
    node = os.environ.get("MESH_NODE", "this machine")
    began = time.monotonic()
    print(f"{world['name']}: {size} x {size} pixels on {node}", flush=True)

    progress = os.environ.get("MESH_PROGRESS")

    def tell(percent):
        if progress:
            with open(progress, "w", encoding="utf-8") as file:
                file.write(f"{percent} {world['name']}\n")
        if percent and percent % 25 == 0:
            print(f"{world['name']}: {percent} %", flush=True)

    picture = render(world, size, tell)
    stem = os.path.splitext(os.path.basename(path))[0]
    os.makedirs(out, exist_ok=True)
    with open(os.path.join(out, stem + ".rgb"), "wb") as file:
        file.write(picture)
    about = {"name": world["name"], "words": world.get("words", ""), "size": size, "node": node}
    with open(os.path.join(out, stem + ".json"), "w", encoding="utf-8") as file:
        json.dump(about, file)
    print(f"{world['name']}: done in {time.monotonic() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
