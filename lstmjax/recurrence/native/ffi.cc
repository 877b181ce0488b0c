// The handlers that XLA calls: what the arrays are, who computes which of their rows, and on which threads.
#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <thread>
#include <vector>

#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "plan.h"
#include "xla/ffi/api/ffi.h"

namespace lstmjax {
namespace {

namespace ffi = xla::ffi;
using Buffer = ffi::AnyBuffer;
using Result = ffi::Result<ffi::AnyBuffer>;

#if defined(__x86_64__)
// What the processor can do and the system saves for it, asked directly: not every compiler's own question is answered.
const Target& widest() {
  unsigned a, b, c, d, saved, unused;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE) || !(c & bit_FMA)) return target_base;
  __asm__("xgetbv" : "=a"(saved), "=d"(unused) : "c"(0));
  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return target_base;
  constexpr unsigned kYmm = 0x06, kZmm = 0xe6, k512 = bit_AVX512F | bit_AVX512DQ | bit_AVX512VL;
  if ((saved & kZmm) == kZmm && (b & k512) == k512) return target_avx512;
  if ((saved & kYmm) == kYmm && (b & bit_AVX2)) return target_avx2;
  return target_base;
}
#else
const Target& widest() { return target_base; }
#endif

const Target& target() {
  static const Target& found = widest();
  return found;
}

template <typename S>
const Kernels<S>& of(const Target& target) {
  if constexpr (sizeof(S) == 4) {
    return target.f32;
  } else {
    return target.f64;
  }
}

// The kernels for so many units, in blocks of so many vectors or more: the longest vectors, but where the next fill a
// block and these would fill half of one.
template <typename S>
const Kernels<S>& kernels(Size hidden, Size vectors) {
#if defined(__x86_64__)
  if (&target() == &target_avx512 && hidden <= vectors * Size(32 / sizeof(S))) return of<S>(target_avx2);
#endif
  return of<S>(target());
}

// The system gives memory page by page, each when it is first written: 4096 bytes at a time, that can take longer than
// the kernels do. Where it has large pages for those who ask, this asks for them: a hint, which it may refuse.
void prefer_large_pages(const void* data, std::size_t bytes) {
#if defined(MADV_HUGEPAGE)
  constexpr std::uintptr_t kLarge = std::uintptr_t(1) << 21;
  if (bytes < kLarge / 2) return;
  const std::uintptr_t at = reinterpret_cast<std::uintptr_t>(data), from = at & ~(kLarge - 1);
  madvise(reinterpret_cast<void*>(from), ((at + bytes + kLarge - 1) & ~(kLarge - 1)) - from, MADV_HUGEPAGE);
#endif
}

template <typename S>
class Scratch {
 public:
  explicit Scratch(Size count)
      : data_(static_cast<S*>(::operator new(sizeof(S) * (count + 1), std::align_val_t(64)))) {
    prefer_large_pages(data_, sizeof(S) * count);
  }
  ~Scratch() { ::operator delete(data_, std::align_val_t(64)); }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  S* get() const { return data_; }

 private:
  S* data_;
};

// Work in rounds of parts, which threads take one by one. A helper that the pool never starts takes none, and one that it
// starts late finds none: whoever called works too, and waits for parts that were taken, never for a thread.
class Job {
 public:
  Job(Size rounds, Size parts, std::function<void(Size, Size)> work)
      : rounds_(rounds), parts_(parts), work_(std::move(work)), taken_(parts) {}

  // A thread asks for the part of its own seat first: what that part reads is in its cache from the round before.
  void help(Size seat) {
    for (Size round = 0; round < rounds_; round++) {
      for (Size n = 0; n < parts_; n++) {
        const Size part = (seat + n) % parts_;
        Size free = round;
        if (!taken_[part].compare_exchange_strong(free, round + 1)) continue;
        work_(round, part);
        if (done_.fetch_add(1) + 1 == rounds_ * parts_) {
          std::lock_guard<std::mutex> lock(mutex_);
          finished_.notify_all();
        }
      }
      if (round + 1 < rounds_) {
        for (Size spins = 0; done_.load() < (round + 1) * parts_; spins++) {
          if (spins > 2000) std::this_thread::yield();
        }
      }
    }
  }

  void wait() {
    for (int spins = 0; spins < 2000; spins++) {
      if (done_.load() == rounds_ * parts_) return;
    }
    std::unique_lock<std::mutex> lock(mutex_);
    finished_.wait(lock, [this] { return done_.load() == rounds_ * parts_; });
  }

 private:
  const Size rounds_, parts_;
  const std::function<void(Size, Size)> work_;  // what it refers to lives until all parts are done
  std::vector<std::atomic<Size>> taken_;        // of each part, in how many rounds
  std::atomic<Size> done_{0};
  std::mutex mutex_;
  std::condition_variable finished_;
};

class Threads {
 public:
  // `products`: how many multiplications there are in all. Below some, waking a thread costs more than it brings.
  Threads(ffi::ThreadPool& pool, Size products) : pool_(pool) {
    if (products > (Size(1) << 19)) count_ = std::max<Size>(1, pool.num_threads());
  }

  Size count() const { return count_; }

  void run(Size parts, std::function<void(Size)> work) {
    run(1, parts, [work = std::move(work)](Size, Size part) { work(part); });
  }

  void run(Size rounds, Size parts, std::function<void(Size, Size)> work) {
    if (count_ == 1 || parts <= 1) {
      for (Size round = 0; round < rounds; round++) {
        for (Size part = 0; part < parts; part++) work(round, part);
      }
      return;
    }
    auto job = std::make_shared<Job>(rounds, parts, std::move(work));
    for (Size n = 1; n < std::min(count_, parts); n++) pool_.Schedule([job, n] { job->help(n); });
    job->help(0);
    job->wait();
  }

 private:
  ffi::ThreadPool& pool_;
  Size count_ = 1;
};

// How many rows a thread takes at once through all of time: as many as keep a panel of the weights busy, but all threads
// the same. One or two rows wait for the weights as long as four do, and are not worth a thread.
Size rows_at_once(Size batch, Size threads) {
  constexpr Size kMost = 48, kLeast = 3;
  Size parts = std::max<Size>(1, (batch + kMost - 1) / kMost);
  parts = (parts + threads - 1) / threads * threads;
  return std::max<Size>({1, (batch + parts - 1) / parts, std::min(batch, kLeast)});
}

template <typename S>
const S* data(const Buffer& buffer) {
  return static_cast<const S*>(buffer.untyped_data());
}

template <typename S>
S* data(Result& buffer) {
  return static_cast<S*>(buffer->untyped_data());
}

// Null where an array was left out, which an empty one stands for.
template <typename S>
const S* optional(const Buffer& buffer) {
  return buffer.element_count() ? data<S>(buffer) : nullptr;
}

template <typename S>
S* optional(Result& buffer) {
  return buffer->element_count() ? data<S>(buffer) : nullptr;
}

// Whether units are shared out and not rows: where a thread would have too few rows to be kept busy by the weights it
// reads, and a step is long enough, so many multiplications, for threads to meet after it.
bool by_units(Size batch, Size threads, Size products) {
  constexpr Size kEnough = 4;
  return threads > 1 && batch < kEnough * threads && products > (Size(1) << 17);
}

template <typename S>
void forward(ffi::ThreadPool& pool, Forward<S> f) {
  const Size step = f.batch * (f.inputs + f.hidden) * products(f.kind) * f.hidden;
  Threads threads(pool, f.steps * step);
  const Size rows = rows_at_once(f.batch, threads.count());
  const bool units = by_units(f.batch, threads.count(), step);
  f.at_once = units ? f.batch : rows;
  const Kernels<S>& k = kernels<S>(f.hidden, gates(f.kind) > 1 ? 1 : f.at_once < kRows ? 8 : 2);
  Scratch<S> packed(k.packed(f));
  f.packed = packed.get();
  const Size blocks = k.blocks(f), parts = std::min(blocks, threads.count());
  threads.run(blocks, [&](Size block) { k.pack(f, block); });
  if (units) {
    Scratch<S> scratch(k.scratch(f, f.batch, parts));
    threads.run(f.steps + 1, parts, [&](Size round, Size part) { k.round(f, round, part, parts, scratch.get()); });
    return;
  }
  threads.run((f.batch + rows - 1) / rows, [&](Size part) {
    const Size first = part * rows, count = std::min(rows, f.batch - first);
    Scratch<S> scratch(k.scratch(f, count, 1));
    k.rows(f, first, count, scratch.get());
  });
}

template <typename S>
void transposed(ffi::ThreadPool& pool, Transposed<S> f) {
  const Kernels<S>& k = kernels<S>(f.hidden, 2);
  const Size step = f.batch * f.hidden * (f.form.head + f.form.tail) * f.hidden;
  Threads threads(pool, f.steps * step);
  const Size rows = rows_at_once(f.batch, threads.count());
  Scratch<S> packed(k.back_packed(f));
  f.packed = packed.get();
  const Size blocks = k.back_blocks(f), parts = std::min(blocks, threads.count());
  threads.run(blocks, [&](Size block) { k.back_pack(f, block); });
  if (by_units(f.batch, threads.count(), step)) {
    Scratch<S> scratch(k.back_scratch(f, f.batch));
    threads.run(f.steps + 1, parts, [&](Size round, Size part) { k.back_round(f, round, part, parts, scratch.get()); });
    return;
  }
  threads.run((f.batch + rows - 1) / rows, [&](Size part) {
    const Size first = part * rows, count = std::min(rows, f.batch - first);
    Scratch<S> scratch(k.back_scratch(f, count));
    k.back_rows(f, first, count, scratch.get());
  });
}

ffi::Error check(bool fits, const char* what) {
  return fits ? ffi::Error::Success() : ffi::Error::InvalidArgument(std::string("lstmjax: ") + what);
}

// Calls with a number of the buffer's dtype.
template <typename Call>
ffi::Error by_dtype(const Buffer& buffer, Call call) {
  if (buffer.element_type() == ffi::DataType::F32) return call(float());
  if (buffer.element_type() == ffi::DataType::F64) return call(double());
  return check(false, "wanted float32 or float64");
}

void prefer_large_pages(Result& result) { prefer_large_pages(result->untyped_data(), result->size_bytes()); }

Size count(const Buffer& buffer) { return buffer.element_count(); }
Size count(Result& buffer) { return buffer->element_count(); }

ffi::Error Run(ffi::ThreadPool pool, Buffer x, Buffer w_x, Buffer w_h, Buffer b, Buffer start_c, Buffer start_h,
               Buffer fresh_c, Buffer fresh_h, Buffer valid, Buffer reset, Result final_c, Result final_h, Result h,
               Result c, Result k, Result k_state, Result k_c, Result h_before, Size kind, bool reverse, bool states) {
  const auto shape = x.dimensions();
  if (shape.size() != 3 || w_h.dimensions().size() != 2) return check(false, "wanted x [T, B, I] and w_h [H, N]");
  const Size T = shape[0], B = shape[1], I = shape[2], H = w_h.dimensions()[0], all = T * B * H;
  const bool lstm = kind == kLstm;
  const auto either = [](Size n, Size wanted) { return n == 0 || n == wanted; };
  if (count(w_x) != I * products(kind) * H || count(w_h) != H * products(kind) * H || count(b) != gates(kind) * H ||
      count(start_h) != B * H || count(start_c) != (lstm ? B * H : 0) || !either(count(fresh_h), B * H) ||
      count(fresh_c) != (lstm ? count(fresh_h) : 0) || !either(count(valid), T * B) || !either(count(reset), T * B) ||
      (count(reset) && count(fresh_h) != B * H) || count(final_h) != B * H || count(final_c) != (lstm ? B * H : 0) ||
      count(h) != all || !either(count(c), lstm ? all : 0) || !either(count(k), gates(kind) * all) ||
      count(h_before) * gates(kind) != count(k) || count(k_state) != (kind == kLstm || kind == kGru ? count(h_before) : 0) ||
      count(k_c) != (lstm ? count(h_before) : 0)) {
    return check(false, "the shapes of the forward recurrence do not fit one another");
  }
  for (Result* result : {&h, &c, &k, &k_state, &k_c, &h_before}) prefer_large_pages(*result);
  return by_dtype(x, [&](auto zero) -> ffi::Error {
    using S = decltype(zero);
    forward<S>(pool, {kind, T, B, I, H, B, reverse, states, data<S>(x), data<S>(w_x), data<S>(w_h), data<S>(b),
                      data<S>(start_c), data<S>(start_h), data<S>(fresh_c), data<S>(fresh_h), optional<bool>(valid),
                      optional<bool>(reset), data<S>(final_c), data<S>(final_h), data<S>(h), optional<S>(c),
                      optional<S>(k), optional<S>(k_state), optional<S>(k_c), optional<S>(h_before), nullptr});
    return ffi::Error::Success();
  });
}

ffi::Error RunBack(ffi::ThreadPool pool, Buffer w_h, Buffer d_h, Buffer d_c, Buffer d_final_c, Buffer d_final_h,
                   Buffer valid, Buffer reset, ffi::RemainingArgs coefficients, Result dz, Result d_start_c,
                   Result d_start_h, Result d_fresh_c, Result d_fresh_h, Size gates, Size head, Size tail,
                   ffi::Span<const Size> pairs, bool reverse, bool states, bool two) {
  const auto shape = d_h.dimensions();
  if (shape.size() != 3) return check(false, "wanted cotangents [T, B, H]");
  const Size T = shape[0], B = shape[1], H = shape[2], all = T * B * H;
  const auto either = [](Size n, Size wanted) { return n == 0 || n == wanted; };
  if (H < 1 || head < 0 || tail < 0 || head + tail > gates || count(w_h) != H * (head + tail) * H ||
      !either(count(d_c), two ? all : 0) || count(d_final_h) != B * H ||
      count(d_final_c) != (two ? B * H : 0) || !either(count(valid), T * B) || !either(count(reset), T * B) ||
      count(dz) != gates * all || count(d_start_h) != B * H || count(d_start_c) != (two ? B * H : 0) ||
      (count(reset) && count(d_fresh_h) != B * H) || count(d_fresh_c) != (two ? count(d_fresh_h) : 0)) {
    return check(false, "the shapes of the transposed recurrence do not fit one another");
  }
  prefer_large_pages(dz);
  return by_dtype(w_h, [&](auto zero) -> ffi::Error {
    using S = decltype(zero);
    std::vector<Diagonal<S>> diagonals;  // an array holds one of them, or several side by side
    for (size_t n = 0; n < coefficients.size(); n++) {
      const auto some = coefficients.get<Buffer>(n);
      if (!some) return some.error();
      const Size width = some->dimensions().size() == 3 ? some->dimensions()[2] : 0;
      if (width % H || count(*some) != T * B * width) return check(false, "wanted coefficients [T, B, n * H]");
      for (Size at = 0; at < width; at += H) diagonals.push_back({data<S>(*some) + at, width, 0, 0});
    }
    if (diagonals.size() > kDiagonals) return check(false, "there are more coefficients than the kernels take");
    if (2 * diagonals.size() != pairs.size()) return check(false, "the coefficients are not as many as were said");
    for (size_t n = 0; n < diagonals.size(); n++) {
      const Size output = diagonals[n].output = pairs[2 * n], input = diagonals[n].input = pairs[2 * n + 1];
      const bool last = two && n + 1 == diagonals.size() && output == 1 && input == gates + 2;
      const bool in_order = n == 0 || diagonals[n - 1].input <= input;
      if (output < 0 || output > two || input < 0 || (input > gates + two && !last) || !in_order) {
        return check(false, "wanted each coefficient of a state's array by an input, in the order of inputs");
      }
    }
    transposed<S>(pool, {{gates, head, tail}, T, B, H, Size(diagonals.size()), reverse, states, two,
                         diagonals.data(), data<S>(w_h), data<S>(d_h), optional<S>(d_c), data<S>(d_final_c),
                         data<S>(d_final_h), optional<bool>(valid), optional<bool>(reset), data<S>(dz),
                         data<S>(d_start_c), data<S>(d_start_h), data<S>(d_fresh_c), data<S>(d_fresh_h), nullptr});
    return ffi::Error::Success();
  });
}

ffi::Error RunGradient(ffi::ThreadPool pool, Buffer x, Buffer h, Buffer dz, Result d_w_x, Result d_w_h, Result d_b,
                       Size gates_by_x, Size head, Size tail) {
  if (x.dimensions().size() != 2 || h.dimensions().size() != 2 || dz.dimensions().size() != 2) {
    return check(false, "wanted x [R, I], h [R, H] and dz [R, N]");
  }
  const Size rows = x.dimensions()[0], I = x.dimensions()[1], H = h.dimensions()[1], wide = dz.dimensions()[1];
  const Size gates = H > 0 ? wide / H : 0, both = std::min(gates_by_x, head), either = std::max(gates_by_x, head);
  if (H < 1 || h.dimensions()[0] != rows || dz.dimensions()[0] != rows || gates * H != wide || both < 0 || tail < 0 ||
      either + tail > gates || count(d_w_x) != I * gates_by_x * H || count(d_w_h) != H * (head + tail) * H ||
      count(d_b) != wide) {
    return check(false, "the shapes of the weights' gradients do not fit one another");
  }
  return by_dtype(x, [&](auto zero) -> ffi::Error {
    using S = decltype(zero);
    const Kernels<S>& kernel = of<S>(target());
    Threads threads(pool, rows * wide * (I + H));
    // The gates that read x and h, those that read one of them, those that read neither, and the last, which read h.
    const Size borders[] = {0, both, either, gates - tail, gates};
    const auto gradient = [&](Size from, Size to) -> Gradient<S> {
      const bool by_x = from < gates_by_x, by_h = from < head || from >= gates - tail;
      const Size column = (from < head ? from : from - (gates - tail) + head) * H;
      return {rows, (to - from) * H, wide, data<S>(dz) + from * H, data<S>(d_b) + from * H,
              {{data<S>(x), by_x ? I : 0, data<S>(d_w_x) + from * H, gates_by_x * H},
               {data<S>(h), by_h ? H : 0, data<S>(d_w_h) + column, (head + tail) * H}}};
    };
    // Of the columns between two borders, each thread may take some stretches: one that comes late finds fewer.
    const Size stretches = 2 * threads.count();
    threads.run(4 * stretches, [&](Size part) {
      const Gradient<S> g = gradient(borders[part / stretches], borders[part / stretches + 1]);
      const Size n = part % stretches, panels = kernel.gradient_parts(g);
      const Size from = panels * n / stretches, to = panels * (n + 1) / stretches;
      if (from == to) return;
      Scratch<S> scratch(kernel.gradient_scratch(g));
      kernel.gradient(g, from, to, scratch.get());
    });
    return ffi::Error::Success();
  });
}

ffi::Error RunFunctions(Buffer z, Result sigmoid, Result sigmoid_slope, Result tanh, Result tanh_slope) {
  for (Result* result : {&sigmoid, &sigmoid_slope, &tanh, &tanh_slope}) {
    if (count(*result) != count(z)) return check(false, "the shapes of the functions do not fit one another");
  }
  return by_dtype(z, [&](auto zero) -> ffi::Error {
    using S = decltype(zero);
    of<S>(target()).functions(count(z), data<S>(z), data<S>(sigmoid), data<S>(sigmoid_slope), data<S>(tanh),
                           data<S>(tanh_slope));
    return ffi::Error::Success();
  });
}

}  // namespace
}  // namespace lstmjax

#define LSTMJAX_HANDLER(name, ...)                                                              \
  extern "C" __attribute__((visibility("default"))) XLA_FFI_Error* name(XLA_FFI_CallFrame*);    \
  XLA_FFI_DEFINE_HANDLER_SYMBOL(name, __VA_ARGS__)

LSTMJAX_HANDLER(lstmjax_forward, lstmjax::Run,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // x
                    .Arg<xla::ffi::AnyBuffer>()  // w_x
                    .Arg<xla::ffi::AnyBuffer>()  // w_h
                    .Arg<xla::ffi::AnyBuffer>()  // b
                    .Arg<xla::ffi::AnyBuffer>()  // start_c
                    .Arg<xla::ffi::AnyBuffer>()  // start_h
                    .Arg<xla::ffi::AnyBuffer>()  // fresh_c
                    .Arg<xla::ffi::AnyBuffer>()  // fresh_h
                    .Arg<xla::ffi::AnyBuffer>()  // valid
                    .Arg<xla::ffi::AnyBuffer>()  // reset
                    .Ret<xla::ffi::AnyBuffer>()  // final_c
                    .Ret<xla::ffi::AnyBuffer>()  // final_h
                    .Ret<xla::ffi::AnyBuffer>()  // h
                    .Ret<xla::ffi::AnyBuffer>()  // c
                    .Ret<xla::ffi::AnyBuffer>()  // k
                    .Ret<xla::ffi::AnyBuffer>()  // k_state
                    .Ret<xla::ffi::AnyBuffer>()  // k_c
                    .Ret<xla::ffi::AnyBuffer>()  // h_before
                    .Attr<int64_t>("kind")
                    .Attr<bool>("reverse")
                    .Attr<bool>("states"));

LSTMJAX_HANDLER(lstmjax_transposed, lstmjax::RunBack,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // w_h
                    .Arg<xla::ffi::AnyBuffer>()  // d_h
                    .Arg<xla::ffi::AnyBuffer>()  // d_c
                    .Arg<xla::ffi::AnyBuffer>()  // d_final_c
                    .Arg<xla::ffi::AnyBuffer>()  // d_final_h
                    .Arg<xla::ffi::AnyBuffer>()  // valid
                    .Arg<xla::ffi::AnyBuffer>()  // reset
                    .RemainingArgs()             // the diagonals
                    .Ret<xla::ffi::AnyBuffer>()  // dz
                    .Ret<xla::ffi::AnyBuffer>()  // d_start_c
                    .Ret<xla::ffi::AnyBuffer>()  // d_start_h
                    .Ret<xla::ffi::AnyBuffer>()  // d_fresh_c
                    .Ret<xla::ffi::AnyBuffer>()  // d_fresh_h
                    .Attr<int64_t>("gates")
                    .Attr<int64_t>("head")
                    .Attr<int64_t>("tail")
                    .Attr<xla::ffi::Span<const int64_t>>("pairs")
                    .Attr<bool>("reverse")
                    .Attr<bool>("states")
                    .Attr<bool>("two"));

LSTMJAX_HANDLER(lstmjax_gradient, lstmjax::RunGradient,
                xla::ffi::Ffi::Bind()
                    .Ctx<xla::ffi::ThreadPool>()
                    .Arg<xla::ffi::AnyBuffer>()  // x
                    .Arg<xla::ffi::AnyBuffer>()  // h
                    .Arg<xla::ffi::AnyBuffer>()  // dz
                    .Ret<xla::ffi::AnyBuffer>()  // d_w_x
                    .Ret<xla::ffi::AnyBuffer>()  // d_w_h
                    .Ret<xla::ffi::AnyBuffer>()  // d_b
                    .Attr<int64_t>("by_x")
                    .Attr<int64_t>("head")
                    .Attr<int64_t>("tail"));

LSTMJAX_HANDLER(lstmjax_functions, lstmjax::RunFunctions,
                xla::ffi::Ffi::Bind()
                    .Arg<xla::ffi::AnyBuffer>()   // z
                    .Ret<xla::ffi::AnyBuffer>()   // sigmoid
                    .Ret<xla::ffi::AnyBuffer>()   // its slope
                    .Ret<xla::ffi::AnyBuffer>()   // tanh
                    .Ret<xla::ffi::AnyBuffer>());  // its slope
