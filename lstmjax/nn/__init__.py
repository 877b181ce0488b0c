"""Modules for Flax: ``lstmjax.nn.nnx`` and ``lstmjax.nn.linen``, each with the same six classes.

``LSTMCell``, ``GRUCell`` and ``SimpleCell`` take the place of Flax's own, inside ``RNN``, ``Bidirectional`` or a scan
of yours: the import changes and nothing else. ``LSTM``, ``GRU`` and ``RNN`` run whole sequences, in layers and
directions, on the fast path of :func:`lstmjax.unroll_stack`. The modules own parameters; what they compute is the
core's.
"""
