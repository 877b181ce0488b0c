// Vectors, the accurate sigma and tanh, and the micro-kernel, written once over the width of a vector.
//
// Every instruction set compiles this file into a namespace of its own, and nothing here is shared with another or with
// the C++ library: the linker may keep one copy of a shared inline function, and it must not be another processor's.
#pragma once

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "plan.h"

namespace lstmjax {
namespace LSTMJAX_TARGET {
namespace {

#define INLINE inline __attribute__((always_inline))

template <typename S>
struct Simd;

template <>
struct Simd<float> {
  using Bits = std::uint32_t;
  static constexpr Size width = LSTMJAX_BYTES / sizeof(float);
  typedef float Vec __attribute__((vector_size(LSTMJAX_BYTES)));
  typedef std::uint32_t Mask __attribute__((vector_size(LSTMJAX_BYTES)));
};

template <>
struct Simd<double> {
  using Bits = std::uint64_t;
  static constexpr Size width = LSTMJAX_BYTES / sizeof(double);
  typedef double Vec __attribute__((vector_size(LSTMJAX_BYTES)));
  typedef std::uint64_t Mask __attribute__((vector_size(LSTMJAX_BYTES)));
};

template <typename S>
using Vec = typename Simd<S>::Vec;

template <typename S>
INLINE Vec<S> load(const S* p) {
  Vec<S> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <typename S>
INLINE void store(S* p, Vec<S> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The first n numbers of a vector, fewer than it has: from an array that may end there, zero beyond, and into one.
#if defined(__x86_64__) && LSTMJAX_BYTES == 64
INLINE Vec<float> load_some(const float* p, Size n) { return _mm512_maskz_loadu_ps((1u << n) - 1, p); }
INLINE Vec<double> load_some(const double* p, Size n) { return _mm512_maskz_loadu_pd((1u << n) - 1, p); }
INLINE void store_some(float* p, Vec<float> v, Size n) { _mm512_mask_storeu_ps(p, (1u << n) - 1, v); }
INLINE void store_some(double* p, Vec<double> v, Size n) { _mm512_mask_storeu_pd(p, (1u << n) - 1, v); }
#elif defined(__x86_64__) && LSTMJAX_BYTES == 32
INLINE __m256i mask(float, Size n) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
INLINE __m256i mask(double, Size n) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(n), _mm256_setr_epi64x(0, 1, 2, 3));
}
INLINE Vec<float> load_some(const float* p, Size n) { return _mm256_maskload_ps(p, mask(0.f, n)); }
INLINE Vec<double> load_some(const double* p, Size n) { return _mm256_maskload_pd(p, mask(0., n)); }
INLINE void store_some(float* p, Vec<float> v, Size n) { _mm256_maskstore_ps(p, mask(0.f, n), v); }
INLINE void store_some(double* p, Vec<double> v, Size n) { _mm256_maskstore_pd(p, mask(0., n), v); }
#else
template <typename S>
INLINE Vec<S> load_some(const S* p, Size n) {
  Vec<S> v{};
  for (Size i = 0; i < n; i++) v[i] = p[i];
  return v;
}
template <typename S>
INLINE void store_some(S* p, Vec<S> v, Size n) {
  for (Size i = 0; i < n; i++) p[i] = v[i];
}
#endif

// The same of n numbers, or of all.
template <typename S>
INLINE void store(S* p, Vec<S> v, Size n) {
  n < Simd<S>::width ? store_some(p, v, n) : store(p, v);
}

template <typename S>
INLINE Vec<S> load(const S* p, Size n) {
  return n < Simd<S>::width ? load_some(p, n) : load(p);
}

template <typename S>
INLINE Vec<S> fill(S a) {
  return a - Vec<S>{};
}

// The bits of one vector as another.
template <typename To, typename From>
INLINE To as(From bits) {
  To v;
  __builtin_memcpy(&v, &bits, sizeof v);
  return v;
}

// The larger of a and b, and b where one of them is a NaN: one instruction, which compilers do not find by themselves.
#if defined(__x86_64__) && LSTMJAX_BYTES == 64
INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm512_max_ps(a, b); }
INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm512_max_pd(a, b); }
#elif defined(__x86_64__) && LSTMJAX_BYTES == 32
INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return _mm256_max_ps(a, b); }
INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return _mm256_max_pd(a, b); }
#else
INLINE Vec<float> larger(Vec<float> a, Vec<float> b) { return a > b ? a : b; }
INLINE Vec<double> larger(Vec<double> a, Vec<double> b) { return a > b ? a : b; }
#endif

INLINE Size least(Size a, Size b) { return a < b ? a : b; }
INLINE Size most(Size a, Size b) { return a > b ? a : b; }
INLINE Size up(Size a, Size b) { return (a + b - 1) / b; }

// ---------------------------------------------------------------------------------------------------------------------
// sigma and tanh. With e^y = 2^n (1 + p), p = e^r - 1 for |r| <= log(2) / 2, both e^y and e^y - 1 keep all their digits:
// (2^n - 1) + 2^n p does not cancel where y <= 0, since there n = 0 leaves p alone. A NaN stays one.

template <typename S>
struct Exponential;

// Below the least y, n is -bias, and 2^n is 0 in the bits below. Minimax in the relative error of p: e^r - 1
// = r + r^2 (q0 + q1 r + ...), to 3e-10 and 2e-17.
template <>
struct Exponential<float> {
  static constexpr float least = -88.0296919f, per_log2 = 1.44269504f, high = 0.69140625f, low = 0.00174093056f;
  static constexpr float round = 0x1.8p23f;  // added and taken away, it leaves a whole number
  static constexpr int exponent = 23, bias = 127, terms = 6;
  static constexpr float q[terms] = {0.5000000042f, 0.16666666811f, 0.04166636653f,
                                     0.00833327421f, 0.00139402844f, 0.000199136008f};
};

template <>
struct Exponential<double> {
  static constexpr double least = -709.08956571282405, per_log2 = 1.4426950408889634074;
  static constexpr double high = 0.6931471803691238164901733, low = 1.9082149292705878161e-10;
  static constexpr double round = 0x1.8p52;
  static constexpr int exponent = 52, bias = 1023, terms = 10;
  static constexpr double q[terms] = {
      0.50000000000000045781,   0.16666666666666684203,    0.041666666666582061377, 0.008333333333315657201,
      0.0013888888930170967173, 0.00019841269900898388956, 2.4801506691285582614e-5, 2.755722973920940668e-6,
      2.7625545414661395579e-7, 2.5113942953407914605e-8};
};

// e^y and e^y - 1 for some y <= 0; 0 and -1 where e^y is below the least normal number. They go side by side, each
// constant read once for all.
template <typename S, int N>
struct Exponentials {
  Vec<S> exp[N], less_one[N];

  INLINE explicit Exponentials(const Vec<S> (&of)[N]) {
    using E = Exponential<S>;
    using Mask = typename Simd<S>::Mask;
    Vec<S> power[N], r[N], q[N];
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const Vec<S> y = larger(fill<S>(E::least), of[i]);
      power[i] = y * E::per_log2 + (E::round + E::bias);  // its lowest bits: those of n + bias
      const Vec<S> n = power[i] - (E::round + E::bias);
      r[i] = (y - n * E::high) - n * E::low;
      q[i] = fill<S>(E::q[E::terms - 1]);
    }
#pragma GCC unroll 16
    for (int term = E::terms - 2; term >= 0; term--) {
#pragma GCC unroll 4
      for (int i = 0; i < N; i++) q[i] = q[i] * r[i] + E::q[term];
    }
#pragma GCC unroll 4
    for (int i = 0; i < N; i++) {
      const Vec<S> p = r[i] + (r[i] * r[i]) * q[i];
      const Vec<S> scale = as<Vec<S>>(as<Mask>(power[i]) << E::exponent);
      exp[i] = scale + scale * p;
      less_one[i] = (scale - S(1)) + scale * p;
    }
  }
};

template <typename S>
constexpr typename Simd<S>::Bits kSign = ~(typename Simd<S>::Bits(-1) >> 1);

template <typename S>
INLINE Vec<S> magnitude(Vec<S> z) {
  return as<Vec<S>>(as<typename Simd<S>::Mask>(z) & ~kSign<S>);
}

template <typename S>
INLINE Vec<S> with_sign_of(Vec<S> value, Vec<S> z) {
  using Mask = typename Simd<S>::Mask;
  return as<Vec<S>>(as<Mask>(value) | (as<Mask>(z) & kSign<S>));
}

// A function as a fraction: its value is over / under, its slope bend / under^2, where 1 <= under <= 2. So two functions
// are multiplied with one division.
template <typename S>
struct Fraction {
  Vec<S> over, under, bend;

  INLINE Vec<S> value(Vec<S> reciprocal) const { return over * reciprocal; }
  INLINE Vec<S> slope(Vec<S> reciprocal) const { return (bend * reciprocal) * reciprocal; }
};

// What sigma(z) and tanh(z) are made of: -|z| and -2|z|.
template <typename S>
INLINE Vec<S> sigmoid_exponent(Vec<S> z) {
  return with_sign_of<S>(z, fill<S>(-1));
}

template <typename S>
INLINE Vec<S> hyperbolic_exponent(Vec<S> z) {
  return S(-2) * magnitude<S>(z);
}

// sigma(z) = 1 / (1 + e), or e / (1 + e) where z < 0, and sigma'(z) = e / (1 + e)^2, where e = e^(-|z|).
template <typename S>
INLINE Fraction<S> sigmoid(Vec<S> z, Vec<S> e) {
  return {as<typename Simd<S>::Mask>(z) >> (8 * sizeof(S) - 1) ? e : fill<S>(1), S(1) + e, e};
}

// tanh(z) = (1 - e) / (1 + e) and tanh'(z) = 4 e / (1 + e)^2, where e = e^(-2|z|).
template <typename S>
INLINE Fraction<S> hyperbolic(Vec<S> z, Vec<S> e, Vec<S> less_one) {
  return {with_sign_of<S>(S(0) - less_one, z), S(2) + less_one, S(4) * e};
}

template <typename S>
INLINE Fraction<S> hyperbolic(Vec<S> z) {
  const Exponentials<S, 1> of({hyperbolic_exponent<S>(z)});
  return hyperbolic<S>(z, of.exp[0], of.less_one[0]);
}

// ---------------------------------------------------------------------------------------------------------------------
// The micro-kernel: R rows times P panels of two vectors each, all sums in registers. Each number is one chain of
// additions over the depth, in the same order whatever R and P are, so that bits depend on neither.

// The left factor: rows of so many numbers, this far apart.
template <typename S>
struct Factor {
  const S* a;
  Size stride, depth;
};

// The right factor: panels of two vectors a row, this far apart.
template <typename S>
struct Panels {
  const S* at;
  Size panel;
};

// Where the sums begin, or go: the distance from row to row, and from panel to panel.
template <typename P>
struct Place {
  P* at;
  Size row, panel;
};

template <typename S, int R, int P>
void tile(Factor<S> first, Factor<S> second, Panels<S> panels, Place<const S> from, Place<S> to) {
  constexpr Size W = Simd<S>::width;
  Vec<S> sum[P][R][2];
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const S* begin = from.at + r * from.row + p * from.panel;
      sum[p][r][0] = load(begin);
      sum[p][r][1] = load(begin + W);
    }
  }
  const Factor<S> factors[2] = {first, second};
  for (const Factor<S>& factor : factors) {
    const S* a = factor.a;
    for (Size k = 0; k < factor.depth; k++, panels.at += 2 * W) {
#pragma GCC unroll 8
      for (int p = 0; p < P; p++) {
        const Vec<S> w0 = load(panels.at + p * panels.panel), w1 = load(panels.at + p * panels.panel + W);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
          const Vec<S> ar = fill<S>(a[r * factor.stride + k]);
          sum[p][r][0] += ar * w0;
          sum[p][r][1] += ar * w1;
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int p = 0; p < P; p++) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      S* end = to.at + r * to.row + p * to.panel;
      store(end, sum[p][r][0]);
      store(end + W, sum[p][r][1]);
    }
  }
}

template <typename S>
using Tile = void (*)(Factor<S>, Factor<S>, Panels<S>, Place<const S>, Place<S>);

// How much of what is left goes into the next tile: the most, but of the last two about the same.
INLINE Size next(Size left, Size most) { return left >= 2 * most ? most : left > most ? (left + 1) / 2 : left; }

// Any number of rows times any number of panels, in tiles of six rows and one panel, or of fewer rows, which are few
// chains where the processor wants eight or more, and more panels.
template <typename S>
void multiply(Size rows, Size count, Factor<S> first, Factor<S> second, Panels<S> panels, Place<const S> from,
              Place<S> to) {
  static constexpr Size most_panels[kRows] = {4, 3, 2, 1, 1, 1};
  static constexpr Tile<S> tiles[kRows][4] = {
      {tile<S, 1, 1>, tile<S, 1, 2>, tile<S, 1, 3>, tile<S, 1, 4>},
      {tile<S, 2, 1>, tile<S, 2, 2>, tile<S, 2, 3>},
      {tile<S, 3, 1>, tile<S, 3, 2>},
      {tile<S, 4, 1>}, {tile<S, 5, 1>}, {tile<S, 6, 1>}};
  for (Size r = 0, height; r < rows; r += height) {
    height = next(rows - r, kRows);
    const Factor<S> f = {first.a + r * first.stride, first.stride, first.depth};
    const Factor<S> s = {second.a + r * second.stride, second.stride, second.depth};
    for (Size p = 0, width; p < count; p += width) {
      width = next(count - p, most_panels[height - 1]);
      tiles[height - 1][width - 1](f, s, {panels.at + p * panels.panel, panels.panel},
                                   {from.at + r * from.row + p * from.panel, from.row, from.panel},
                                   {to.at + r * to.row + p * to.panel, to.row, to.panel});
    }
  }
}

}  // namespace
}  // namespace LSTMJAX_TARGET
}  // namespace lstmjax
