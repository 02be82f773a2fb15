#include "device.h"

#include <dlfcn.h>

#include <stdexcept>
#include <string>
#include <utility>

namespace token_stream {
namespace {

constexpr int kCopyDefault = 4;  // cudaMemcpyDefault: CUDA sees by the addresses which way to copy

template <typename Function>
Function* find(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_DEFAULT, name));
}

// CUDA's runtime functions, as the process has them: null where it has none.
struct Runtime {
  int (*set_device)(int) = find<int(int)>("cudaSetDevice");
  int (*allocate)(void**, size_t) = find<int(void**, size_t)>("cudaMalloc");
  int (*release)(void*) = find<int(void*)>("cudaFree");
  int (*copy)(void*, const void*, size_t, int) = find<int(void*, const void*, size_t, int)>("cudaMemcpy");
  int (*wait)(void*) = find<int(void*)>("cudaStreamSynchronize");
  const char* (*words)(int) = find<const char*(int)>("cudaGetErrorString");
};

const Runtime& runtime() {
  static const Runtime kRuntime;
  return kRuntime;
}

}  // namespace

Device::Device(int number) : number_(number) {
  const Runtime& cuda = runtime();
  if (!cuda.set_device || !cuda.allocate || !cuda.release || !cuda.copy || !cuda.wait || !cuda.words) {
    throw std::runtime_error("the instance is on a GPU, but this server has no CUDA runtime: use KIND_CPU");
  }
  check(cuda.set_device(number_), "cudaSetDevice");
}

// The current device belongs to a thread. (What is freed is found by its address.)
void* Device::allocate(size_t bytes) const {
  void* memory = nullptr;
  check(runtime().set_device(number_), "cudaSetDevice");
  check(runtime().allocate(&memory, bytes), "cudaMalloc");
  return memory;
}

void Device::free(void* memory) const { check(runtime().release(memory), "cudaFree"); }

// From ordinary main memory cudaMemcpy may return before the GPU has the bytes.
void Device::copy(void* to, const void* from, size_t bytes) const {
  check(runtime().set_device(number_), "cudaSetDevice");
  check(runtime().copy(to, from, bytes, kCopyDefault), "cudaMemcpy");
  check(runtime().wait(nullptr), "cudaStreamSynchronize");
}

void Device::check(int status, const char* what) const {
  if (status != 0) {
    throw std::runtime_error(std::string(what) + " on GPU " + std::to_string(number_) + ": " + runtime().words(status));
  }
}

// A GPU that takes nothing back is broken, but that must not end a server with all its other models.
DeviceIds::~DeviceIds() {
  try {
    clear();
  } catch (const std::exception&) {
  }
}

void DeviceIds::assign(const Ids& ids) {
  if (device_ == nullptr) return;
  clear();
  if (ids.empty()) return;
  memory_ = device_->allocate(ids.size() * sizeof(int32_t));
  device_->copy(memory_, ids.data(), ids.size() * sizeof(int32_t));
}

void DeviceIds::clear() {
  if (memory_ != nullptr) device_->free(std::exchange(memory_, nullptr));
}

}  // namespace token_stream
