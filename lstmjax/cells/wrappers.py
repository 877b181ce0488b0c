"""Wrappers over any cell: noise that regularises a recurrence, and an initial state that is learned.

A wrapper takes a cell and returns a cell, so wrappers can be put around one another. A cell with noise runs in its
deterministic form, in which one evaluates, until :func:`draw_masks` has drawn its masks::

    cell = zoneout(lstm(64), {"c": 0.5, "h": 0.05})
    final, ys = unroll(*draw_masks(key, cell, params, xs))  # to train
    final, ys = unroll(cell, params, xs)                    # to evaluate

The masks are drawn at once, outside the loop, and ride along: those of a sequence in the parameters, those of a step in
the inputs. What comes out of :func:`draw_masks` is a cell, parameters and inputs like any others, and a cell in two
parts is still one. So all that takes these takes them: stacks, the diagnostics, ``jit``, ``grad`` and ``vmap``.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from lstmjax.cells.base import Cell, Gated, Gates, Products, Recurrence, Step, cast_like, dtype_of
from lstmjax.functions import Partial
from lstmjax.typing import Initializer, Key, Params, Shape, State


def draw_masks(key: Key, cell: Cell, params: Params, xs: Any) -> tuple[Cell, Params, Any]:
    """Draws all masks of a cell with noise, for one pass over a batch of sequences.

    Args:
        key: random key.
        cell: a cell that wrappers of this module made.
        params: its parameters.
        xs: ``[T, *B, I]`` inputs. A row of the batch has masks of its own.

    Returns:
        A cell, parameters and inputs for :func:`~lstmjax.unroll` or whatever else takes the three. Gradients with
        respect to the parameters that were given pass through.

    Raises:
        ValueError: the cell has no noise.

    >>> import lstmjax
    >>> cell = lstmjax.variational_dropout(lstmjax.lstm(8), 0.25)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> final, ys = lstmjax.unroll(*draw_masks(jax.random.key(1), cell, params, jnp.ones((20, 5, 3))))
    >>> ys.shape
    (20, 5, 8)
    """
    if cell.noise is None:
        raise ValueError("the cell has no noise to draw; wanted one that a wrapper made, such as zoneout(cell, 0.1)")
    return cell.noise(key, params, xs)


def variational_dropout(cell: Cell, rate: float, *, input_rate: float = 0.0) -> Cell:
    """Dropout of what the weights read, with one mask for a whole sequence.

    ::

        z = pre(W, m_x ∘ x, m_h ∘ h)        m = 0 with probability ``rate``, else 1/(1 − rate)

    Where the state meets no weight, as in `z ∘ h` of a GRU, it is not dropped. One mask serves all gates, the paper's
    *tied* weights: as its note has it, a mask for each gate would cost a product for each. The mask stays the same
    through ``resets``.

    Args:
        cell: any cell whose step is a :class:`Recurrence`.
        rate: the share of h that is set to zero, `0 ≤ rate < 1`.
        input_rate: that of x, likewise.

    Returns:
        The cell with noise: see :func:`draw_masks`. Its parameters and its deterministic form are those of ``cell``.

    Raises:
        ValueError: a rate is outside [0, 1).
        TypeError: the step is no :class:`Recurrence`, so that what the weights read cannot be told from the rest.

    Source: Gal & Ghahramani (2016).

    >>> import lstmjax
    >>> cell = variational_dropout(lstmjax.gru(4), 0.25, input_rate=0.1)
    >>> cell.step == lstmjax.gru(4).step
    True
    """
    _check_rates(rate=rate, input_rate=input_rate)
    _in_two_parts("variational_dropout", cell)
    return cell.replace(noise=Partial(_variational, cell=cell, rate=rate, input_rate=input_rate))


def candidate_dropout(cell: Cell, rate: float) -> Cell:
    """Dropout of the candidate, the new content that is proposed to the memory, with one mask for each step.

    ::

        c' = f ∘ c + i ∘ (m ∘ g)            m = 0 with probability ``rate``, else 1/(1 − rate)

    What is stored is never dropped, so the memory keeps.

    Args:
        cell: any cell whose ``activate`` is :class:`Gated` and has a candidate, as all gated cells here have.
        rate: the share that is set to zero, `0 ≤ rate < 1`.

    Returns:
        The cell with noise: see :func:`draw_masks`. Its parameters and its deterministic form are those of ``cell``.

    Raises:
        ValueError: the rate is outside [0, 1).
        TypeError: the cell has no gates by name.

    Source: Semeniuta, Severyn & Barth (2016).

    >>> import lstmjax
    >>> cell = candidate_dropout(lstmjax.lstm(4), 0.25)
    >>> _, params, (xs, mask) = draw_masks(jax.random.key(0), cell, None, jnp.ones((10, 2, 3)))
    >>> mask[0].shape
    (10, 2, 4)
    """
    _check_rates(rate=rate)
    if not (isinstance(cell.step, Recurrence) and isinstance(cell.step.activate, Gated)):
        raise TypeError("candidate_dropout was given a cell without a candidate; wanted one whose activate is Gated")
    return cell.replace(noise=Partial(_candidate, cell=cell, rate=rate))


def zoneout(cell: Cell, rates: float | dict[str, float]) -> Cell:
    """Zoneout: at each step some units keep their state as it was.

    ::

        s' = m ∘ s + (1 − m) ∘ step(s)      m = 1 with probability ``rate``, else 0
        s' = rate s + (1 − rate) step(s)    in the deterministic form, the expectation

    The two parts of an LSTM's state have a mask each, and `h'` is read off the cell state before zoneout, as in the
    paper.

    Args:
        cell: any cell; its state is all floating.
        rates: the probability to keep, `0 ≤ rate ≤ 1`: a number for all of the state, or one for each part by
            name, such as ``{"c": 0.5, "h": 0.05}``, 0 where there is none.

    Returns:
        The cell with noise: see :func:`draw_masks`. Where ``cell`` has a projection, whose h is not elementwise, it
        runs under the plain scan. An output of the step that is an array of its new state is zoned out with it.

    Raises:
        ValueError: a rate is outside [0, 1], or a name is none of the state's.

    Source: Krueger et al. (2017).

    >>> import lstmjax
    >>> cell = zoneout(lstmjax.lstm(4), {"c": 0.5, "h": 0.05})
    >>> params = cell.init(jax.random.key(0), 3)
    >>> float(lstmjax.unroll(zoneout(cell, 1.0), params, jnp.ones((10, 3)))[1].sum())
    0.0
    """
    like = jax.eval_shape(cell.initial_state)
    try:
        parts = like._replace(**(dict.fromkeys(like._fields, 0.0) | rates)) if isinstance(rates, dict) else rates
        spread = jax.tree.map(lambda rate, part: jax.tree.map(lambda _: rate, part), parts, like)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"rates is {rates!r}; wanted a number, or numbers by parts of the state: {error}") from error
    flat = tuple(jax.tree.leaves(spread))
    if not all(0 <= rate <= 1 for rate in flat):
        raise ValueError(f"rates is {rates!r}; wanted 0 ≤ rate ≤ 1")
    step = _with_activate(cell.step, Partial(_zoned, rates=flat), masks=None)
    return cell.replace(step=step, noise=Partial(_zoneout, cell=cell, rates=flat))


def weight_drop(cell: Cell, rate: float, *, names: tuple[str, ...] = ("w_h",)) -> Cell:
    """DropConnect: dropout of the recurrent weights themselves, with one mask for a whole batch of sequences.

    ::

        W_h ← m ∘ W_h                       m = 0 with probability ``rate``, else 1/(1 − rate)

    Args:
        cell: any cell.
        rate: the share of weights that is set to zero, `0 ≤ rate < 1`.
        names: which parameters are dropped, by the last part of their name.

    Returns:
        The cell with noise: see :func:`draw_masks`, which raises ValueError where no parameter has such a name. Its
        parameters and its deterministic form are those of ``cell``.

    Raises:
        ValueError: the rate is outside [0, 1).

    Source: Wan et al. (2013); Merity, Keskar & Socher (2018).

    >>> import lstmjax
    >>> cell = weight_drop(lstmjax.lstm(4), 0.5)
    >>> _, params, _ = draw_masks(jax.random.key(0), cell, cell.init(jax.random.key(1), 3), jnp.ones((10, 3)))
    >>> bool((params.w_h == 0).any()), bool((params.w_x == 0).any())
    (True, False)
    """
    _check_rates(rate=rate)
    return cell.replace(noise=Partial(_weight_drop, cell=cell, rate=rate, names=tuple(names)))


class LearnedParams(NamedTuple):
    """The parameters of a cell whose initial state is learned.

    Attributes:
        cell: the cell's own.
        state: the state before the first step, without batch axes.
    """

    cell: Params
    state: State


def learned_state(cell: Cell, *, init: Initializer = jax.nn.initializers.zeros) -> Cell:
    """A cell that learns the state before its first step, which ``resets`` restore as well.

    Args:
        cell: any cell.
        init: draws the state, one draw of the shape of each of its arrays.

    Returns:
        A :class:`Cell` over :class:`LearnedParams`. A state that is given to an unroll is taken instead.

    >>> import lstmjax
    >>> cell = learned_state(lstmjax.lstm(4), init=jax.nn.initializers.ones)
    >>> params = cell.init(jax.random.key(0), 3)
    >>> lstmjax.unroll(cell, params, jnp.ones((0, 2, 3)))[0].c.tolist()
    [[1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    """
    return cell.replace(
        init=Partial(_draw_learned, cell=cell, init=init),
        step=_with_params(cell.step, _cell_of),
        start=Partial(_state_of),
        noise=None if cell.noise is None else Partial(_learned_noise, cell=cell),
    )


# How each draws its masks. The masks of the cell that was wrapped are drawn first.


def _inner(key: Key, cell: Cell, params: Params, xs: Any) -> tuple[Key, Cell, Params, Any]:
    key, inner = jax.random.split(key)
    return key, *((cell, params, xs) if cell.noise is None else cell.noise(inner, params, xs))


def _variational(key: Key, params: Params, xs: Any, *, cell: Cell, rate: float, input_rate: float) -> Any:
    batch = _time_and_batch(cell, xs)[1:]
    h = jax.eval_shape(lambda: cell.initial_state(batch)).h

    def dropped(n, x):
        mask = jax.random.bernoulli(jax.random.fold_in(key_x, n), 1 - input_rate, x.shape[1:])
        return jnp.where(jnp.broadcast_to(mask, x.shape), x / (1 - input_rate), 0)

    key, key_x = jax.random.split(key)
    if input_rate:
        leaves, tree = jax.tree.flatten(jax.tree.map(jnp.asarray, xs))
        xs = tree.unflatten([dropped(n, x) for n, x in enumerate(leaves)])
    key, drawn, params, xs = _inner(key, cell, params, xs)
    mask = _mask(key, 1 - rate, h.shape, params)
    assert isinstance(drawn.step, Recurrence)
    start = None if drawn.start is None else Partial(_of_first, function=drawn.start)
    return _done(drawn, _with_mask_on_h(drawn.step, 1 / (1 - rate)), start=start), (params, mask), xs


def _candidate(key: Key, params: Params, xs: Any, *, cell: Cell, rate: float) -> Any:
    shape = _time_and_batch(cell, xs) + jax.eval_shape(cell.initial_state).h.shape
    key, drawn, params, xs = _inner(key, cell, params, xs)
    masks = (_mask(key, 1 - rate, shape, params),)
    step = _with_activate(drawn.step, Partial(_dropped_candidate, scale=1 / (1 - rate)), masks=_widths(masks))
    return _done(drawn, step), params, (xs, masks)


def _zoneout(key: Key, params: Params, xs: Any, *, cell: Cell, rates: tuple[float, ...]) -> Any:
    axes, leaves = _time_and_batch(cell, xs), jax.tree.leaves(jax.eval_shape(cell.initial_state))
    key, drawn, params, xs = _inner(key, cell, params, xs)
    masks = tuple(
        _mask(k, rate, axes + leaf.shape, params)
        for k, rate, leaf in zip(jax.random.split(key, len(leaves)), rates, leaves, strict=True)
    )
    step = _with_activate(drawn.step, Partial(_zoned, rates=rates), masks=_widths(masks))
    return _done(drawn, step), params, (xs, masks)


def _weight_drop(key: Key, params: Params, xs: Any, *, cell: Cell, rate: float, names: tuple[str, ...]) -> Any:
    key, drawn, params, xs = _inner(key, cell, params, xs)
    leaves, tree = jax.tree.flatten_with_path(params)
    chosen = [bool(path) and _name(path[-1]) in names for path, _ in leaves]
    if not any(chosen):
        raise ValueError(f"names is {names}; wanted names of parameters, of which there are {_names(leaves)}")
    dropped = [
        jnp.where(jax.random.bernoulli(jax.random.fold_in(key, n), 1 - rate, leaf.shape), leaf / (1 - rate), 0)
        if drop
        else leaf
        for n, (drop, (_, leaf)) in enumerate(zip(chosen, leaves, strict=True))
    ]
    return _done(drawn, drawn.step), tree.unflatten(dropped), xs


def _learned_noise(key: Key, params: LearnedParams, xs: Any, *, cell: Cell) -> Any:
    drawn, own, xs = draw_masks(key, cell, params.cell, xs)
    return (
        _done(drawn, _with_params(drawn.step, _cell_of), start=Partial(_state_of)),
        LearnedParams(own, params.state),
        xs,
    )


def _mask(key: Key, share: float, shape: Shape, params: Params) -> Array:
    """Ones, that share of all, and zeros. Not booleans: JAX has no tangents for them, and a product wants some."""
    return jax.random.bernoulli(key, share, shape).astype(dtype_of(params))


def _done(cell: Cell, step: Step, **changes: Any) -> Cell:
    return cell.replace(step=step, noise=None, **changes)


def _time_and_batch(cell: Cell, xs: Any) -> Shape:
    shape = jnp.shape(jax.tree.leaves(xs)[0])
    return shape[: len(shape) - cell.num_feature_axes]


def _widths(masks: tuple[Array, ...]) -> tuple[int, ...]:
    return tuple(mask.shape[-1] for mask in masks)


def _name(entry: Any) -> str:
    return str(getattr(entry, "name", getattr(entry, "key", getattr(entry, "idx", None))))


def _names(leaves: Any) -> str:
    return ", ".join(sorted({_name(path[-1]) for path, _ in leaves if path})) or "none"


def _check_rates(**rates: float) -> None:
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ValueError(f"{name} is {rate}; wanted 0 ≤ rate < 1")


def _in_two_parts(name: str, cell: Cell) -> None:
    if not isinstance(cell.step, Recurrence):
        raise TypeError(f"{name} was given a cell whose step is a function; wanted a Recurrence, a step in two parts")


# Parameters that hold more than the cell's own.


def _draw_learned(
    key: Key, input_size: int, dtype: Any = jnp.float32, *, cell: Cell, init: Initializer
) -> LearnedParams:
    own, key = jax.random.split(key)
    leaves, tree = jax.tree.flatten(jax.eval_shape(lambda: cell.initial_state((), dtype)))
    drawn = [init(k, a.shape, a.dtype) for k, a in zip(jax.random.split(key, len(leaves)), leaves, strict=True)]
    return LearnedParams(cell.init(own, input_size, dtype), tree.unflatten(drawn))


def _cell_of(params: LearnedParams) -> Params:
    return params.cell


def _state_of(params: LearnedParams) -> State:
    return params.state


def _first(params: tuple[Any, ...]) -> Any:
    return params[0]


def _of_first(params: tuple[Any, ...], *args: Any, function: Callable[..., Any]) -> Any:
    return function(params[0], *args)


def _through(params: Any, *args: Any, function: Callable[..., Any], own: Callable[[Any], Any]) -> Any:
    return function(own(params), *args)


def _with_params(step: Step, own: Callable[[Any], Any]) -> Step:
    """The step for parameters that its own can be read from."""

    def through(function):
        return None if function is None else Partial(_through, function=function, own=own)

    if not isinstance(step, Recurrence):
        return Partial(_through, function=step, own=own)
    pre = step.pre._replace(pack=through(step.pre.pack)) if isinstance(step.pre, Products) else through(step.pre)
    return dataclasses.replace(step, pre=pre, project=through(step.project), check=through(step.check))


def _with_mask_on_h(step: Recurrence, scale: float) -> Recurrence:
    """The step for parameters ``(its own, mask [*B, H])``."""
    outer: Any = _with_params(step, _first)
    if isinstance(step.pre, Products):
        pre, pack, from_x, from_h = step.pre
        products = Products(
            Partial(_pre_of_masked, pre=pre, scale=scale),
            Partial(_pack_beside, pack=pack),
            Partial(_of_first, function=from_x),
            Partial(_from_masked, from_h=from_h, scale=scale),
        )
    else:
        products = Partial(_pre_of_masked, pre=step.pre, scale=scale)
    return dataclasses.replace(outer, pre=products)


def _masked(mask: Array, h: Array, scale: float) -> Array:
    # Where a z is asked for without batch axes h is zero, and any row will do.
    mask = lax.stop_gradient(mask)[(0,) * max(mask.ndim - h.ndim, 0)].astype(h.dtype)
    return h * scale * jnp.broadcast_to(mask, h.shape)


def _pre_of_masked(weights: tuple[Any, Array], x: Any, h: Array, *, pre: Callable[..., Any], scale: float) -> Any:
    return pre(weights[0], x, _masked(weights[1], h, scale))


def _from_masked(weights: tuple[Any, Array], dh: Array, *, from_h: Callable[..., Any], scale: float) -> Any:
    return from_h(weights[0], _masked(weights[1], dh, scale))


def _pack_beside(params: tuple[Params, Array], *, pack: Callable[[Params], Any]) -> tuple[Any, Array]:
    return pack(params[0]), params[1]


# Masks of a step, handed through the products as gates more.


def _with_activate(step: Step, change: Callable[..., Any], masks: tuple[int, ...] | None) -> Step:
    """The step whose new state is changed by masks, for inputs ``(its own, masks)``; None: without masks."""
    if not isinstance(step, Recurrence) or step.project is not None:
        return Partial(_changed, step=step, change=change, masks=masks)
    count = len(masks or ())
    if isinstance(step.activate, Gated):
        values = Partial(_values_beside, values=step.activate.values, count=count)
        activate: Any = Gated(values, Partial(_changed_update, update=step.activate.update, change=change, count=count))
    else:
        activate = Partial(_changed_activate, activate=step.activate, change=change, count=count)
    gates = None if step.gates is None else Partial(_values_beside, values=step.gates, count=count)
    changes = {"activate": activate, "gates": gates}
    if masks is None:
        return dataclasses.replace(step, **changes)
    check = None if step.check is None else Partial(_check_own, check=step.check)
    if isinstance(step.pre, Products):
        pre, pack, from_x, from_h = step.pre
        products: Any = Products(
            Partial(_pre_beside, pre=pre),
            pack,
            Partial(_from_x_beside, from_x=from_x, width=sum(masks)),
            Partial(_from_h_beside, from_h=from_h, width=sum(masks)),
        )
    else:
        products = Partial(_pre_beside, pre=step.pre)
    return dataclasses.replace(step, pre=products, check=check, **changes)


def _own(z: Gates, count: int) -> tuple[Gates, tuple[Array, ...]]:
    """The cell's own gates, and the masks, true where they are not zero."""
    return z[: len(z) - count], tuple(mask != 0 for mask in z[len(z) - count :])


def _values_beside(z: Gates, state: State, *, values: Callable[..., Any], count: int) -> dict[str, Array]:
    return values(_own(z, count)[0], state)


def _changed_update(
    values: dict[str, Array],
    z: Gates,
    state: State,
    *,
    update: Callable[..., Any],
    change: Callable[..., Any],
    count: int,
) -> State:
    own, masks = _own(z, count)
    return change(masks, state, lambda scaled: update({**values, **scaled(values)}, own, state))


def _changed_activate(
    z: Gates, state: State, *, activate: Callable[..., Any], change: Callable[..., Any], count: int
) -> State:
    own, masks = _own(z, count)
    return change(masks, state, lambda _: activate(own, state))


def _changed(
    params: Params, state: State, x: Any, *, step: Step, change: Callable[..., Any], masks: tuple[int, ...] | None
) -> tuple[State, Any]:
    x, drawn = (x, ()) if masks is None else x
    new, y = step(params, state, x)
    changed = cast_like(change(drawn, state, lambda _: new), new)
    # An output that is part of the state changes with it.
    for before, after in zip(jax.tree.leaves(new), jax.tree.leaves(changed), strict=True):
        y = after if y is before else y
    return changed, y


def _zoned(masks: tuple[Array, ...], state: State, step: Callable[..., State], *, rates: tuple[float, ...]) -> State:
    olds, (news, tree) = jax.tree.leaves(state), jax.tree.flatten(step(lambda _: {}))
    if masks:
        return tree.unflatten([jnp.where(m, old, new) for m, old, new in zip(masks, olds, news, strict=True)])
    mixed = [r * old + (1 - r) * new if r else new for r, old, new in zip(rates, olds, news, strict=True)]
    return tree.unflatten(mixed)


def _dropped_candidate(masks: tuple[Array, ...], state: State, step: Callable[..., State], *, scale: float) -> State:
    (mask,) = masks
    return step(lambda values: {"candidate": jnp.where(mask, scale * values["candidate"], 0)})


def _check_own(params: Params, state: State, x: tuple[Any, Any], *, check: Callable[..., None]) -> None:
    check(params, state, x[0])


def _pre_beside(weights: Any, x: tuple[Any, Any], h: Array, *, pre: Callable[..., Any]) -> tuple[Any, Any]:
    own, masks = x
    return pre(weights, own, h), masks


def _from_x_beside(weights: Any, dx: tuple[Any, Any], *, from_x: Callable[..., Any], width: int) -> tuple[Any, Any]:
    own, masks = dx
    # A mask has no tangent; it has a value where z itself is found by this product.
    return from_x(weights, own), masks if jax.tree.leaves(masks) else jnp.zeros(width, jnp.float32)


def _from_h_beside(weights: Any, dh: Array, *, from_h: Callable[..., Any], width: int) -> tuple[Any, Array]:
    return from_h(weights, dh), jnp.zeros(width, jnp.float32)
