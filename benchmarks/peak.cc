// Multiply-adds in registers: as many as a core can do. Nothing is read, and no chain waits for another.

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kChains = 12;  // two a cycle, each of four or five cycles

extern "C" double operations_a_round() { return 2.0 * kChains * kBytes / sizeof(float); }

extern "C" float multiply_add(long rounds, float factor) {
  Vector sum[kChains];
  for (int n = 0; n < kChains; ++n) sum[n] = Vector{} + static_cast<float>(n);
  const Vector by = Vector{} + factor;
  for (long r = 0; r < rounds; ++r) {
#pragma GCC unroll 12
    for (int n = 0; n < kChains; ++n) sum[n] = sum[n] * by + by;
  }
  float all = 0;
  for (int n = 0; n < kChains; ++n) all += sum[n][0];
  return all;
}
