"""Modules for Flax: ``lstmjax.nn.nnx`` and ``lstmjax.nn.linen``, with the same classes.

``LSTMCell``, ``GRUCell`` and ``SimpleCell``, and for Linen ``MGUCell`` and ``ConvLSTMCell``, take the place of Flax's
own, inside ``RNN``, ``Bidirectional`` or a scan of yours: the import changes and nothing else. ``Recurrent`` runs any
cell over whole sequences, in layers and directions, on the fast path of :func:`lstmjax.unroll_stack`; ``LSTM``, ``GRU``
and ``RNN`` are names for three of these. The modules own parameters; what they compute is the core's.
"""
