#include "device.h"

#include <stdexcept>

#include "check.h"
#include "cuda_stand_in.h"

namespace token_stream {
namespace {

using CudaError = std::runtime_error;

// While it is there, calls of one CUDA function fail.
struct Failing {
  explicit Failing(const char* function) { cuda::fail(function); }
  ~Failing() { cuda::fail(""); }
};

TEST(memory_of_a_gpu) {
  const size_t before = cuda::counts().bytes_held;
  const Device device(0);
  void* memory = device.allocate(8);
  const Ids ids{3, 4};
  Ids back(2);
  device.copy(memory, ids.data(), 8);
  device.copy(back.data(), memory, 8);
  CHECK_EQUAL(back, ids);
  CHECK_EQUAL(cuda::counts().bytes_held, before + 8);
  CHECK_THROWS(CudaError, device.copy(memory, ids.data(), 9), "cudaMemcpy on GPU 0: invalid argument");
  device.free(memory);
  CHECK_EQUAL(cuda::counts().bytes_held, before);
}

TEST(errors_of_cuda_are_clear) {
  CHECK_THROWS(CudaError, Device(7), "cudaSetDevice on GPU 7: invalid device ordinal");
  const Device device(0);
  {
    const Failing now("cudaMalloc");
    CHECK_THROWS(CudaError, device.allocate(8), "cudaMalloc on GPU 0: out of memory");
  }
  void* memory = device.allocate(8);
  {
    const Failing now("cudaSetDevice");
    CHECK_THROWS(CudaError, device.allocate(8), "cudaSetDevice on GPU 0: invalid device ordinal");
    CHECK_THROWS(CudaError, device.copy(memory, memory, 8), "cudaSetDevice on GPU 0: invalid device ordinal");
  }
  {
    const Failing now("cudaFree");
    CHECK_THROWS(CudaError, device.free(memory), "cudaFree on GPU 0: invalid argument");
  }
  device.free(memory);
}

TEST(ids_on_a_gpu) {
  const cuda::Counts before = cuda::counts();
  const Device device(0);
  {
    DeviceIds held(&device);
    held.assign({});
    CHECK_EQUAL(cuda::counts().allocations, before.allocations);
    held.assign({1, 2, 3});
    CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held + 12);
    held.assign({1});
    CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held + 4);
    held.assign({});
    CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held);
    held.assign({1, 2});
  }
  CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held);
  CHECK_EQUAL(cuda::counts().allocations - before.allocations, cuda::counts().frees - before.frees);
}

TEST(ids_on_a_gpu_that_is_full) {
  const cuda::Counts before = cuda::counts();
  const Device device(0);
  {
    DeviceIds held(&device);
    held.assign({1, 2, 3});
    const Failing now("cudaMalloc");
    CHECK_THROWS(CudaError, held.assign({1}), "out of memory");
    CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held);  // the old ids are gone: the next ones replace them
  }
  {
    DeviceIds held(&device);
    const Failing now("cudaMemcpy");
    CHECK_THROWS(CudaError, held.assign({1}), "cudaMemcpy");
  }
  CHECK_EQUAL(cuda::counts().bytes_held, before.bytes_held);
}

TEST(no_ids_where_there_is_no_gpu) {
  const cuda::Counts before = cuda::counts();
  DeviceIds none(nullptr);
  none.assign({1, 2, 3});
  CHECK_EQUAL(cuda::counts().allocations, before.allocations);
}

}  // namespace
}  // namespace token_stream
