"""Logistic regression on soft labels with an L1 penalty, for three features and many problems at
once.

Small on purpose: length control refits it thousands of times (cross-validation, bootstrap), where a
general library spends its time on set-up.
"""

from __future__ import annotations

import numpy as np

from eval.stats import Floats

Features = tuple[Floats, Floats, Floats]


def fit(
    x: Features, y: Floats, weight: Floats, c: Floats | float, start: Floats | None = None
) -> Floats:
    """Minimise |w|_1 + C * sum(weight * log loss) for B problems at once by proximal Newton;
    returns w (B, 3). No intercept.

    `x`: three features, `y`: soft labels in [0, 1], `weight`: each (N,) or (B, N); `c`: a number or
    (B,); `start`: (3,), worth giving when the answer is nearly known. The problem is convex and the
    step is halved wherever the objective would rise: the start decides the time only.
    """
    columns = [np.atleast_2d(a) for a in x]
    y = np.atleast_2d(y)
    weight = np.atleast_2d(weight)
    problems = [len(a) for a in (*columns, weight)]
    batch = max(np.size(c), *problems)
    scale = np.broadcast_to(c, (batch,))
    w = np.zeros((batch, 3)) if start is None else np.tile(start, (batch, 1))
    value, slope, curve = _objective(w, columns, y, weight, scale)
    for _ in range(100):
        step = _step(w, slope, curve)
        # Problems step together, each by its own size: one that rose is tried again at half.
        size = np.ones(batch)
        for _ in range(30):
            trial = w + size[:, None] * step
            now, new_slope, new_curve = _objective(trial, columns, y, weight, scale)
            worse = now > value + 1e-12 * abs(value)
            if not worse.any():
                break
            size[worse] /= 2
        w = trial
        value = now
        slope = new_slope
        curve = new_curve
        # Newton's steps shrink quadratically: the next would be below 1e-12.
        if abs(step).max() < 1e-7:
            break
    return w


def _objective(
    w: Floats, x: list[Floats], y: Floats, weight: Floats, c: Floats
) -> tuple[Floats, Floats, Floats]:
    """Penalised objective (B,), gradient (B, 3) and Hessian (B, 3, 3) of its smooth part."""
    first, second, third = w.T[:, :, None]
    eta = first * x[0]
    eta = eta + second * x[1]
    eta = eta + third * x[2]
    # exp of -|eta| never overflows; both the probability and the loss are written with it.
    small = np.exp(-abs(eta))
    p = np.where(eta >= 0, 1.0, small) / (1 + small)
    loss = np.maximum(eta, 0) + np.log1p(small) - y * eta
    fit_loss = (weight * loss).sum(axis=1)
    value = abs(w).sum(axis=1) + c * fit_loss
    residual = weight * (p - y)
    information = weight * p * (1 - p)
    slopes = [(residual * column).sum(axis=1) for column in x]
    slope = np.stack(slopes, axis=1) * c[:, None]
    curve = np.empty((len(w), 3, 3))
    for i in range(3):
        part = information * x[i]
        for j in range(i, 3):
            bend = (part * x[j]).sum(axis=1) * c
            curve[:, i, j] = bend
            curve[:, j, i] = bend
    return value, slope, curve


def _step(w: Floats, slope: Floats, curve: Floats) -> Floats:
    """The step (B, 3) to the minimum of |w|_1 + the quadratic model.

    Where the signs after a plain Newton step are also those of the penalised solution, that
    solution is the minimum; the few other problems go through coordinate descent.
    """
    # A feature that is zero everywhere keeps its coefficient at 0.
    ridge = curve + 1e-10 * np.eye(3)
    sign = np.sign(w - _solve(ridge, slope))
    step = -_solve(ridge, slope + sign)
    moved = np.sign(w + step) != sign
    rest = (moved | (sign == 0)).any(axis=1)
    if rest.any():
        step[rest] = _coordinate_descent(w[rest], slope[rest], ridge[rest])
    return step


def _solve(a: Floats, b: Floats) -> Floats:
    """x (B, 3) with a x = b, problem by problem."""
    return np.asarray(np.linalg.solve(a, b[..., None])[..., 0])


def _coordinate_descent(w: Floats, slope: Floats, curve: Floats) -> Floats:
    """The same step, one coefficient after the other: each is set to its minimum given the others
    until none moves."""
    step = np.zeros_like(w)
    for _ in range(1000):
        before = step.copy()
        for j in range(3):
            second = curve[:, j, j]
            tilt = slope[:, j] + (curve[:, j] * step).sum(axis=1)
            target = w[:, j] + step[:, j] - tilt / second
            # The penalty pulls the minimum towards 0 by 1 / second, and holds it there.
            shrunk = np.maximum(abs(target) - 1 / second, 0)
            step[:, j] = np.sign(target) * shrunk - w[:, j]
        if abs(step - before).max() < 1e-12:
            break
    return step
