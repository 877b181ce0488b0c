"""Readings of the recurrence that backpropagation through time is: does the gradient survive the lag?

* Of a loss: ``adjoint_norms``, ``decay_fit``, ``per_step_param_grads``, ``truncation_bias``,
  ``truncation_window``, ``precision_audit``
* Of the inputs: ``input_norms``, ``integrated_gradients``
* Of the states: ``jacobian_norms``, ``cell_highway``, ``lyapunov_spectrum``, ``flossing_penalty``
* Of the dynamics: ``fixed_points``, ``kaplan_yorke_dimension``, ``entropy_rate``
* Of the memory: ``memory_capacity``, ``linear_memory``
* Of the gates: ``gate_values``, ``gate_statistics``
* Of the layers: ``depth_norms``, ``feed_forward``
* While it trains: ``gradient_row``
* All at once: ``gradient_report``; whether cells differ, ``rate_differences``
* Of any cell: ``with_output`` puts its output into its state, where a loss over states finds it
"""

from lstmjax.gradients.adjoint import adjoint_norms
from lstmjax.gradients.bptt import TruncationBias, per_step_param_grads, truncation_bias, truncation_window
from lstmjax.gradients.decay import DecayFit, Spread, decay_fit
from lstmjax.gradients.depth import DepthNorms, depth_norms, feed_forward
from lstmjax.gradients.differences import Difference, rate_differences
from lstmjax.gradients.dynamics import FixedPoints, entropy_rate, fixed_points, kaplan_yorke_dimension
from lstmjax.gradients.gates import GateStatistics, gate_statistics, gate_values
from lstmjax.gradients.highway import CellHighway, cell_highway
from lstmjax.gradients.inputs import InputNorms, IntegratedGradients, input_norms, integrated_gradients
from lstmjax.gradients.jacobian import JacobianNorms, jacobian_norms
from lstmjax.gradients.lyapunov import flossing_penalty, lyapunov_spectrum
from lstmjax.gradients.memory import MemoryCapacity, linear_memory, memory_capacity
from lstmjax.gradients.outputs import OutputState, with_output
from lstmjax.gradients.precision import PrecisionAudit, precision_audit
from lstmjax.gradients.report import GradientReport, gradient_report
from lstmjax.gradients.watch import gradient_row

__all__ = [
    "CellHighway",
    "DecayFit",
    "DepthNorms",
    "Difference",
    "FixedPoints",
    "GateStatistics",
    "GradientReport",
    "InputNorms",
    "IntegratedGradients",
    "JacobianNorms",
    "MemoryCapacity",
    "OutputState",
    "PrecisionAudit",
    "Spread",
    "TruncationBias",
    "adjoint_norms",
    "cell_highway",
    "decay_fit",
    "depth_norms",
    "entropy_rate",
    "feed_forward",
    "fixed_points",
    "flossing_penalty",
    "gate_statistics",
    "gate_values",
    "gradient_report",
    "gradient_row",
    "input_norms",
    "integrated_gradients",
    "jacobian_norms",
    "kaplan_yorke_dimension",
    "linear_memory",
    "lyapunov_spectrum",
    "memory_capacity",
    "per_step_param_grads",
    "precision_audit",
    "rate_differences",
    "truncation_bias",
    "truncation_window",
    "with_output",
]
