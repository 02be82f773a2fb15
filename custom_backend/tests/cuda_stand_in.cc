#include "cuda_stand_in.h"

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

namespace cuda {
namespace {

constexpr int kInvalidValue = 1, kOutOfMemory = 2, kInvalidDevice = 101, kCopyDefault = 4;

std::mutex mutex;
std::map<const char*, size_t>& held() {
  static auto* held = new std::map<const char*, size_t>;  // never freed: what it holds is no leak of the node's
  return *held;
}
Counts counted{};
std::string failing;

// The allocation that holds the address; the end if none does.
std::map<const char*, size_t>::iterator found(const void* address) {
  const auto* at = static_cast<const char*>(address);
  auto after = held().upper_bound(at);
  if (after == held().begin()) return held().end();
  --after;
  return at < after->first + after->second ? after : held().end();
}

// Whether a copy stays inside of the allocation in which it begins, if it begins in one.
bool fits(const void* address, size_t bytes) {
  const auto one = found(address);
  return one == held().end() || static_cast<const char*>(address) + bytes <= one->first + one->second;
}

}  // namespace

Counts counts() {
  const std::lock_guard<std::mutex> lock(mutex);
  return counted;
}

void fail(const char* function) {
  const std::lock_guard<std::mutex> lock(mutex);
  failing = function;
}

}  // namespace cuda

using namespace cuda;

extern "C" {

int cudaSetDevice(int device) {
  const std::lock_guard<std::mutex> lock(cuda::mutex);
  return failing == "cudaSetDevice" || device != 0 ? kInvalidDevice : 0;
}

int cudaMalloc(void** memory, size_t bytes) {
  const std::lock_guard<std::mutex> lock(cuda::mutex);
  if (failing == "cudaMalloc" || bytes == 0) return kOutOfMemory;
  *memory = std::malloc(bytes);
  held()[static_cast<const char*>(*memory)] = bytes;
  ++counted.allocations;
  counted.bytes_held += bytes;
  return 0;
}

int cudaStreamSynchronize(void* stream) {
  const std::lock_guard<std::mutex> lock(cuda::mutex);
  return failing == "cudaStreamSynchronize" || stream != nullptr ? kInvalidValue : 0;
}

int cudaFree(void* memory) {
  const std::lock_guard<std::mutex> lock(cuda::mutex);
  const auto one = held().find(static_cast<const char*>(memory));
  if (failing == "cudaFree" || one == held().end()) return kInvalidValue;
  counted.bytes_held -= one->second;
  ++counted.frees;
  held().erase(one);
  std::free(memory);
  return 0;
}

int cudaMemcpy(void* to, const void* from, size_t bytes, int kind) {
  const std::lock_guard<std::mutex> lock(cuda::mutex);
  if (failing == "cudaMemcpy" || kind != kCopyDefault || !fits(to, bytes) || !fits(from, bytes)) return kInvalidValue;
  ++counted.copies;
  std::memcpy(to, from, bytes);
  return 0;
}

const char* cudaGetErrorString(int error) {
  return error == kOutOfMemory     ? "out of memory"
         : error == kInvalidDevice ? "invalid device ordinal"
                                   : "invalid argument";
}

}  // extern "C"
