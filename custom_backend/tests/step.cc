// What one decode step takes, and what bounds it: asked for by benchmarks/decode_step.py, over a pipe.
//
//   step WEIGHTS
//
// Each line of its input is one question, each line of its output the answer:
//
//   step STREAMS POSITION REPEATS   median seconds to read one token of each stream, and the row chosen last
//   read BYTES REPEATS              bytes/s, the most that this thread reads from a buffer of that size
//   multiply REPEATS                FLOP/s of multiply-adds that touch no memory

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <sstream>
#include <string>
#include <vector>

#include "token_stream/transformer.h"

namespace token_stream {
namespace {

constexpr size_t kLanes = 128;  // floats in the registers: enough sums side by side to hide the time that one takes

template <typename Work>
std::vector<double> seconds(size_t repeats, Work work) {
  std::vector<double> out;
  work();
  for (size_t repeat = 0; repeat < repeats; ++repeat) {
    const auto began = std::chrono::steady_clock::now();
    work();
    out.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count());
  }
  std::sort(out.begin(), out.end());
  return out;
}

// What must not be optimised away is written here.
volatile float sink;

void keep(const float* sums) {
  float total = 0;
  for (size_t lane = 0; lane < kLanes; ++lane) total += sums[lane];
  sink = total;
}

void answer_step(Transformer& model, std::istream& words) {
  size_t streams = 0, repeats = 0;
  int position = 0;
  words >> streams >> position >> repeats;
  std::vector<Cache> caches(streams);
  std::vector<Slot> slots;
  for (Cache& cache : caches) {
    cache = model.new_cache();
    std::vector<Slot> prompt;
    for (int at = 0; at < position; ++at) prompt.push_back({1 + at, at, &cache, at + 1 == position});
    model.read(prompt);
    slots.push_back({1 + position, position, &cache, true});
  }
  int chosen = 0;
  const auto found = seconds(repeats, [&] { chosen = model.read(slots).back(); });
  std::printf("%.9g %d\n", found[found.size() / 2], chosen);
}

void answer_read(std::istream& words) {
  size_t bytes = 0, repeats = 0;
  words >> bytes >> repeats;
  const std::vector<float> buffer(bytes / sizeof(float) / kLanes * kLanes, 1.0F);
  const auto found = seconds(repeats, [&] {
    float sums[kLanes] = {};
    for (const float *at = buffer.data(), *end = at + buffer.size(); at < end; at += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] += at[lane];
    }
    keep(sums);
  });
  std::printf("%.9g\n", static_cast<double>(buffer.size() * sizeof(float)) / found.front());
}

void answer_multiply(std::istream& words) {
  constexpr size_t kRounds = 10000;
  size_t repeats = 0;
  words >> repeats;
  const auto found = seconds(repeats, [&] {
    float sums[kLanes] = {};
    const float factor = sink, term = sink;
    for (size_t round = 0; round < kRounds; ++round) {
      for (size_t lane = 0; lane < kLanes; ++lane) sums[lane] = sums[lane] * factor + term;
    }
    keep(sums);
  });
  std::printf("%.9g\n", 2.0 * kLanes * kRounds / found.front());
}

void answer(Transformer& model, const std::string& line) {
  std::istringstream words(line);
  std::string what;
  words >> what;
  if (what == "step") answer_step(model, words);
  if (what == "read") answer_read(words);
  if (what == "multiply") answer_multiply(words);
  std::fflush(stdout);
}

}  // namespace
}  // namespace token_stream

int main(int count, char** words) {
  if (count != 2) {
    std::fprintf(stderr, "usage: step WEIGHTS\n");
    return 2;
  }
  try {
    token_stream::Transformer model(words[1]);
    for (std::string line; std::getline(std::cin, line);) token_stream::answer(model, line);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "step: %s\n", error.what());
    return 2;
  }
  return 0;
}
