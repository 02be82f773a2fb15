// Memory of a GPU, through the CUDA runtime that the server's process has loaded. Nothing of CUDA is needed to build.
#pragma once

#include <cstddef>

#include "token_bytes.h"

namespace token_stream {

class Device {
 public:
  // The GPU with this number. Throws std::runtime_error where the process has no CUDA runtime.
  explicit Device(int number);

  // Each throws std::runtime_error, with CUDA's own words, where CUDA refuses.
  void* allocate(size_t bytes) const;
  void free(void* memory) const;
  // Between any two of main memory and the GPU's; returns when it is done.
  void copy(void* to, const void* from, size_t bytes) const;

 private:
  void check(int status, const char* what) const;

  int number_;
};

// Ids that are held in the memory of a GPU; none where there is no GPU.
class DeviceIds {
 public:
  explicit DeviceIds(const Device* device) : device_(device) {}
  ~DeviceIds();
  DeviceIds(const DeviceIds&) = delete;
  DeviceIds& operator=(const DeviceIds&) = delete;

  void assign(const Ids& ids);

 private:
  void clear();

  const Device* device_;
  void* memory_ = nullptr;
};

}  // namespace token_stream
