"""Readings of the recurrence that backpropagation through time is: does the gradient survive the lag?"""

from lstmjax.gradients.adjoint import adjoint_norms
from lstmjax.gradients.decay import DecayFit, decay_fit

__all__ = ["DecayFit", "adjoint_norms", "decay_fit"]
