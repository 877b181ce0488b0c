"""Tasks: every target recomputed from the inputs in NumPy, every range and balance counted."""

import itertools
import math
import sys

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

from lstmjax import tasks

DRAWS = {
    "adding": (tasks.adding(20, 300), (20, 300, 2)),
    "adding_1997": (tasks.adding_1997(40, 300), (44, 300, 2)),
    "copy_memory": (tasks.copy_memory(6, 300), (26, 300, 10)),
    "temporal_order": (tasks.temporal_order(300), (110, 300, 8)),
    "noisy_lag": (tasks.noisy_lag(7, 300, distractors=5), (70, 300, 9)),
    "loan_sentences": (tasks.loan_sentences(3, 300), (16, 300, len(tasks.LOAN_VOCABULARY))),
    "continual_reber": (tasks.continual_reber(30, 300), (30, 300, 7)),
}


@pytest.fixture(scope="module", params=list(DRAWS))
def named(request):
    draw, shape = DRAWS[request.param]
    return draw, shape, jax.jit(draw)(jax.random.key(0))


@pytest.fixture(scope="module")
def drawn():
    return {name: jax.tree.map(np.asarray, jax.jit(draw)(jax.random.key(7))) for name, (draw, _) in DRAWS.items()}


def ids_of(batch, row):
    """The symbols of one row up to its length, each row of xs having been one-hot up to there and zero after."""
    n = batch.lengths[row]
    np.testing.assert_array_equal(np.sort(batch.xs[:n, row], -1)[:, -1], 1)
    np.testing.assert_array_equal(batch.xs[:, row].sum(-1), np.arange(len(batch.xs)) < n)
    return batch.xs[:n, row].argmax(-1)


def test_shapes_and_dtypes(named):
    _, shape, batch = named
    assert batch.xs.shape == shape
    assert batch.xs.dtype == jnp.float32
    assert batch.lengths.shape == shape[1:2]
    assert jnp.issubdtype(batch.lengths.dtype, jnp.integer)
    assert 0 < int(batch.lengths.min()) <= int(batch.lengths.max()) <= shape[0]


def test_a_key_decides_everything(named):
    draw, _, batch = named
    plain, other = draw(jax.random.key(0)), jax.jit(draw)(jax.random.key(1))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), plain, batch))
    assert not bool((other.xs == batch.xs).all())


def test_in_double_precision(x64):
    for draw in (tasks.noisy_lag(5, 4), tasks.adding_1997(20, 4), tasks.temporal_order(4)):
        assert jax.eval_shape(draw, jax.random.key(0)).targets.shape == (4,)
    batch = tasks.embedded_reber(3)
    assert not tasks.reber_correct(jnp.zeros(batch.xs.shape), batch.targets, batch.lengths).any()


def test_adding(drawn):
    batch = drawn["adding"]
    values, marks = batch.xs[..., 0], batch.xs[..., 1]
    assert set(np.unique(marks)) == {0, 1}
    np.testing.assert_array_equal(marks.sum(0), 2)
    np.testing.assert_allclose(batch.targets, [values[marks[:, b] == 1, b].sum() for b in range(300)], rtol=1e-6)
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    # Every step is marked in its turn: 600 marks over 20 steps, 30 each, standard deviation 5.2.
    assert 8 <= marks.sum(1).min() <= marks.sum(1).max() <= 52
    assert np.mean((batch.targets - 1) ** 2) == pytest.approx(1 / 6, abs=0.035)


def test_adding_1997(drawn):
    batch, lengths = drawn["adding_1997"], drawn["adding_1997"].lengths
    assert set(lengths) == set(range(40, 45))
    for b, n in enumerate(lengths):
        values, marks = batch.xs[:n, b].T
        marked = np.flatnonzero(marks == 1)
        assert marks[0] == marks[-1] == -1
        assert len(marked) == 2 or (len(marked) == 1 and values[0] == 0)
        assert len(marked) == 1 or marked.min() < 10
        assert marked.max() <= 40 // 2 - 1
        assert np.count_nonzero(marks) == 2 + len(marked)
        assert batch.targets[b] == pytest.approx(0.5 + values[marked].sum() / 4, abs=1e-6)
        assert not batch.xs[n:, b].any()
    values = batch.xs[..., 0]
    assert -1 <= values.min() < -0.99
    assert 0.99 < values.max() < 1
    # A mark falls on the first step in 1/10 of the rows, or else in 9/10 · 1/19.
    silenced = np.mean((batch.xs[..., 1] == 1).sum(0) == 1)
    assert silenced == pytest.approx(0.1 + 0.9 / 19, abs=0.07)
    assert np.mean((batch.targets - 0.5) ** 2) == pytest.approx(1 / 24, abs=0.012)


def test_adding_second_mark_is_uniform_over_what_the_first_leaves():
    batch = tasks.adding_1997(20, 4000)(jax.random.key(0))
    marked = np.asarray(batch.xs[:, :, 1] == 1)
    pairs = {tuple(np.flatnonzero(marked[:, b])) for b in range(4000)}
    # T/2 − 1 = 9 of the steps that are left: the first ten but one.
    assert {p for p in pairs if len(p) == 2} == {(i, j) for i in range(1, 10) for j in range(i + 1, 10)}
    assert {p[0] for p in pairs if len(p) == 1} == set(range(1, 10))


def test_adding_criterion_is_strict():
    targets = jnp.array([0.5, 0.5, 0.5, 0.5])
    answers = jnp.array([0.539, 0.541, 0.461, 0.459])
    assert tasks.adding_correct_1997(answers, targets).tolist() == [True, False, True, False]


def test_copy_memory(drawn):
    batch = drawn["copy_memory"]
    for b in range(300):
        ids = ids_of(batch, b)
        np.testing.assert_array_equal(ids[10:], [8] * 5 + [9] + [8] * 10)
        np.testing.assert_array_equal(batch.targets[:, b], [8] * 16 + list(ids[:10]))
    counts = np.bincount(batch.targets[-10:].ravel(), minlength=8)
    assert len(counts) == 8  # 3000 draws of 8, 375 each, standard deviation 18
    assert 300 < counts.min() <= counts.max() < 450


def test_copy_lag_counts_from_the_last_symbol_to_the_first_asked_for():
    batch = tasks.copy_memory(100, 1)(jax.random.key(0))
    assert len(batch.xs) == 120
    assert int((batch.targets[:, 0] < 8).argmax()) - 10 == 100
    # The baseline: sure of every blank, and at a loss for ten symbols of eight.
    probabilities = np.full((120, 9), 0.0)
    probabilities[:110, 8], probabilities[110:, :8] = 1, 1 / 8
    picked = probabilities[np.arange(120), np.asarray(batch.targets)[:, 0]]
    assert -np.log(picked).mean() == pytest.approx(10 * math.log(8) / 120)
    assert round(-np.log(picked).mean(), 4) == 0.1733


def test_copy_accuracy(drawn):
    targets = drawn["copy_memory"].targets
    logits = np.eye(9, dtype=np.float32)[targets]
    assert float(tasks.copy_accuracy(jnp.asarray(logits), jnp.asarray(targets))) == 1
    logits[-3:] = np.roll(logits[-3:], 1, axis=-1)
    assert float(tasks.copy_accuracy(jnp.asarray(logits), jnp.asarray(targets))) == pytest.approx(0.7)


def test_temporal_order(drawn):
    batch = drawn["temporal_order"]
    times = []
    for b, n in enumerate(batch.lengths):
        ids = ids_of(batch, b)
        assert (ids[0], ids[-1]) == (0, 1)
        placed = np.flatnonzero(ids >= 6)
        times.append(placed)
        assert batch.targets[b] == {(6, 6): 0, (6, 7): 1, (7, 6): 2, (7, 7): 3}[tuple(ids[placed])]
        rest = np.delete(ids, [0, n - 1, *placed])
        assert set(rest) <= {2, 3, 4, 5}
    first, second = np.array(times).T
    assert set(first) == set(range(10, 21))
    assert set(second) == set(range(50, 61))
    assert set(batch.lengths) == set(range(100, 111))
    assert 45 < np.bincount(batch.targets).min() <= np.bincount(batch.targets).max() < 105


def test_noisy_lag(drawn):
    batch = drawn["noisy_lag"]
    for b in range(300):
        ids = ids_of(batch, b)
        assert (ids[0], ids[1], ids[-1]) == (6, 7 + batch.targets[b], 5)
        assert set(ids[2:-1]) <= set(range(5))
        assert len(ids) - 3 >= 7
    # E k = 9 where k has no bound; its standard deviation is 9.5, so that of the mean .55.
    assert np.mean(batch.lengths - 10) == pytest.approx(9, abs=2)
    assert 110 < batch.targets.sum() < 190


def test_noisy_lag_has_as_many_distractors_as_lag_unless_told():
    assert tasks.noisy_lag(11, 2)(jax.random.key(0)).xs.shape[-1] == 15


def test_outputs_correct():
    outputs = jnp.array([[0.1, 0.75, 0.15], [0.4, 0.6, 0.0], [0.31, 0.71, 0.0], [0.79, 0.1, 0.1]])
    assert tasks.outputs_correct(outputs, jnp.array([1, 1, 1, 1])).tolist() == [True, False, False, False]
    assert tasks.outputs_correct(outputs, jnp.array([1, 1, 1, 0]), 0.2).tolist() == [False] * 4


INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32"]


@pytest.fixture(params=[*INTEGERS, "int64", "uint64"])
def integer(request):
    """Every dtype of whole numbers, those of 64 bits in x64."""
    with jax.enable_x64("64" in request.param):
        yield jnp.dtype(request.param)


def test_steps_and_symbols_are_counted_in_any_integer_dtype(integer):
    # 300 steps and 400 symbols: more than 8 bits count.
    steps, symbols = 300, 400
    lengths = jnp.array([10, 20], integer)
    rows = np.asarray(tasks.one_hot_until(jnp.full((steps, 2), 44, integer), symbols, lengths))
    wanted = np.zeros((steps, 2, symbols))
    wanted[:10, 0, 44] = wanted[:20, 1, 44] = 1
    np.testing.assert_array_equal(rows, wanted)

    legal = np.zeros((steps, 2, 7), bool)
    legal[:, :, 0] = True
    right = legal.astype(np.float32)
    right[10:, 0] = right[20:, 1] = 0
    assert tasks.reber_correct(jnp.asarray(right), jnp.asarray(legal), lengths).all()
    right[19, 1] = 0
    assert tasks.reber_correct(jnp.asarray(right), jnp.asarray(legal), lengths).tolist() == [True, False]

    classes = jnp.array([44, 44], integer)
    outputs = np.zeros((2, symbols), np.float32)
    outputs[0, 44] = outputs[1, 43] = 1
    assert tasks.outputs_correct(jnp.asarray(outputs), classes).tolist() == [True, False]
    assert float(tasks.copy_accuracy(jnp.asarray(outputs)[:, None], classes[:, None], copies=2)) == 0.5
    words = tasks.loan_text(jnp.eye(len(tasks.LOAN_VOCABULARY))[:1], jnp.array(1, integer))
    assert words == "Today had to take a loan."


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_criteria_in_any_float(dtype):
    # On the last number below the bound, and on the first above it.
    with jax.enable_x64(dtype == "float64"):
        near = jnp.asarray(np.array([0.04, 0.2, 0.3]), dtype)
        below = np.asarray(near, float) < np.array([0.04, 0.2, 0.3])
        eps = float(jnp.finfo(dtype).eps)
        for n, bound in enumerate((0.04, 0.2, 0.3)):
            tried = np.asarray(near[n]) * np.array([1 - eps, 1, 1 + eps], near.dtype)
            wanted = [True, bool(below[n]), False]
            if dtype in ("float32", "float64"):  # where the bound itself is rounded to the same number
                tried, wanted = tried[::2], wanted[::2]
            outputs = jnp.stack([jnp.asarray(tried)] * 2, -1).at[:, 1].set(1)
            if bound == 0.04:
                zeros = jnp.zeros(len(tried), "float64" if dtype == "float64" else "float32")
                assert tasks.adding_correct_1997(jnp.asarray(tried), zeros).tolist() == wanted
                assert tasks.adding_correct_1997(jnp.asarray(tried), zeros.astype(dtype)).tolist() == wanted
            else:
                assert tasks.outputs_correct(outputs, jnp.ones(len(tried), jnp.int32), bound).tolist() == wanted
        legal = jnp.array([[[True, True] + [False] * 5]])
        active = jnp.array([[[0.4, 0.3, 0.2, 0.1, 0, 0, 0]]], dtype)
        assert tasks.reber_correct(active, legal, jnp.array([1])).tolist() == [True]
        targets = jnp.arange(300)[:, None] % 2
        logits = jax.nn.one_hot(targets.at[:100].add(1), 3, dtype=dtype)
        assert float(tasks.copy_accuracy(logits, targets, copies=300)) == pytest.approx(2 / 3)


def legal_after(text):
    """Every symbol that may follow, found by trying all paths through Reber's grammar, written down once more."""
    inner = {0: "B1", 1: "T2P3", 2: "S2X4", 3: "T3V5", 4: "X3S6", 5: "P4V6", 6: "E7"}

    def moves(place):
        frame, node = place
        if frame is None:
            return {"B": ("?", 0)} if node == 0 else {"E": (None, 0)}
        if frame == "?":
            return {"T": ("T", 0), "P": ("P", 0)}
        if node == 7:
            return {frame: (None, 1)}
        edges = inner[node]
        return {s: (frame, int(to)) for s, to in zip(edges[::2], edges[1::2], strict=True)}

    place, found = (None, 0), []
    for symbol in text:
        place = moves(place)[symbol]
        found.append(set(moves(place)))
    return found


def check_reber(text, targets):
    for legal, row in zip(legal_after(text), targets, strict=True):
        assert {tasks.REBER_SYMBOLS[i] for i in np.flatnonzero(row)} == legal


def test_embedded_reber():
    batch = jax.tree.map(np.asarray, tasks.embedded_reber(256))
    texts = ["".join(tasks.REBER_SYMBOLS[i] for i in ids_of(batch, b)) for b in range(256)]
    for b, text in enumerate(texts):
        check_reber(text, batch.targets[: len(text), b])
        assert text[0] + text[-1] == "B" + text[1]
        assert not batch.targets[len(text) :, b].any()
        assert tasks.reber_string(jnp.asarray(batch.xs[: len(text), b])) == text
    assert len(batch.xs) == max(map(len, texts))
    assert min(map(len, texts)) == 8
    assert 96 < sum(text[1] == "T" for text in texts) < 160
    # Half of the walks take each branch after B: 128, standard deviation 8.
    assert 96 < sum(text[3] == "T" for text in texts) < 160


def test_embedded_reber_is_decided_by_its_seed():
    one, again, other = tasks.embedded_reber(20, 3), tasks.embedded_reber(20, 3), tasks.embedded_reber(20, 4)
    np.testing.assert_array_equal(one.xs, again.xs)
    assert one.xs.shape != other.xs.shape or bool((one.xs != other.xs).any())


def test_continual_reber(drawn):
    batch = drawn["continual_reber"]
    for b in range(300):
        text = "".join(tasks.REBER_SYMBOLS[i] for i in ids_of(batch, b))
        check_reber(text, batch.targets[:, b])
    assert 110 < batch.xs[1, :, 1].sum() < 190


def test_reber_correct_wants_every_step_and_nothing_behind_the_end():
    batch = tasks.embedded_reber(5)
    perfect = batch.targets.astype(jnp.float32)
    assert tasks.reber_correct(perfect, batch.targets, batch.lengths).all()
    last = int(batch.lengths[2]) - 1
    wrong = perfect.at[last, 2].set(1 - perfect[last, 2])
    assert tasks.reber_correct(wrong, batch.targets, batch.lengths).tolist() == [True, True, False, True, True]
    beyond = perfect.at[int(batch.lengths.min()) :, int(batch.lengths.argmin())].set(0.5)
    assert tasks.reber_correct(beyond, batch.targets, batch.lengths).all()
    # Legal symbols that tie with an illegal one are not above it.
    assert not tasks.reber_correct(jnp.ones_like(perfect), batch.targets, batch.lengths).any()


def test_loan_sentences_are_those_of_the_slides():
    batch = tasks.loan_sentences(0, 32)(jax.random.key(0))
    texts = {tasks.loan_text(batch.xs[:, b], batch.targets[b]) for b in range(32)}
    assert texts == {
        "Today, due to my current job situation and family conditions, I need to take a loan.",
        "Last year, due to my current job situation and family conditions, I had to take a loan.",
    }


def test_only_the_first_word_tells_the_verb(drawn):
    batch = drawn["loan_sentences"]
    vocabulary = np.array(tasks.LOAN_VOCABULARY)
    words = vocabulary[np.stack([ids_of(batch, b) for b in range(300)], 1)]
    np.testing.assert_array_equal(words[0] == "Last year", batch.targets == 1)
    assert set(words[0]) == {"Today", "Last year"}
    fixed = np.delete(words[1:], slice(4, 7), axis=0)
    assert (fixed == fixed[:, :1]).all()
    filler, verbs = words[5:8], batch.targets
    assert len(set(filler.ravel())) == 16
    assert not set(filler.ravel()) & set(words[0])
    assert 110 < verbs.sum() < 190
    # No adjective is more at home beside one verb: 900 draws of 16, 28 a verb, standard deviation 5.3.
    for verb in (0, 1):
        _, counts = np.unique(filler[:, verbs == verb], return_counts=True)
        assert counts.max() < 56


def test_vocabulary_has_no_word_twice():
    assert len(set(tasks.LOAN_VOCABULARY)) == len(tasks.LOAN_VOCABULARY)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: tasks.adding(1, 4), "length is 1; wanted a whole number of at least 2"),
        (lambda: tasks.adding_1997(10, 4), "length is 10; wanted a whole number of at least 11"),
        (lambda: tasks.copy_memory(0, 4), "lag is 0; wanted a whole number of at least 1"),
        (lambda: tasks.temporal_order(0), "batch_size is 0; wanted a whole number of at least 1"),
        (lambda: tasks.noisy_lag(3, 4, distractors=0), "distractors is 0; wanted a whole number of at least 1"),
        (lambda: tasks.loan_sentences(-1, 4), "gap is -1; wanted a whole number of at least 0"),
        (lambda: tasks.embedded_reber(0), "strings is 0; wanted a whole number of at least 1"),
        (lambda: tasks.continual_reber(0, 1), "length is 0; wanted a whole number of at least 1"),
        (lambda: tasks.adding(20.0, 4), "length is 20.0; wanted a whole number of at least 2"),
        (lambda: tasks.noisy_lag(3, True), "batch_size is True; wanted a whole number of at least 1"),
        (lambda: tasks.temporal_order(4, length=9), "length is 9; wanted a whole number of at least 10"),
        (lambda: tasks.digits(test_share=1.0), "test_share is 1.0"),
        (lambda: tasks.character_windows("abc", 5, 2), "a part of the text has 3 characters; wanted more than 10"),
        (lambda: tasks.character_windows("abc" * 99, 5, 2, held_out=1.0), "held_out is 1.0"),
        (lambda: tasks.character_windows("abc" * 99, 0, 2), "steps is 0; wanted a whole number of at least 1"),
        (lambda: tasks.character_windows("abc" * 99, 5, 2.0), "batch_size is 2.0; wanted a whole number of at least 1"),
        (lambda: tasks.unigram_entropy(""), "text has 0 characters; wanted at least 1"),
        (lambda: tasks.bigram_entropy("a"), "text has 1 characters; wanted at least 2"),
        (
            lambda: tasks.copy_accuracy(jnp.ones((4, 1, 9)), jnp.ones((4, 1), int), 0),
            "copies is 0; wanted a whole number",
        ),
        (lambda: tasks.copy_accuracy(jnp.ones((4, 1, 9)), jnp.ones((4, 1), int), 5), "copies is 5, of 4 steps"),
        (lambda: tasks.decode_characters("ab", np.array([0, -1])), "ids run from -1 to 0; wanted 0 to 1"),
    ],
)
def test_bad_sizes_are_one_clear_error(make, message, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ValueError, match=message):
        make()


def test_sizes_of_numpy(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    eleven, two = np.int8(11), np.int8(2)
    for make in (tasks.adding, tasks.adding_1997, tasks.copy_memory, tasks.noisy_lag, tasks.continual_reber):
        batch = jax.eval_shape(make(eleven, two), jax.random.key(0))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), batch) == jax.tree.map(
            lambda a: (a.shape, a.dtype), jax.eval_shape(make(11, 2), jax.random.key(0))
        )


def test_digits():
    from sklearn.datasets import load_digits

    source, data = load_digits(), tasks.digits()
    assert data.train_xs.shape[1] + data.test_xs.shape[1] == 1797
    xs, classes = (
        np.concatenate([data.train_xs, data.test_xs], 1),
        np.concatenate([data.train_classes, data.test_classes]),
    )
    ours = {(row.tobytes(), int(c)) for row, c in zip((xs[..., 0].T * 16).astype(np.uint8), classes, strict=True)}
    theirs = {(row.tobytes(), int(c)) for row, c in zip(source.data.astype(np.uint8), source.target, strict=True)}
    assert ours == theirs
    assert xs.dtype == np.float32
    assert np.bincount(data.test_classes, minlength=10).min() >= 20
    again = tasks.digits()
    np.testing.assert_array_equal(again.test_xs, data.test_xs)
    assert not np.array_equal(tasks.digits(seed=1).test_classes, data.test_classes)


def test_sunspots_have_the_published_linear_errors():
    data = tasks.sunspots()
    assert (data.years[0], data.years[-1], len(data.years)) == (1700, 2008, 309)
    training = data.years <= 1920
    assert data.scaled[training].mean() == pytest.approx(0, abs=1e-6)
    assert data.scaled[training].std() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(data.scaled * data.deviation + data.mean, data.activity, atol=1e-4)
    for order, published in ((2, (16.83, 25.96, 20.46)), (9, (13.75, 22.90, 17.44))):
        lagged = np.stack([np.roll(data.activity, k) for k in range(1, order + 1)] + [np.ones(309)], 1)
        rows = training & (data.years >= 1700 + order)
        weights = np.linalg.lstsq(lagged[rows], data.activity[rows], rcond=None)[0]
        errors = tasks.sunspot_errors(data, lagged @ weights)
        assert tuple(round(e, 2) for e in errors.values()) == pytest.approx(published, abs=0.02)


@pytest.mark.parametrize(
    ("module", "call", "package"),
    [("sklearn.datasets", tasks.digits, "scikit-learn"), ("statsmodels.datasets", tasks.sunspots, "statsmodels")],
)
def test_missing_packages_are_named(monkeypatch, module, call, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{package}: pip install 'lstmjax\[tasks\]'"):
        call()


def test_character_windows_go_on_where_they_ended():
    text = tasks.english_text()[:5000]
    data = tasks.character_windows(text, steps=7, batch_size=3, held_out=0.2)
    assert "".join(sorted(set(text))) == data.vocabulary
    for part, source in ((data.train, text[:4000]), (data.held_out, text[4000:])):
        windows, steps, rows = part.inputs.shape
        assert (steps, rows) == (7, 3)
        assert windows == (len(source) - 1) // 21
        for b in range(rows):
            stream = tasks.decode_characters(data.vocabulary, part.inputs[:, :, b].ravel())
            following = tasks.decode_characters(data.vocabulary, part.targets[:, :, b].ravel())
            start = b * windows * 7
            assert stream == source[start : start + windows * 7]
            assert following == source[start + 1 : start + 1 + windows * 7]
    assert data.train.inputs.dtype == np.int32


def test_entropies():
    text = "the cat sat on the mat and the dog sat on the log " * 3
    count, pairs, before = {}, {}, {}
    for a in text:
        count[a] = count.get(a, 0) + 1
    for a, b in itertools.pairwise(text):
        pairs[a, b] = pairs.get((a, b), 0) + 1
        before[a] = before.get(a, 0) + 1
    unigram = -sum(n / len(text) * math.log2(n / len(text)) for n in count.values())
    bigram = -sum(n / (len(text) - 1) * math.log2(n / before[a]) for (a, _), n in pairs.items())
    assert tasks.unigram_entropy(text) == pytest.approx(unigram)
    assert tasks.bigram_entropy(text) == pytest.approx(bigram)


# NumPy strips NULs at the end of its strings; halves of a surrogate pair; beyond the first plane; the last code point.
STRANGE = "a\0b\ud83d\ude00\U0001f600\uffff\u00e9\U0010ffff"


@pytest.mark.parametrize("text", [STRANGE * 12, "\0" * 40, "\0\0a\0" * 12], ids=["strange", "NULs", "NULs at ends"])
def test_every_character_counts(text):
    data = tasks.character_windows(text, steps=3, batch_size=1, held_out=0.5)
    assert data.vocabulary == "".join(sorted(set(text)))
    read = tasks.decode_characters(data.vocabulary, data.train.inputs.ravel())
    assert read == text[: len(read)]
    rows = tasks.one_hot_text(text)
    assert rows.shape == (len(text), len(data.vocabulary))
    assert tasks.decode_characters(data.vocabulary, rows.argmax(-1)) == text
    kinds = {a: chr(97 + n) for n, a in enumerate(data.vocabulary)}  # the same text in plain letters
    plain = "".join(kinds[a] for a in text)
    assert tasks.unigram_entropy(text) == tasks.unigram_entropy(plain)
    assert tasks.bigram_entropy(text) == tasks.bigram_entropy(plain)


def test_entropies_of_the_text_that_ships_with_python():
    text = tasks.english_text()
    assert tasks.unigram_entropy(text) == pytest.approx(4.69, abs=0.1)
    assert tasks.bigram_entropy(text) == pytest.approx(3.55, abs=0.1)
