"""The recurrence: `s_t = step(params, s_{t−1}, x_t)` over time, one file for each way to run it.

* ``scan``: a plain ``lax.scan`` over any step, and what all ways share: resets, skipped steps, blocks
* ``parts``: a step taken apart, with the diagonals of ``elementwise``
* ``linear``: the scan whose derivative is a linear recurrence, for steps that can be taken apart
* ``platforms``: which way a program takes, chosen where it is lowered
* ``accelerator``: the ways of ``linear`` on a GPU or a TPU
* ``cpu``, ``native``: its ways on a CPU, by kernels in C++
* ``pallas``: its way on an NVIDIA GPU by one kernel for the whole sequence, where it is asked for
* ``cudnn``: NVIDIA's LSTM
* ``inputs``: the arguments of an unroll, checked and made into what a scan consumes
"""
