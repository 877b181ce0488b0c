// Runs every kernel over many shapes, its arrays exactly as large as they must be, for the sanitisers to watch:
//
//   c++ -std=c++17 -g -O1 -fsanitize=address,undefined -fno-sanitize-recover=all -DLSTMJAX_TARGET=base \
//       -DLSTMJAX_BYTES=16 -Wno-psabi -Ilstmjax/recurrence/native tests/native_sanitised.cc && ./a.out
#include <cstdio>
#include <memory>
#include <vector>

#include "cells.cc"

using namespace lstmjax;
using namespace lstmjax::LSTMJAX_TARGET;

template <typename S>
struct Arrays {
  std::vector<std::unique_ptr<S[]>> all;
  S* operator()(Size n) {
    all.emplace_back(new S[n]);
    for (Size i = 0; i < n; i++) all.back()[i] = S(i % 7) / 8 - S(0.3);
    return all.back().get();
  }
};

template <typename S>
void run(Size kind, Size T, Size B, Size I, Size H, bool reverse, bool states, bool emit, bool flagged, Size at_once) {
  const Kernels<S> k = kernels<S>();
  Arrays<S> array;
  Arrays<bool> flag;
  const Size all = T * B * H, g = gates(kind), p = products(kind);
  const bool lstm = kind == kLstm;
  bool *valid = flagged ? flag(T * B) : nullptr, *reset = flagged ? flag(T * B) : nullptr;
  for (Size i = 0; flagged && i < T * B; i++) valid[i] = i % 3, reset[i] = i % 4 == 1;
  Forward<S> f = {kind, T, B, I, H, at_once, reverse, states, array(T * B * I), array(I * p * H), array(H * p * H), array(g * H),
                  array(lstm ? B * H : 0), array(B * H), array(lstm ? B * H : 0), array(B * H), valid, reset,
                  array(lstm ? B * H : 0), array(B * H), array(all), lstm && states ? array(all) : nullptr,
                  emit ? array(g * all) : nullptr, emit && g == 4 ? array(all) : nullptr,
                  emit && lstm ? array(all) : nullptr, emit ? array(all) : nullptr, nullptr};
  f.packed = array(k.packed(f));
  for (Size block = 0; block < k.blocks(f); block++) k.pack(f, block);
  for (Size first = 0; first < B; first += at_once) {
    const Size rows = least(at_once, B - first);
    k.rows(f, first, rows, array(k.scratch(f, rows, 1)));
  }
  const Size parts = at_once < B ? 0 : least(3, k.blocks(f));  // all rows at once, and units in parts
  S* shared = parts ? array(k.scratch(f, B, parts)) : nullptr;
  for (Size round = 0; parts && round <= T; round++) {
    for (Size part = 0; part < parts; part++) k.round(f, round, part, parts, shared);
  }
  if (!emit) return;
  // The LSTM's; the GRU's; and of another cell with as many gates as the RNN has, and c and h, all there can be.
  const bool gru = kind == kGru, two = !gru;
  std::vector<Diagonal<S>> diagonals;
  for (Size n = 0; lstm && n < 6; n++) {
    diagonals.push_back(n < 4 ? Diagonal<S>{f.k + n * H, g * H, n == 3, n}
                              : n < 5 ? Diagonal<S>{f.k_state, H, 0, 4} : Diagonal<S>{f.k_c, H, 1, 6});
  }
  for (Size input = 0; !lstm && input <= g + two; input++) {
    for (Size output = 0; output <= two; output++) diagonals.push_back({array(all), H, output, input});
  }
  Transposed<S> t = {{g, gru ? 2 : g, gru}, T, B, H, Size(diagonals.size()), reverse, states, two, diagonals.data(), f.w_h, f.h,
                     two && states ? array(all) : nullptr, array(two ? B * H : 0), array(B * H), valid, reset,
                     array(g * all), array(two ? B * H : 0), array(B * H), array(two ? B * H : 0), array(B * H), nullptr};
  t.packed = array(k.back_packed(t));
  for (Size block = 0; block < k.back_blocks(t); block++) k.back_pack(t, block);
  for (Size first = 0; first < B; first += at_once) {
    const Size rows = least(at_once, B - first);
    k.back_rows(t, first, rows, array(k.back_scratch(t, rows)));
  }
  const Size of_units = least(parts, k.back_blocks(t));
  shared = parts ? array(k.back_scratch(t, B)) : nullptr;
  for (Size round = 0; parts && round <= T; round++) {
    for (Size part = 0; part < of_units; part++) k.back_round(t, round, part, of_units, shared);
  }
  const Left<S> by_x = {f.x, I, array(I * p * H), p * H}, by_h = {f.h, H, array(H * p * H), p * H}, none = {};
  const Gradient<S> gradients[] = {{T * B, p * H, g * H, t.dz, array(p * H), {by_x, by_h}},
                                   {T * B, (g - p) * H, g * H, t.dz + p * H, array((g - p) * H), {none, none}}};
  for (const Gradient<S>& gradient : gradients) {
    const Size parts = k.gradient_parts(gradient), half = parts / 2;
    k.gradient(gradient, 0, half, array(k.gradient_scratch(gradient)));
    k.gradient(gradient, half, parts, array(k.gradient_scratch(gradient)));
  }
  k.functions(all, f.h, array(all), array(all), array(all), array(all));
}

int main() {
  Size count = 0;
  for (Size kind : {kLstm, kGru, kRnn, kRelu})
    for (Size T : {0, 1, 5, 60})
      for (Size B : {0, 1, 2, 3, 5, 13})
        for (Size I : {0, 1, 7})
          for (Size H : {1, 3, 8, 17, 40})
            for (int flags = 0; flags < 16; flags++) {
              run<float>(kind, T, B, I, H, flags & 1, flags & 2, flags & 4, flags & 8, flags & 1 ? 4 : 64);
              run<double>(kind, T, B, I, H, flags & 1, flags & 2, flags & 4, flags & 8, flags & 1 ? 4 : 64);
              count += 2;
            }
  for (Size kind : {kLstm, kGru, kRnn, kRelu}) {  // long rows of x
    run<float>(kind, 3, 50, 600, 7, false, false, true, false, 64);
    run<double>(kind, 3, 50, 300, 7, false, false, true, false, 64);
    count += 2;
  }
  std::printf("%ld runs\n", long(count));
}
