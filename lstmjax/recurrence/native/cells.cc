// The recurrences of the three cells and their transposes, for one instruction set: LSTMJAX_TARGET names it, and
// LSTMJAX_BYTES is the length of its vectors.
#include "kernel.h"

namespace lstmjax {
namespace LSTMJAX_TARGET {
namespace {

// How the weights of a cell lie in panels. A block of units is `units` vectors of them; its pre-activations are
// 2 * panels vectors, and each is one gate of one vector of units. The first `by_x` panels read x, the last `by_h` h.
struct Column {
  int gate, bias, sub;
};

// i, f | g, o of each vector of units
template <int wide>
struct Lstm {
  static constexpr int panels = 2 * wide, units = wide, by_x = 2 * wide, by_h = 2 * wide;
  static constexpr Column column(int v) { return {v % 4, v % 4, v / 4}; }
};

// n's part of x | r, z of each vector of units | n's part of h. A single vector of units leaves two places empty.
template <int wide>
struct Gru {
  static constexpr int panels = wide + 2, units = wide, by_x = wide + 1, by_h = wide + 1;
  static constexpr Column column(int v) {
    const bool x = v < 2, h = v >= 2 * panels - 2;
    if (x || h) return {2, x ? 2 : 3, x ? v : v - (2 * panels - 2)};
    return {v % 2, v % 2, v / 2 - 1};
  }
};

template <bool relu, int wide>
struct Rnn {
  static constexpr int panels = wide, units = 2 * wide, by_x = wide, by_h = wide;
  static constexpr Column column(int v) { return {0, 0, v}; }
};

// Where one row of one step is read and written, at the first of `n` units.
template <typename S>
struct Spot {
  Size n, hidden;
  const S *z, *h_old;
  S *c, *h_new, *h, *k, *k_state, *k_c;
};

template <bool emit, int wide, typename S>
INLINE void activate(Lstm<wide>, int sub, const Spot<S>& at) {
  constexpr Size W = Simd<S>::width;
  const S* z = at.z + 4 * sub * W;
  const Vec<S> z_i = load(z), z_f = load(z + W), z_g = load(z + 2 * W), z_o = load(z + 3 * W);
  const Exponentials<S, 4> of({sigmoid_exponent<S>(z_i), sigmoid_exponent<S>(z_f), hyperbolic_exponent<S>(z_g),
                               sigmoid_exponent<S>(z_o)});
  const Fraction<S> i = sigmoid<S>(z_i, of.exp[0]), f = sigmoid<S>(z_f, of.exp[1]), o = sigmoid<S>(z_o, of.exp[3]);
  const Fraction<S> g = hyperbolic<S>(z_g, of.exp[2], of.less_one[2]);
  const Vec<S> by_f = S(1) / f.under, by_ig = S(1) / (i.under * g.under), before = load(at.c);
  const Vec<S> c = f.value(by_f) * before + (i.over * g.over) * by_ig;
  const Fraction<S> out = hyperbolic<S>(c);
  const Vec<S> by_oc = S(1) / (o.under * out.under), h = (o.over * out.over) * by_oc;
  store(at.c, c);
  store(at.h_new, h);
  store(at.h, h, at.n);
  if (emit) {
    const Vec<S> by_i = by_ig * g.under, by_g = by_ig * i.under, by_o = by_oc * out.under, by_c = by_oc * o.under;
    store<S>(at.k, i.slope(by_i) * g.value(by_g), at.n);
    store<S>(at.k + at.hidden, f.slope(by_f) * before, at.n);
    store<S>(at.k + 2 * at.hidden, g.slope(by_g) * i.value(by_i), at.n);
    store<S>(at.k + 3 * at.hidden, o.slope(by_o) * out.value(by_c), at.n);
    store(at.k_state, f.value(by_f), at.n);
    store<S>(at.k_c, o.value(by_o) * out.slope(by_c), at.n);
  }
}

template <bool emit, int wide, typename S>
INLINE void activate(Gru<wide>, int sub, const Spot<S>& at) {
  constexpr Size W = Simd<S>::width;
  const Vec<S> z_r = load(at.z + (2 + 2 * sub) * W), z_k = load(at.z + (3 + 2 * sub) * W);
  const Vec<S> by_h = load(at.z + (2 + 2 * wide + sub) * W), before = load(at.h_old);
  const Exponentials<S, 2> of({sigmoid_exponent<S>(z_r), sigmoid_exponent<S>(z_k)});
  const Fraction<S> reset = sigmoid<S>(z_r, of.exp[0]), keep = sigmoid<S>(z_k, of.exp[1]);
  const Fraction<S> change = sigmoid<S>(S(0) - z_k, of.exp[1]);  // 1 - keep, all its digits
  const Vec<S> by_r = S(1) / reset.under, r = reset.value(by_r);
  const Fraction<S> n = hyperbolic<S>(load(at.z + sub * W) + r * by_h);
  const Vec<S> by_kn = S(1) / (keep.under * n.under), by_k = by_kn * n.under;
  const Vec<S> h = (change.over * n.over) * by_kn + keep.value(by_k) * before;
  store(at.h_new, h);
  store(at.h, h, at.n);
  if (emit) {
    const Vec<S> by_n = by_kn * keep.under, slope = change.value(by_k) * n.slope(by_n);
    store<S>(at.k, reset.slope(by_r) * (slope * by_h), at.n);
    store<S>(at.k + at.hidden, keep.slope(by_k) * (before - n.value(by_n)), at.n);
    store(at.k + 2 * at.hidden, slope, at.n);
    store<S>(at.k + 3 * at.hidden, slope * r, at.n);
    store(at.k_state, keep.value(by_k), at.n);
  }
}

template <bool emit, bool relu, int wide, typename S>
INLINE void activate(Rnn<relu, wide>, int sub, const Spot<S>& at) {
  const Vec<S> z = load(at.z + sub * Simd<S>::width);
  Vec<S> h, slope;
  if (relu) {
    h = z <= S(0) ? Vec<S>{} : z;  // a NaN stays one
    slope = z > S(0) ? fill<S>(1) : Vec<S>{};
  } else {
    const Fraction<S> out = hyperbolic<S>(z);
    const Vec<S> reciprocal = S(1) / out.under;
    h = out.value(reciprocal);
    slope = out.slope(reciprocal);
  }
  store(at.h_new, h);
  store(at.h, h, at.n);
  if (emit) store(at.k, slope, at.n);
}

// ---------------------------------------------------------------------------------------------------------------------
// Forward: some rows, and some or all blocks of their units, on their way through time. Of each step a round: then what
// other parts have made of the same rows is there.

// Where rows are few, some steps meet x together, ahead of the loop, and all panels of a block then meet h together.
// Where they are many, x and h are taken in one product, panel by panel.
constexpr Size kAheadRows = 48;

template <typename S, typename Cell>
struct Walk {
  static constexpr Size W = Simd<S>::width, per_block = Cell::units * W, z_row = 2 * Cell::panels * W;
  const Forward<S> f;
  Size first, rows, parts, blocks, padded, ahead, slot;  // ahead: how many steps meet x together; 0: each by itself
  Size from, to, lowest, highest;                        // its blocks, and their units
  S *c = nullptr, *h[2] = {}, *z = nullptr, *x = nullptr, *bias = nullptr;

  Walk(const Forward<S>& f, Size first, Size rows, S* scratch, Size part = 0, Size parts = 1)
      : f(f), first(first), rows(rows), parts(parts) {
    blocks = up(f.hidden, per_block);
    padded = blocks * per_block;
    from = blocks * part / parts;
    to = blocks * (part + 1) / parts;
    lowest = from * per_block;
    highest = least(to * per_block, f.hidden);
    ahead = f.at_once < kRows ? most(1, least(f.steps, kAheadRows / most(rows, 1))) : 0;
    slot = z_row * rows * most(ahead, 1);
    if (f.packed) bias = f.packed + blocks * block_size();
    if (!scratch) return;  // sizes alone are asked for
    c = scratch;
    h[0] = c + rows * padded;
    h[1] = h[0] + rows * padded;
    z = h[1] + rows * padded;
    x = z + slot * (ahead ? blocks : parts);
    if (!ahead) z += slot * part;
  }

  Size scratch() const { return 3 * rows * padded + slot * (ahead ? blocks : parts) + ahead * rows * f.inputs; }

  static constexpr bool by_x(int panel) { return panel < Cell::by_x; }
  static constexpr bool by_h(int panel) { return panel >= Cell::panels - Cell::by_h; }
  Size depth(int panel) const { return (by_x(panel) ? f.inputs : 0) + (by_h(panel) ? f.hidden : 0); }
  Size block_size() const { return 2 * W * (Cell::by_x * f.inputs + Cell::by_h * f.hidden); }
  Size packed() const { return blocks * (block_size() + z_row); }

  // The weights of one block of units, x's rows above h's, zero where there are no more units.
  void pack(Size block) const {
    S* to = f.packed + block * block_size();
    for (int p = 0; p < Cell::panels; p++) {
      if (by_x(p)) to = pack(to, block, f.w_x, f.inputs, p);
      if (by_h(p) && !ahead) to = pack(to, block, f.w_h, f.hidden, p);
    }
    for (int p = 0; p < Cell::panels; p++) {
      if (by_h(p) && ahead) to = pack(to, block, f.w_h, f.hidden, p);
    }
    for (int v = 0; v < 2 * Cell::panels; v++) {
      store(bias + block * z_row + v * W, columns(f.b + Cell::column(v).bias * f.hidden, block, v));
    }
  }

  // The part of a panel that one factor meets; returns where it ends.
  S* pack(S* to, Size block, const S* from, Size depth, int panel) const {
    for (Size k = 0; k < depth; k++, from += products(f.kind) * f.hidden) {
      for (int v = 2 * panel; v < 2 * panel + 2; v++, to += W) {
        store(to, columns(from + Cell::column(v).gate * f.hidden, block, v));
      }
    }
    return to;
  }

  INLINE Vec<S> columns(const S* row, Size block, int v) const {
    const Size unit = block * per_block + Cell::column(v).sub * W;
    return Cell::column(v).sub < Cell::units && unit < f.hidden ? load(row + unit, f.hidden - unit) : Vec<S>{};
  }

  Size time(Size step) const { return f.reverse ? f.steps - 1 - step : step; }

  void copy_in(S* into, const S* all, Size row) const {
    for (Size u = lowest; u < highest; u++) into[row * padded + u] = all[(first + row) * f.hidden + u];
  }

  void copy_out(S* all, const S* out, Size row) const {
    for (Size u = lowest; u < highest; u++) all[(first + row) * f.hidden + u] = out[row * padded + u];
  }

  void start() const {
    S* const states[] = {c, h[0], h[1]};
    for (S* state : states) {
      for (Size r = 0; r < rows; r++) {
        for (Size u = lowest; u < to * per_block; u++) state[r * padded + u] = 0;
      }
    }
    for (Size r = 0; r < rows; r++) {
      if (f.kind == kLstm) copy_in(c, f.start_c, r);
      copy_in(h[0], f.start_h, r);
    }
  }

  // The state before a step: its reset, and the record of h.
  void begin(Size step) const {
    const Size t = time(step);
    S* old = h[step & 1];
    for (Size r = 0; r < rows; r++) {
      if (f.reset && f.reset[t * f.batch + first + r]) {
        if (f.kind == kLstm) copy_in(c, f.fresh_c, r);
        copy_in(old, f.fresh_h, r);
      }
      if (f.h_before) copy_out(f.h_before + t * f.batch * f.hidden, old, r);
    }
  }

  // x W_x for the steps from this one on that meet it together.
  void meet_x(Size step) const {
    const Size count = least(ahead, f.steps - step), earliest = f.reverse ? time(step + count - 1) : time(step);
    const S* all = f.x + (earliest * f.batch + first) * f.inputs;
    if (rows < f.batch) {  // those of these rows, without the others between
      for (Size s = 0; s < count; s++) {
        for (Size i = 0; i < rows * f.inputs; i++) x[s * rows * f.inputs + i] = all[s * f.batch * f.inputs + i];
      }
      all = x;
    }
    for (Size block = from; block < to; block++) {
      multiply<S>(count * rows, Cell::by_x, {all, f.inputs, f.inputs}, {all, 0, 0},
                  {f.packed + block * block_size(), 2 * W * f.inputs}, {bias + block * z_row, 0, 2 * W},
                  {z + block * slot, z_row, 2 * W});
      for (int p = Cell::by_x; p < Cell::panels; p++) {  // panels without x are their bias
        for (Size r = 0; r < count * rows; r++) {
          for (Size v = 2 * p; v < 2 * p + 2; v++) {
            store(z + block * slot + r * z_row + v * W, load(bias + block * z_row + v * W));
          }
        }
      }
    }
  }

  template <bool emit>
  void units(Size step) const {
    const Walk here = *this;  // for registers: what `this` points to might be changed by any store
    const Size t = time(step);
    const S* old = h[step & 1];
    Size inside = 0;  // the step's place among those that met x together
    if (ahead) {
      const Size begun = step - step % ahead, count = least(ahead, f.steps - begun);
      inside = f.reverse ? count - 1 - (step - begun) : step - begun;
    }
    for (Size n = from; n < to; n++) {
      // To and fro: what a step reads last of the weights is the next to be read, and still in cache.
      const Size block = step & 1 ? from + to - 1 - n : n;
      const S* panel = f.packed + block * block_size();
      S* pre = z + (ahead ? block * slot : 0) + inside * rows * z_row;
      const Factor<S> none = {old, 0, 0}, from_h = {old, padded, f.hidden};
      if (ahead) {
        S* sums = pre + 2 * W * (Cell::panels - Cell::by_h);
        panel += 2 * W * Cell::by_x * f.inputs;
        multiply<S>(rows, Cell::by_h, none, from_h, {panel, 2 * W * f.hidden}, {sums, z_row, 2 * W},
                    {sums, z_row, 2 * W});
        panel += 2 * W * Cell::by_h * f.hidden;
      } else {
        const Factor<S> from_x = {f.x + (t * f.batch + first) * f.inputs, f.inputs, f.inputs};
        for (int p = 0; p < Cell::panels; p++) {
          multiply<S>(rows, 1, by_x(p) ? from_x : none, by_h(p) ? from_h : none, {panel, 0},
                      {bias + block * z_row + 2 * p * W, 0, 0}, {pre + 2 * p * W, z_row, 0});
          panel += 2 * W * depth(p);
        }
      }
      for (Size r = 0; r < rows; r++) here.template cell<emit>(t, step, r, block, pre + r * z_row);
    }
  }

  template <bool emit>
  INLINE void cell_vector(Size t, Size step, Size r, Size u, int sub, const S* pre) const {
    const Size n = least(W, f.hidden - u), row = t * f.batch + first + r, at = row * f.hidden + u;
    const Size local = r * padded + u, wide = row * gates(f.kind) * f.hidden + u;
    if (f.valid && !f.valid[row]) {  // the state stays, and nothing is put out
      const Vec<S> h_old = load(h[step & 1] + local);
      store(h[1 - (step & 1)] + local, h_old);
      store(f.h + at, f.states ? h_old : Vec<S>{}, n);
      if (f.c) store(f.c + at, load(c + local), n);
      if (emit) {
        for (Size g = 0; g < gates(f.kind); g++) store(f.k + wide + g * f.hidden, Vec<S>{}, n);
        if (f.k_state) store(f.k_state + at, Vec<S>{}, n);
        if (f.k_c) store(f.k_c + at, Vec<S>{}, n);
      }
      return;
    }
    const Spot<S> spot = {n, f.hidden, pre, h[step & 1] + local, c + local, h[1 - (step & 1)] + local, f.h + at,
                          emit ? f.k + wide : nullptr, emit && f.k_state ? f.k_state + at : nullptr,
                          emit && f.k_c ? f.k_c + at : nullptr};
    activate<emit>(Cell{}, sub, spot);
    if (f.c) store(f.c + at, load(c + local), n);
  }

  template <bool emit>
  INLINE void cell(Size t, Size step, Size r, Size block, const S* pre) const {
    for (int sub = 0; sub < Cell::units; sub++) {
      const Size u = block * per_block + sub * W;
      if (u < f.hidden) cell_vector<emit>(t, step, r, u, sub, pre);
    }
  }

  void finish() const {
    for (Size r = 0; r < rows; r++) {
      if (f.kind == kLstm) copy_out(f.final_c, c, r);
      copy_out(f.final_h, h[f.steps & 1], r);
    }
  }

  // Round 0 makes the state before the first step, round n that after step n.
  void round(Size n) const {
    if (n == 0) {
      start();
    } else {
      if (ahead && (n - 1) % ahead == 0) meet_x(n - 1);
      f.k ? units<true>(n - 1) : units<false>(n - 1);
    }
    n < f.steps ? begin(n) : finish();
  }
};

// Calls what was asked with the walk of the cell.
template <typename S, typename Call, typename... Where>
INLINE auto walk(Call call, const Forward<S>& f, Where... where) {
  const bool few = f.at_once < kRows, one = f.hidden <= Simd<S>::width;
  switch (f.kind) {
    case kLstm: return few && !one ? call(Walk<S, Lstm<2>>(f, where...)) : call(Walk<S, Lstm<1>>(f, where...));
    case kGru: return one ? call(Walk<S, Gru<1>>(f, where...)) : call(Walk<S, Gru<2>>(f, where...));
    case kRelu: return few ? call(Walk<S, Rnn<true, 4>>(f, where...)) : call(Walk<S, Rnn<true, 1>>(f, where...));
    default: return few ? call(Walk<S, Rnn<false, 4>>(f, where...)) : call(Walk<S, Rnn<false, 1>>(f, where...));
  }
}

// ---------------------------------------------------------------------------------------------------------------------
// Backwards, of any cell: the cotangents of h and c, from the last step that was taken to the first.

template <typename S>
struct Back {
  static constexpr Size W = Simd<S>::width;
  const Transposed<S> f;
  Size first, rows, padded, wide, from, to, lowest, highest;
  bool lstm;
  S *c = nullptr, *h[2] = {};

  Back(const Transposed<S>& f, Size first, Size rows, S* scratch, Size part = 0, Size parts = 1)
      : f(f), first(first), rows(rows) {
    padded = 2 * W * up(f.hidden, 2 * W);
    wide = f.form.gates * f.hidden;
    from = blocks() * part / parts;
    to = blocks() * (part + 1) / parts;
    lowest = from * 2 * W;
    highest = least(to * 2 * W, f.hidden);
    constexpr Size of_lstm[6][2] = {{0, 0}, {0, 1}, {0, 2}, {1, 3}, {0, 4}, {1, 6}};
    lstm = f.two && f.form.gates == 4 && f.count == 6;
    for (Size p = 0; lstm && p < 6; p++) {
      lstm = f.diagonals[p].output == of_lstm[p][0] && f.diagonals[p].input == of_lstm[p][1];
    }
    if (!scratch) return;  // sizes alone are asked for
    c = scratch;
    h[0] = c + rows * padded;
    h[1] = h[0] + rows * padded;
  }

  Size scratch() const { return 3 * rows * padded; }
  Size blocks() const { return padded / (2 * W); }
  Size depth() const { return (f.form.head + f.form.tail) * f.hidden; }
  Size packed() const { return blocks() * 2 * W * depth(); }

  // W_h transposed: a panel for each two vectors of units.
  void pack(Size block) const {
    S* to = f.packed + block * 2 * W * depth();
    for (Size u = 0; u < 2 * W; u++) {
      const Size unit = block * 2 * W + u;
      for (Size k = 0; k < depth(); k++) to[k * 2 * W + u] = unit < f.hidden ? f.w_h[unit * depth() + k] : S(0);
    }
  }

  Size time(Size n) const { return f.reverse ? n : f.steps - 1 - n; }

  // From the cotangents of the new state, at u of a row, to those of z and of the old state but for what goes through W_h.
  // `at`: where the row's diagonals are. The cotangent of c is read at c; those of the old state go to c and h.
  INLINE void cell(const S* const* at, S* dz, Size u, Vec<S> dh, S* c, S* h) const {
    const Size n = least(W, f.hidden - u), H = f.hidden, gates = f.form.gates;
    const Diagonal<S>* k = f.diagonals;
    const auto times = [&](Size p, Vec<S> d) { return load(at[p] + u, n) * d; };
    if (lstm) {
      const Vec<S> dc = load(c) + times(5, dh);
      for (Size g = 0; g < 3; g++) store<S>(dz + u + g * H, times(g, dc), n);
      store<S>(dz + u + 3 * H, times(3, dh), n);
      store<S>(c, times(4, dc));
      store(h, Vec<S>{});
      return;
    }
    Size count = f.count;
    Vec<S> d[2] = {dh, dh};
    if (f.two) {
      d[0] = load(c);
      if (count > 0 && k[count - 1].input > gates + 1) d[0] += times(--count, dh);
    }
    for (Size input = 0, p = 0; input <= gates + f.two; input++) {
      Vec<S> sum{};
      for (; p < count && k[p].input == input; p++) sum += times(p, d[k[p].output]);
      input < gates ? store<S>(dz + u + input * H, sum, n) : store<S>(input < gates + f.two ? c : h, sum);
    }
  }

  void start() const {
    S* const states[] = {c, h[0], h[1]};
    for (S* state : states) {
      for (Size r = 0; r < rows; r++) {
        for (Size u = lowest; u < to * 2 * W; u++) state[r * padded + u] = 0;
      }
    }
    for (Size r = 0; r < rows; r++) {
      for (Size u = lowest; u < highest; u++) {
        const Size at = (first + r) * f.hidden + u;
        if (f.two) c[r * padded + u] = f.d_final_c[at];
        h[0][r * padded + u] = f.d_final_h[at];
        if (f.reset) {
          if (f.two) f.d_fresh_c[at] = 0;
          f.d_fresh_h[at] = 0;
        }
      }
    }
  }

  // All of a step but the product.
  void cells(Size n) const {
    const Back here = *this;  // for registers, as in Walk
    for (Size r = 0; r < rows; r++) here.cells_of_row(time(n), r, h[n & 1]);
  }

  INLINE void cells_of_row(Size t, Size r, S* now) const {
    const Size row = t * f.batch + first + r;
    const bool valid = !f.valid || f.valid[row];
    S* dz = f.dz + row * wide;
    const S* at[kDiagonals];
    for (Size p = 0; p < f.count; p++) at[p] = f.diagonals[p].at + row * f.diagonals[p].row;
    for (Size u = lowest; u < highest; u += W) {
      const Size n = least(W, f.hidden - u), local = r * padded + u;
      Vec<S> dh = load(now + local);
      if (valid || f.states) dh += load(f.d_h + row * f.hidden + u, n);
      if (f.d_c) store<S>(c + local, load(c + local) + load(f.d_c + row * f.hidden + u, n));
      if (valid) {
        cell(at, dz, u, dh, c + local, now + local);
      } else {
        for (Size g = 0; g < wide; g += f.hidden) store(dz + g + u, Vec<S>{}, n);
        store(now + local, dh);
      }
    }
  }

  // dh = dz W_hT; a way of its own that h has beside lies where h lay.
  void product(Size n) const {
    const Size t = time(n), together = rows < kRows ? 4 : 1;
    const S *dz = f.dz + (t * f.batch + first) * wide, *last = dz + (f.form.gates - f.form.tail) * f.hidden;
    S *now = h[n & 1], *before = h[1 - (n & 1)];
    const Factor<S> head = {dz, wide, f.form.head * f.hidden}, tail = {last, wide, f.form.tail * f.hidden};
    const Size groups = up(to - from, together);
    for (Size i = 0; i < groups; i++) {  // to and fro, as forward
      const Size block = from + (n & 1 ? groups - 1 - i : i) * together;
      multiply<S>(rows, least(together, to - block), head, tail,
                  {f.packed + block * 2 * W * depth(), 2 * W * depth()}, {now + block * 2 * W, padded, 2 * W},
                  {before + block * 2 * W, padded, 2 * W});
    }
    for (Size r = 0; r < rows; r++) {
      const Size row = t * f.batch + first + r;
      if (f.valid && !f.valid[row]) {  // not by a product with zeros: W_h may hold an infinity
        for (Size u = lowest; u < highest; u++) before[r * padded + u] = now[r * padded + u];
      }
      if (f.reset && f.reset[row]) {
        for (Size u = lowest; u < highest; u++) {
          const Size at = (first + r) * f.hidden + u, local = r * padded + u;
          f.d_fresh_h[at] += before[local];
          before[local] = 0;
          if (!f.two) continue;
          f.d_fresh_c[at] += c[local];
          c[local] = 0;
        }
      }
    }
  }

  void finish() const {
    for (Size r = 0; r < rows; r++) {
      for (Size u = lowest; u < highest; u++) {
        const Size at = (first + r) * f.hidden + u;
        if (f.two) f.d_start_c[at] = c[r * padded + u];
        f.d_start_h[at] = h[f.steps & 1][r * padded + u];
      }
    }
  }

  // A product reads dz of all units, which other parts have made in the round before.
  void round(Size n) const {
    n == 0 ? start() : product(n - 1);
    n < f.steps ? cells(n) : finish();
  }
};

// ---------------------------------------------------------------------------------------------------------------------
// The gradients of the weights, aT dz, and of the biases, over all steps and rows: a part is two vectors of columns. Rows
// are taken block by block; a block's sums run in registers and are then added to the whole, a sum of two levels.

constexpr Size kGradientRows = 128;

// Rows of a that lie further apart than this, in bytes, share few sets of the cache, and each is on a page of its own:
// they are copied before they are used.
constexpr Size kFar = 2048;

template <typename S>
INLINE bool far(const Left<S>& left) {
  return left.depth * Size(sizeof(S)) > kFar;
}

// Adds the first n numbers of two vectors.
template <typename S>
INLINE void add(S* to, Vec<S> a, Vec<S> b, Size n) {
  constexpr Size W = Simd<S>::width;
  store<S>(to, load(to, n) + a, n);
  if (n > W) store<S>(to + W, load(to + W, n - W) + b, n - W);
}

// R columns of a, its rows so far apart; panel: [rows, 2 W] packed; added to R rows and n columns of out.
template <typename S, int R>
void outer_tile(Size rows, const S* a, Size stride, const S* panel, S* out, Size out_stride, Size n) {
  constexpr Size W = Simd<S>::width;
  Vec<S> sum[R][2] = {};
  for (Size k = 0; k < rows; k++, a += stride, panel += 2 * W) {
    const Vec<S> w0 = load(panel), w1 = load(panel + W);
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec<S> ar = fill<S>(a[r]);
      sum[r][0] += ar * w0;
      sum[r][1] += ar * w1;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++) add<S>(out + r * out_stride, sum[r][0], sum[r][1], n);
}

// Some rows of a, as many columns as a tile takes after as many; returns where they end.
template <typename S>
S* pack_left(const Left<S>& left, Size first, Size rows, S* to) {
  for (Size k = 0, height; k < left.depth; k += height) {
    height = next(left.depth - k, kRows);
    const S* a = left.a + first * left.depth + k;
    for (Size r = 0; r < rows; r++, a += left.depth, to += height) {
      for (Size j = 0; j < height; j++) to[j] = a[j];
    }
  }
  return to;
}

template <typename S>
void gradient(const Gradient<S>& g, Size from_part, Size to_part, S* scratch) {
  constexpr Size W = Simd<S>::width;
  static constexpr void (*tiles[kRows])(Size, const S*, Size, const S*, S*, Size, Size) = {
      outer_tile<S, 1>, outer_tile<S, 2>, outer_tile<S, 3>, outer_tile<S, 4>, outer_tile<S, 5>, outer_tile<S, 6>};
  const Size from = from_part * 2 * W, to = least(to_part * 2 * W, g.columns);
  S *panel = scratch, *packed = scratch + kGradientRows * 2 * W;
  for (Size j = from; j < to; j++) g.sum[j] = 0;
  for (const Left<S>& left : g.by) {
    for (Size k = 0; k < left.depth; k++) {
      for (Size j = from; j < to; j++) left.out[k * left.stride + j] = 0;
    }
  }
  for (Size first = 0; first < g.rows; first += kGradientRows) {
    const Size rows = least(kGradientRows, g.rows - first);
    S* end = packed;
    for (const Left<S>& left : g.by) {
      if (far(left)) end = pack_left(left, first, rows, end);
    }
    for (Size column = from; column < to; column += 2 * W) {
      const Size n = least(2 * W, to - column);
      const S *dz = g.dz + first * g.stride + column, *copied = packed;
      Vec<S> sum[2] = {};
      for (Size r = 0; r < rows; r++, dz += g.stride) {
        const Vec<S> w0 = load(dz, n), w1 = n > W ? load(dz + W, n - W) : Vec<S>{};
        store(panel + r * 2 * W, w0);
        store(panel + r * 2 * W + W, w1);
        sum[0] += w0;
        sum[1] += w1;
      }
      add<S>(g.sum + column, sum[0], sum[1], n);
      for (const Left<S>& left : g.by) {
        const bool copy = far(left);
        for (Size k = 0, height; k < left.depth; k += height) {
          height = next(left.depth - k, kRows);
          const S* a = copy ? copied + rows * k : left.a + first * left.depth + k;
          tiles[height - 1](rows, a, copy ? height : left.depth, panel, left.out + k * left.stride + column,
                            left.stride, n);
        }
        if (copy) copied += rows * left.depth;
      }
    }
  }
}

template <typename S>
void functions(Size count, const S* z, S* value, S* slope, S* tanh, S* tanh_slope) {
  constexpr Size W = Simd<S>::width;
  for (Size i = 0; i < count; i += W) {
    const Size n = least(W, count - i);
    const Vec<S> at = load(z + i, n);
    const Exponentials<S, 1> of({sigmoid_exponent<S>(at)});
    const Fraction<S> s = sigmoid<S>(at, of.exp[0]), t = hyperbolic<S>(at);
    const Vec<S> by_s = S(1) / s.under, by_t = S(1) / t.under;
    store(value + i, s.value(by_s), n);
    store(slope + i, s.slope(by_s), n);
    store(tanh + i, t.value(by_t), n);
    store(tanh_slope + i, t.slope(by_t), n);
  }
}

template <typename S>
constexpr Kernels<S> kernels() {
  using F = const Forward<S>&;
  using T = const Transposed<S>&;
  using G = const Gradient<S>&;
  return {
      [](F f) { return walk<S>([](auto w) { return w.packed(); }, f, Size(0), Size(0), nullptr); },
      [](F f) { return walk<S>([](auto w) { return w.blocks; }, f, Size(0), Size(0), nullptr); },
      [](F f, Size block) { walk<S>([=](auto w) { w.pack(block); }, f, Size(0), Size(0), nullptr); },
      [](F f, Size rows, Size parts) {
        return walk<S>([](auto w) { return w.scratch(); }, f, Size(0), rows, nullptr, Size(0), parts);
      },
      [](F f, Size first, Size rows, S* s) {
        walk<S>([](auto w) { for (Size n = 0; n <= w.f.steps; n++) w.round(n); }, f, first, rows, s);
      },
      [](F f, Size round, Size part, Size parts, S* s) {
        walk<S>([=](auto w) { w.round(round); }, f, Size(0), f.batch, s, part, parts);
      },
      [](T f) { return Back<S>(f, 0, 0, nullptr).packed(); },
      [](T f) { return Back<S>(f, 0, 0, nullptr).blocks(); },
      [](T f, Size block) { Back<S>(f, 0, 0, nullptr).pack(block); },
      [](T f, Size rows) { return Back<S>(f, 0, rows, nullptr).scratch(); },
      [](T f, Size first, Size rows, S* s) {
        const Back<S> back(f, first, rows, s);
        for (Size n = 0; n <= f.steps; n++) back.round(n);
      },
      [](T f, Size round, Size part, Size parts, S* s) { Back<S>(f, 0, f.batch, s, part, parts).round(round); },
      [](G g) { return up(g.columns, 2 * Simd<S>::width); },
      [](G g) {
        Size columns = 2 * Simd<S>::width;
        for (const Left<S>& left : g.by) columns += far(left) ? left.depth : 0;
        return kGradientRows * columns;
      },
      [](G g, Size from, Size to, S* s) { gradient<S>(g, from, to, s); },
      [](Size count, const S* z, S* a, S* b, S* c, S* d) { functions<S>(count, z, a, b, c, d); },
  };
}

}  // namespace
}  // namespace LSTMJAX_TARGET

#define LSTMJAX_JOIN(a, b) a##b
#define LSTMJAX_NAME(a, b) LSTMJAX_JOIN(a, b)
extern const Target LSTMJAX_NAME(target_, LSTMJAX_TARGET) = {LSTMJAX_TARGET::kernels<float>(),
                                                            LSTMJAX_TARGET::kernels<double>()};

}  // namespace lstmjax
