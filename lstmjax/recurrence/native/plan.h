// What a call asks for: shared by the handlers, which know XLA, and by the kernels, which know the processor.
#pragma once

#include <cstdint>

namespace lstmjax {

using Size = std::int64_t;

enum Kind : Size { kLstm, kGru, kRnn, kRelu };

// How many pre-activations of a unit there are, z = [B, gates * H].
constexpr Size gates(Size kind) { return kind == kLstm || kind == kGru ? 4 : 1; }
// How many gates read x, and as many read h: two of the GRU's pre-activations are one product apart.
constexpr Size products(Size kind) { return kind == kGru ? 3 : gates(kind); }

// The rows of a tile of the micro-kernel. A thread that has fewer takes more of the units at once.
constexpr Size kRows = 6;

// The forward recurrence, by threads that take `at_once` rows of the batch or fewer. Arrays are [T, B, ...] or [B, ...],
// row by row; one that is not wanted is null.
template <typename S>
struct Forward {
  Size kind, steps, batch, inputs, hidden, at_once;
  bool reverse, states;
  const S *x, *w_x, *w_h, *b, *start_c, *start_h, *fresh_c, *fresh_h;
  const bool *valid, *reset;
  S *final_c, *final_h, *h, *c;
  S *k, *k_state, *k_c, *h_before;  // the coefficients: all of them or none
  S* packed;
};

// How the products of a step are laid out, of any cell: so many pre-activations of a unit, the gates, of which the first
// `head` and the last `tail` read h.
struct Form {
  Size gates, head, tail;
};

// A diagonal of the Jacobian of a step, [T * B, H], its rows this far apart: of one array of the new state by one input,
// a gate or, after these, an array of the old state or, last of all, the new c, where the new h reads it.
constexpr Size kDiagonals = 32;  // there are no more of a cell

template <typename S>
struct Diagonal {
  const S* at;
  Size row, output, input;
};

// The transpose of the linear recurrence. The state is (c, h), where `two`, or h. The diagonals are in the order of their
// inputs.
template <typename S>
struct Transposed {
  Form form;
  Size steps, batch, hidden, count;
  bool reverse, states, two;
  const Diagonal<S>* diagonals;
  const S *w_h, *d_h, *d_c, *d_final_c, *d_final_h;
  const bool *valid, *reset;
  S *dz, *d_start_c, *d_start_h, *d_fresh_c, *d_fresh_h;
  S* packed;
};

// What the weights' gradient has on its left, a [rows, depth], and where aT dz goes, its rows this far apart.
template <typename S>
struct Left {
  const S* a;
  Size depth;
  S* out;
  Size stride;
};

// The gradients that some columns of dz make, [rows, columns], its rows this far apart: the biases', which is their sum,
// and those of the weights that x and h meet; one that they do not has no depth.
template <typename S>
struct Gradient {
  Size rows, columns, stride;
  const S* dz;
  S* sum;
  Left<S> by[2];
};

// The kernels of one instruction set. `rows` takes some rows through all of time. `round` does a part of one of
// steps + 1 rounds, of all rows but some blocks of units; the parts share their scratch, and a round may begin when all
// parts of the last are done. Sizes are in numbers, not bytes; scratch and packed are aligned to 64 bytes.
template <typename S>
struct Kernels {
  Size (*packed)(const Forward<S>&);
  Size (*blocks)(const Forward<S>&);
  void (*pack)(const Forward<S>&, Size block);
  Size (*scratch)(const Forward<S>&, Size rows, Size parts);
  void (*rows)(const Forward<S>&, Size first, Size rows, S* scratch);
  void (*round)(const Forward<S>&, Size round, Size part, Size parts, S* scratch);

  Size (*back_packed)(const Transposed<S>&);
  Size (*back_blocks)(const Transposed<S>&);
  void (*back_pack)(const Transposed<S>&, Size block);
  Size (*back_scratch)(const Transposed<S>&, Size rows);
  void (*back_rows)(const Transposed<S>&, Size first, Size rows, S* scratch);
  void (*back_round)(const Transposed<S>&, Size round, Size part, Size parts, S* scratch);

  Size (*gradient_parts)(const Gradient<S>&);
  Size (*gradient_scratch)(const Gradient<S>&);
  void (*gradient)(const Gradient<S>&, Size from_part, Size to_part, S* scratch);

  void (*functions)(Size count, const S* z, S* sigmoid, S* sigmoid_slope, S* tanh, S* tanh_slope);
};

struct Target {
  Kernels<float> f32;
  Kernels<double> f64;
};

extern const Target target_base;
#if defined(__x86_64__)
extern const Target target_avx2;
extern const Target target_avx512;
#endif

}  // namespace lstmjax
