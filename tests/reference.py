"""The LSTM in NumPy, forwards and backwards, written from the equations and sharing no line with the library."""

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm(w_x, w_h, b, xs, c, h):
    """Runs over xs [T, B, I]; returns outputs [T, B, H], the last c, and what the backward pass needs."""
    ys, tape = [], []
    for x in xs:
        i, f, g, o = np.split(x @ w_x + h @ w_h + b, 4, axis=-1)
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        tape.append((x, c, h, i, f, g, o))
        c = f * c + i * g
        h = o * np.tanh(c)
        ys.append(h)
    return np.array(ys), c, tape


def lstm_backward(w_x, w_h, tape, d_ys, d_c):
    """Gradients (w_x, w_h, b, xs, c0, h0) from those of the outputs, d_ys [T, B, H], and of the last c."""
    d_w_x, d_w_h, d_b = np.zeros_like(w_x), np.zeros_like(w_h), np.zeros(w_x.shape[1])
    d_h, d_xs = np.zeros_like(d_c), []
    for (x, c_before, h_before, i, f, g, o), d_y in zip(tape[::-1], d_ys[::-1], strict=True):
        d_h = d_h + d_y
        tanh_c = np.tanh(f * c_before + i * g)
        d_c = d_c + d_h * o * (1 - tanh_c**2)
        d_z = np.concatenate(
            [
                d_c * g * i * (1 - i),
                d_c * c_before * f * (1 - f),
                d_c * i * (1 - g**2),
                d_h * tanh_c * o * (1 - o),
            ],
            axis=-1,
        )
        d_w_x, d_w_h, d_b = d_w_x + x.T @ d_z, d_w_h + h_before.T @ d_z, d_b + d_z.sum(0)
        d_xs.append(d_z @ w_x.T)
        d_h, d_c = d_z @ w_h.T, d_c * f
    return d_w_x, d_w_h, d_b, np.array(d_xs[::-1]), d_c, d_h
